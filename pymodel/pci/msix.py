"""MSI-X: capability, table, pending bits.

The pending bits are not stored: a vector is pending while an event that is mapped to it is owed
(requirements.md A-21), so they cannot disagree with what will be sent.
"""

from __future__ import annotations

from collections.abc import Callable

from pymodel.registers import Register, RegisterFile
from pymodel.spec import pci

_PAGE = 4096


class MsiX:
    """`vectors` entries in BAR `bar`: the table at 0, the pending bits a page or more behind.

    `changed` is called when a message may have become deliverable; `pending` tells the vectors owed.
    """

    id = pci.CAP_ID_MSIX
    name = "msix"
    size = pci.MSIX_SIZE

    def __init__(
        self, vectors: int, bar: int, changed: Callable[[], None], pending: Callable[[], set[int]]
    ) -> None:
        if not 0 < vectors <= pci.MSIX_MAX_VECTORS:
            raise ValueError(f"{vectors} MSI-X vectors; 1 to {pci.MSIX_MAX_VECTORS} are possible")
        self.vectors = vectors
        self.bar = bar
        self._changed = changed
        self._pending = pending
        self._table_size = vectors * pci.MSIX_ENTRY.itemsize
        self._pba_at = -(-self._table_size // _PAGE) * _PAGE
        self.bar_size = 1 << (self._pba_at + _PAGE - 1).bit_length()
        self.registers = (
            Register("control", pci.MSIX_CONTROL, 2),
            Register("table", pci.MSIX_TABLE, 4, bar),
            Register("pba", pci.MSIX_PBA, 4, self._pba_at | bar),
        )
        self._control = 0
        self._entries = RegisterFile(self._table_size)
        for index in range(vectors):
            base = index * pci.MSIX_ENTRY.itemsize
            self._entries.place(
                base,
                (
                    Register("address_low", 0, 4, 0, 0xFFFFFFFC),
                    Register("address_high", 4, 4, 0, 0xFFFFFFFF),
                    Register("data", 8, 4, 0, 0xFFFFFFFF),
                    # Reset to unmasked: QEMU keeps the table to itself and never writes this one.
                    Register("control", 12, 4, 0, pci.MSIX_ENTRY_MASKED),
                ),
                prefix=f"{index}.",
            )

    def reset(self) -> None:
        """MSI-X off, every entry unmasked and empty."""
        self._control = 0
        self._entries.reset()

    @property
    def enabled(self) -> bool:
        """Whether the driver turned MSI-X on."""
        return bool(self._control & pci.MSIX_CONTROL_ENABLE)

    def masked(self, vector: int) -> bool:
        """Whether the vector, or the whole function, is masked."""
        if self._control & pci.MSIX_CONTROL_MASK_ALL:
            return True
        return bool(self._entries[f"{vector}.control"] & pci.MSIX_ENTRY_MASKED)

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
            return self._entries.read(offset, length)
        bits = sum(1 << vector for vector in self._pending())
        pba = bits.to_bytes(-(-self.vectors // 64) * 8, "little")
        start = offset - self._pba_at
        return pba[start : start + length].ljust(length, b"\0")

    def bar_write(self, offset: int, data: bytes) -> None:
        """Write the table; the pending bits are read-only."""
        self._entries.write(offset, data)
        self._changed()
