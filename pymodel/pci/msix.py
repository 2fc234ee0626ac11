"""MSI-X: capability, table, pending bits.

The pending bits are not stored: a vector is pending while an event that is mapped to it is owed
(requirements.md A-21), so they cannot disagree with what will be sent.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np

from pymodel.registers import Register
from pymodel.spec import pci

_PAGE: Final = 4096
_ENTRY_SIZE: Final = pci.MSIX_ENTRY.itemsize
_ENTRIES_OF_A_PAGE: Final = _PAGE // _ENTRY_SIZE
# What a driver may write of an entry.
_WRITABLE: Final = np.array(
    ((1 << 64) - 1 & ~pci.MSIX_ADDRESS_RESERVED, 0xFFFFFFFF, pci.MSIX_ENTRY_MASKED), pci.MSIX_ENTRY
).tobytes()


class MsiX:
    """Vectors in BAR `bar`: the table at 0, the pending bits in a page of their own behind it.

    There are `least` vectors, and as many more as fill the table's pages: a QEMU that has the function by
    vfio-pci emulates the table and maps the rest of its BAR, and cannot migrate a mapping of half a page.
    `changed` is called when a message may have become deliverable; `pending` tells the vectors owed.
    """

    id = pci.CAP_ID_MSIX
    name = "msix"
    size = pci.MSIX_SIZE

    def __init__(
        self, least: int, bar: int, changed: Callable[[], None], pending: Callable[[], set[int]]
    ) -> None:
        if not 0 < least <= pci.MSIX_MAX_VECTORS:
            raise ValueError(f"{least} MSI-X vectors; 1 to {pci.MSIX_MAX_VECTORS} are possible")
        self.vectors = -(-least // _ENTRIES_OF_A_PAGE) * _ENTRIES_OF_A_PAGE
        self.bar = bar
        self._changed = changed
        self._pending = pending
        self._pba_at = self.vectors * _ENTRY_SIZE
        self.bar_size = 1 << (self._pba_at + _PAGE - 1).bit_length()
        self.registers = (
            Register("control", pci.MSIX_CONTROL, 2),
            Register("table", pci.MSIX_TABLE, 4, bar),
            Register("pba", pci.MSIX_PBA, 4, self._pba_at | bar),
        )
        self.reset()

    def reset(self) -> None:
        """MSI-X off, every entry empty and unmasked: QEMU keeps the table to itself and writes none of it."""
        self._control = 0
        self._table = bytearray(self._pba_at)

    @property
    def enabled(self) -> bool:
        """Whether the driver turned MSI-X on."""
        return bool(self._control & pci.MSIX_CONTROL_ENABLE)

    def masked(self, vector: int) -> bool:
        """Whether the vector, or the whole function, is masked."""
        if self._control & pci.MSIX_CONTROL_MASK_ALL:
            return True
        return bool(self._table[vector * _ENTRY_SIZE + pci.MSIX_ENTRY_CONTROL] & pci.MSIX_ENTRY_MASKED)

    def read_control(self) -> int:
        """Table size - 1, function mask, enable."""
        return self._control | (self.vectors - 1)

    def write_control(self, value: int) -> None:
        """Take enable and function mask; what was pending may go out."""
        self._control = value & (pci.MSIX_CONTROL_ENABLE | pci.MSIX_CONTROL_MASK_ALL)
        self._changed()

    def bar_read(self, offset: int, length: int) -> bytes:
        """Read the table or the pending bits; the rest of the BAR is 0."""
        if offset < self._pba_at:
            return bytes(self._table[offset : offset + length]).ljust(length, b"\0")
        bits = sum(1 << vector for vector in self._pending())
        pba = bits.to_bytes(self.vectors // 8, "little")
        start = offset - self._pba_at
        return pba[start : start + length].ljust(length, b"\0")

    def bar_write(self, offset: int, data: bytes) -> None:
        """Write the table; the pending bits are read-only."""
        for at, byte in enumerate(data[: max(self._pba_at - offset, 0)], offset):
            self._table[at] = byte & _WRITABLE[at % _ENTRY_SIZE]
        self._changed()
