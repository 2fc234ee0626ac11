"""Guest memory as one function reaches it: through its gate, with a record of what it wrote."""

from __future__ import annotations

from collections.abc import Sequence

from pymodel.errors import MemoryFault
from pymodel.memory import Bytes, GuestMemory, Vectors, runs
from pymodel.migration.record import WriteRecord

CLOSED = "the function may not access memory now"


class Dma(GuestMemory):
    """Guest memory as one function may use it.

    `target` is the client's memory while the gate is open, else None: then every access is a `MemoryFault`,
    whoever asks (DEV-13, DEV-22). The function sets it whenever the gate may have changed. Each method looks
    by itself: they are called dozens of times for a request.
    """

    def __init__(self, record: WriteRecord | None) -> None:
        self.target: GuestMemory | None = None
        self._record = record

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        views = target.view(address, length, write=write)
        if write and views:
            self.note(address, length)
        return views

    def views(
        self, segments: Sequence[tuple[int, int]], start: int, length: int, *, write: bool
    ) -> list[Bytes]:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        views = target.views(segments, start, length, write=write)
        if write and self._record is not None and self._record.active:
            for address, size in runs(segments, start, length):
                self._record.add(address, size)
        return views

    def read(self, address: int, length: int) -> bytes:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        return target.read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        target.write(address, data)
        self.note(address, len(data))

    def is_mapped(self, address: int, length: int) -> bool:
        """See `GuestMemory`; nothing is while the gate is closed."""
        target = self.target
        return target is not None and target.is_mapped(address, length)

    def load_u16(self, address: int) -> int:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        return target.load_u16(address)

    def store_u16(self, address: int, value: int) -> None:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        target.store_u16(address, value)
        self.note(address, 2)

    def fence(self) -> None:
        """See `GuestMemory`."""
        target = self.target
        if target is None:
            raise MemoryFault(CLOSED)
        target.fence()

    # -- without the interpreter --------------------------------------------------------------------------

    def word(self, address: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        return self.target.word(address)

    def set_word(self, address: int, value: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        self.target.set_word(address, value)
        return self.note(address, 2)

    def barrier(self) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        return self.target.barrier()

    def peek(self, address: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        return self.target.peek(address)

    def poke(self, address: int, value: int, length: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        self.target.poke(address, value, length)
        return self.note(address, length)

    def copy_in(self, address: int, place: int, length: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        self.target.copy_in(address, place, length)
        return self.note(address, length)

    def copy_out(self, address: int, place: int, length: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        return self.target.copy_out(address, place, length)

    def places(self, address: int, length: int, write: bool, found: Vectors) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        size = found.size
        self.target.places(address, length, write, found)
        # Whoever asked for places to write to writes after this; what is not there is never written.
        return self.note(address, found.size - size) if write else 0

    def spread(self, place: int, length: int, found: Vectors, first: int) -> int:
        """See `GuestMemory`. The record has the pieces since they were asked for."""
        if self.target is None:
            return closed()
        return self.target.spread(place, length, found, first)

    def collect(self, place: int, length: int, found: Vectors, first: int) -> int:
        """See `GuestMemory`."""
        if self.target is None:
            return closed()
        return self.target.collect(place, length, found, first)

    def note(self, address: int, length: int) -> int:
        """Put [address, address + length) into the write record, if there is one."""
        if self._record is not None and self._record.active:
            self._record.add(address, length)
        return 0


def closed() -> int:
    """Raise `MemoryFault` at a closed gate."""
    raise MemoryFault(CLOSED)
