"""The gate that a function's accesses to guest memory pass, and the record of what it wrote."""

from __future__ import annotations

from pymodel.errors import MemoryFault
from pymodel.memory import Bytes, GuestMemory
from pymodel.migration.record import WriteRecord


class Dma:
    """Guest memory as one function may use it.

    `target` is the client's memory while the gate is open, else None: then every access is a `MemoryFault`,
    whoever asks (DEV-13, DEV-22). The function sets it whenever the gate may have changed.
    """

    def __init__(self, record: WriteRecord | None) -> None:
        self.target: GuestMemory | None = None
        self._record = record

    def _open(self) -> GuestMemory:
        if self.target is None:
            raise MemoryFault("the function may not access memory now")
        return self.target

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        """See `GuestMemory`."""
        views = self._open().view(address, length, write=write)
        if write and self._record is not None and self._record.active:
            self._record.add(address, length)
        return views

    def read(self, address: int, length: int) -> bytes:
        """See `GuestMemory`."""
        return self._open().read(address, length)

    def write(self, address: int, data: bytes) -> None:
        """See `GuestMemory`."""
        self._open().write(address, data)
        if self._record is not None and self._record.active:
            self._record.add(address, len(data))

    def load_u16(self, address: int) -> int:
        """See `GuestMemory`."""
        return self._open().load_u16(address)

    def store_u16(self, address: int, value: int) -> None:
        """See `GuestMemory`."""
        self._open().store_u16(address, value)
        if self._record is not None and self._record.active:
            self._record.add(address, 2)

    def fence(self) -> None:
        """See `GuestMemory`."""
        self._open().fence()
