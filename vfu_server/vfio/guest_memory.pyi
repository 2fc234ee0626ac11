"""The guest memory that the client of a context mapped."""

from collections.abc import Sequence
from typing import final

from pymodel.memory import Bytes

@final
class GuestMemory:
    """The guest memory that one client mapped; see `pymodel.memory.GuestMemory` for the methods.

    For the thread that serves the context only. A view that is kept past an unmap stays safe to touch, but
    what is written through it may be nobody's memory any more: look memory up for each access.
    """

    @property
    def lost(self) -> int:
        """Pages that could not be had from the client's file: it is shorter than what was mapped.

        They read as zeros and writes to them go nowhere: the guest's memory can't be trusted once this grew.
        """

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

    def load_u16(self, address: int) -> int:
        """One 16-bit load with acquire order. Raises `MemoryFault`."""

    def store_u16(self, address: int, value: int) -> None:
        """One 16-bit store with release order. Raises `MemoryFault`."""

    def fence(self) -> None:
        """A full barrier."""
