"""What a queue needs of its ring, whichever format that has."""

from __future__ import annotations

from collections.abc import Sequence

from pymodel.memory import Buffer, GuestMemory
from pymodel.migration.state import QueueState
from pymodel.queue.chain import Chain
from pymodel.spec import ring


class RingBuffer(Buffer):
    """A buffer as its ring knows it: `id` and `count` of its chain, and how it was used."""

    __slots__ = ("count", "id", "written")

    id: int
    count: int
    written: int

    @property
    def can_be_skipped(self) -> bool:
        """Whether the driver can tell how it was used without a length.

        What a batch skips counts as used completely. Of a buffer with both parts Linux then takes the sum
        of both for the length, so those are never skipped.
        """
        return self.written == self.writable.length and not (self.readable.length and self.written)


class Ring:
    """One format of virtqueue: where it is, and how far the device has come in it.

    A fresh one stands for a queue that is not enabled. Positions are plain integers; what they mean is the
    format's matter. `unanswered` counts what was used since it was last decided about an interrupt.
    `table_max`: how many descriptors an indirect table may have, as many as the ring and `long_tables` at
    least; 0 without INDIRECT_DESC.
    """

    name = ""

    def __init__(
        self, index: int, *, event_idx: bool, indirect: bool, in_order: bool, long_tables: int = 0
    ) -> None:
        self.index = index
        self.event_idx = event_idx
        self.indirect = indirect
        self.in_order = in_order
        self.long_tables = long_tables
        self.table_max = 0
        self.size = 0
        self.desc = 0
        self.driver = 0
        self.device = 0
        self.unanswered = 0

    def place(self, size: int, desc: int, driver: int, device: int) -> None:
        """The queue was enabled: its size in descriptors, its three guest addresses."""
        self.size = size
        self.table_max = max(size, self.long_tables) if self.indirect else 0
        self.desc = desc
        self.driver = driver
        self.device = device

    @staticmethod
    def accepts_size(size: int) -> bool:
        """Whether a ring can have so many descriptors."""
        return 0 < size <= ring.MAX_SIZE

    @staticmethod
    def aligned(desc: int, driver: int, device: int) -> bool:
        """Whether the three addresses obey the format's alignment requirements."""
        raise NotImplementedError

    @property
    def last_avail(self) -> int:
        """Where the next buffer will be taken, as a context has it."""
        raise NotImplementedError

    @property
    def used(self) -> int:
        """Where the next buffer will be used, as a context has it."""
        raise NotImplementedError

    @property
    def full(self) -> bool:
        """Whether what was taken and not published is all that there is room for.

        A split ring is never full here where chains have several descriptors: those are not counted.
        """
        raise NotImplementedError

    def capture(self, state: QueueState) -> None:
        """Put the position into `state`."""
        raise NotImplementedError

    def check(self, state: QueueState) -> None:
        """Raise `InvalidField`, with the reason, for a position that a ring of `state.size` cannot be at."""
        raise NotImplementedError

    def restore(self, state: QueueState) -> None:
        """Go to a position that `check` accepted. Comes after `place`."""
        raise NotImplementedError

    def find(self, memory: GuestMemory) -> None:
        """Go to the position that guest memory tells, where all that was taken before is used."""
        raise NotImplementedError

    def pending(self, memory: GuestMemory) -> bool:
        """Whether a buffer is available. Raises `BrokenQueue` where more are than there can be."""
        raise NotImplementedError

    def take(self, memory: GuestMemory) -> Chain:
        """The next buffer, after `pending` said that there is one, and go on behind it.

        Raises `BrokenQueue`, with nothing taken.
        """
        raise NotImplementedError

    def untake(self, count: int) -> None:
        """Go back by the chain taken last; `count` is its own."""
        raise NotImplementedError

    def publish(self, memory: GuestMemory, buffers: Sequence[RingBuffer]) -> None:
        """Tell the driver of used buffers, in this order. Raises `MemoryFault`, and may be called again."""
        raise NotImplementedError

    def wants_interrupt(self, memory: GuestMemory) -> bool:
        """Whether the driver wants to be told of what was published since the last call.

        The caller has put a fence in between.
        """
        raise NotImplementedError

    def suppress_kicks(self, memory: GuestMemory) -> None:
        """Ask for no notifications: the ring is worked on anyway."""
        raise NotImplementedError

    def ask_for_kicks(self, memory: GuestMemory) -> bool:
        """Ask for a notification of what the driver adds from now on; whether it has added meanwhile.

        What was seen already, taken and given back or not, is not news.
        """
        raise NotImplementedError
