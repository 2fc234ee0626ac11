"""The one place that knows libvfio-user: a context for each function."""

from collections.abc import Sequence
from typing import Final, Protocol, final, type_check_only

from vfu_server.vfio.guest_memory import GuestMemory

GUARDED: Final[bool]
"""Whether the library is our own build, with the guards of library_guard.c around it."""

CONFIG_REGION: Final[int]
"""The region index of config space; that of a BAR is its number."""

CONFIG_SIZE: Final[int]

def keep_freed_memory(size: int) -> None:
    """Have the C library keep freed memory of up to `size` bytes, to be used again without page faults."""

def take_short_turns(nanoseconds: int) -> None:
    """Have the calling thread's turns on a processor be that short: when it wakes they come before the longer
    ones of others. It gets no more time.

    Nothing happens before Linux 6.12, and where the thread is scheduled by another policy than the usual one.
    """

@type_check_only
class Handler(Protocol):
    """Whom a context calls, on the thread that is in its `attach`, `run` or `close`.

    An exception fails the access and comes out of that `attach` or `run`.
    """

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        """Answer a read with exactly `length` bytes. The access is inside the region."""

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        """Take a write. The access is inside the region."""

    def reset(self) -> None:
        """VFIO's DEVICE_RESET."""

    def mapping_changed(self, address: int, length: int, there: bool, writable: bool) -> None:
        """The client mapped guest memory, or took it away: with a length of 0 all of it."""

    def log(self, level: int, text: str) -> None:
        """Something that the library has to say; `level` is that of syslog, 3 an error and 7 debugging."""

@final
class Context:
    """One PCI function served at one socket, for one client at a time.

    All methods but `wake` and `hang_up` are for one thread. The interpreter's lock is free while the
    library waits.
    """

    def __new__(
        cls,
        path: str,
        handler: Handler,
        *,
        bars: dict[int, int],
        msix_vectors: int,
        intx: bool,
        log_level: int,
        eventfds_max: int = ...,
        mappings_max: int = ...,
        bytes_max: int = ...,
    ) -> Context:
        """Listen at `path`, mode 0600. A socket that is there already is replaced: see that it is nobody's.

        `bars` maps a BAR's number to its size. A client may leave `eventfds_max` eventfds here; for the other
        limits see `GuestMemory`. Raises OSError with nothing left behind.
        """

    @property
    def memory(self) -> GuestMemory:
        """The client's memory; empty while none is attached."""

    tells_of_memory: bool
    """Whether `Handler.mapping_changed` is called."""

    @property
    def attached(self) -> bool:
        """Whether a client is attached."""

    @property
    def listener(self) -> int:
        """The descriptor of the socket that clients connect to. It is the context's own."""

    @property
    def woken(self) -> bool:
        """Whether the last wait saw anything else than a message: `wake`, or a descriptor of `also`."""

    @property
    def irqs_dropped(self) -> int:
        """Interrupts whose eventfd could not be written without waiting."""

    def attach(self, timeout: float | None) -> bool:
        """Wait `timeout` seconds, or until woken, for a client, and negotiate. Whether one is attached now.

        Raises ConnectionError where a client came and did not speak the protocol; the next may come. Raises
        BlockingIOError where there is no file descriptor or memory for a connection: who connects waits, and
        `attach` does not look for a second.
        """

    def run(self, timeout: float | None, also: Sequence[tuple[int, int]] = ...) -> int:
        """Wait for messages for `timeout` seconds, or until woken, and handle some. Returns how many.

        An event on a file descriptor of `also`, (descriptor, events of poll(2)), ends the wait too.

        Raises ConnectionResetError once the client left, or was hung up on: its memory and eventfds are gone.
        """

    def log_up_to(self, level: int) -> None:
        """Have the library say what is of these levels of syslog from now on, 3 or 7."""

    def wake(self) -> None:
        """End a wait in `attach` or `run`, the current or the next. Any thread may call it."""

    def hang_up(self) -> None:
        """End the connection and each one that comes, whatever it waits for. Any thread may call it."""

    def irq_trigger(self, vector: int) -> bool:
        """Send an interrupt: MSI-X `vector`, or INTx as 0. Whether it was sent.

        It is not where the client gave no eventfd, or one that would block.
        """

    def post_writes(self, writes: Sequence[tuple[int, bytes]]) -> None:
        """Have the client write at addresses that need not be memory it mapped, as (address, data).

        It is not asked for an answer (DMA_WRITE with No_reply). Waits while its socket is full; a client that
        takes nothing, or is gone, is noticed by the next `run`.
        """

    def close(self) -> None:
        """End the connection, give all memory back, remove the socket. May be called again."""
