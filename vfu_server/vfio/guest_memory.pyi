"""The guest memory that the client of a context mapped."""

from collections.abc import Sequence
from typing import Final, final

from pymodel.memory import Bytes

REGIONS_MAX: Final[int]
"""How many regions one client may map: 65536. A file that many share is mapped once."""

MAPPINGS_MAX: Final[int]
"""How many mappings of files all clients of a process can have together, at most."""

BYTES_MAX: Final[int]
"""Address space for one client's mappings where nobody says less, in bytes."""

@final
class GuestMemory:
    """The guest memory that one client mapped; see `pymodel.memory.GuestMemory` for the methods.

    For the thread that serves the context only. A view that is kept past an unmap stays safe to touch, but
    what is written through it may be nobody's memory any more: look memory up for each access.

    A regular file is mapped once, as a whole, for all regions of it with the same protection: they take
    neither mappings nor descriptors of their own. What lies past the file's end, or is a device's, is mapped
    by itself. A client has at most `mappings_max` mappings in `bytes_max` bytes of address space, those
    included that only views still hold.
    """

    def __new__(cls, mappings_max: int = ..., bytes_max: int = ...) -> GuestMemory: ...
    @property
    def lost(self) -> int:
        """Pages that could not be had from the client's file: it is shorter than what was mapped.

        From the first of them on, all pages of that mapping read as zeros and writes to them go nowhere. To
        look memory up in a region of it is a `MemoryFault` then, until the client maps it anew.
        """

    @property
    def refused(self) -> int:
        """How often the client mapped more than it may: it believes that we reach what we do not."""

    @property
    def refusal(self) -> str:
        """Of what there was too much the last time."""

    @property
    def unmapped_at(self) -> float:
        """When the client last unmapped something, by `time.monotonic`; minus infinity if never."""

    def __len__(self) -> int:
        """How many regions are mapped, those without a file among them."""

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        """Byte views over [address, address + length), one for each region crossed. Raises `MemoryFault`."""

    def views(
        self, segments: Sequence[tuple[int, int]], start: int, length: int, *, write: bool
    ) -> list[Bytes]:
        """The same for a part of a scatter-gather list; neighbours are joined. Raises `MemoryFault`."""

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out. Raises `MemoryFault`."""

    def write(self, address: int, data: bytes) -> None:
        """Copy `data` in. Raises `MemoryFault` with nothing written."""

    def is_mapped(self, address: int, length: int) -> bool:
        """Whether any of [address, address + length), which is within 2**64, is in a region of any kind."""

    def load_u16(self, address: int) -> int:
        """One 16-bit load with acquire order. Raises `MemoryFault`."""

    def store_u16(self, address: int, value: int) -> None:
        """One 16-bit store with release order. Raises `MemoryFault`."""

    def fence(self) -> None:
        """A full barrier."""
