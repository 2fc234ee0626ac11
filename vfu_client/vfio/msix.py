"""MSI-X of one function: the table in its BAR, and eventfds for the vectors that are used."""

from __future__ import annotations

from pymodel.spec import pci
from vfu_client.vfio import protocol
from vfu_client.vfio.interrupt import Interrupt
from vfu_client.vfio.pci import PciFunction, field_range

# A message needs an address and a value; with eventfds in place nobody looks at them.
MESSAGE_ADDRESS = 0xFEE0_0000


class Msix:
    """The MSI-X capability of a function. Raises `CapabilityMissingError` where there is none.

    The eventfds stay alive until `close`; FLR and device resets make `enable` necessary again.
    """

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self.offset = function.find_capability(pci.CAP_ID_MSIX)
        self.vectors = (self.control & pci.MSIX_MAX_VECTORS - 1) + 1
        table = function.config_read(self.offset + pci.MSIX_TABLE, 4)
        pending = function.config_read(self.offset + pci.MSIX_PBA, 4)
        self._table_bar, self._table_offset = table & 7, table & ~7
        self._pba_bar, self._pba_offset = pending & 7, pending & ~7
        self.interrupts: list[Interrupt] = []

    @property
    def control(self) -> int:
        """The message control register."""
        return self._function.config_read(self.offset + pci.MSIX_CONTROL, 2)

    @control.setter
    def control(self, value: int) -> None:
        self._function.config_write(self.offset + pci.MSIX_CONTROL, 2, value)

    def enable(self, vectors: int) -> None:
        """Write so many table entries, as far as there are, unmasked; hand over an eventfd for each, and
        switch MSI-X on.
        """
        vectors = min(vectors, self.vectors)
        while len(self.interrupts) < vectors:
            self.interrupts.append(Interrupt(self._function.connection))
        for vector in range(vectors):
            self.write_entry(vector, MESSAGE_ADDRESS, vector)
        fds = [interrupt.fileno() for interrupt in self.interrupts]
        self._function.connection.set_eventfds(protocol.IRQ_MSIX, 0, fds)
        self.control = self.control & ~pci.MSIX_CONTROL_MASK_ALL | pci.MSIX_CONTROL_ENABLE

    def disable(self) -> None:
        """Switch MSI-X off and take the eventfds back from the server."""
        self.control &= ~pci.MSIX_CONTROL_ENABLE
        self._function.connection.disable_irqs(protocol.IRQ_MSIX)

    def write_entry(self, vector: int, address: int, data: int, control: int = 0) -> None:
        """Write one entry of the table in 32-bit accesses, the mask bit last."""
        words = (address & 0xFFFF_FFFF, address >> 32, data, control)
        for at, word in enumerate(words):
            offset = self._table_offset + vector * pci.MSIX_ENTRY.itemsize + 4 * at
            self._function.bar_write(self._table_bar, offset, 4, word)

    def read_entry(self, vector: int) -> tuple[int, int, int]:
        """(address, data, control) of one entry of the table."""
        raw = b"".join(
            self._function.bar_bytes(
                self._table_bar, self._table_offset + vector * pci.MSIX_ENTRY.itemsize + 4 * at, 4
            )
            for at in range(4)
        )
        word = int.from_bytes(raw, "little")
        return word & (1 << 64) - 1, word >> 64 & 0xFFFF_FFFF, word >> 96

    def mask(self, vector: int, masked: bool = True) -> None:
        """Set or clear a vector's mask bit."""
        self._function.bar_write(
            self._table_bar, self._control_offset(vector), 4, pci.MSIX_ENTRY_MASKED if masked else 0
        )

    def masked(self, vector: int) -> bool:
        """A vector's mask bit."""
        word = self._function.bar_read(self._table_bar, self._control_offset(vector), 4)
        return bool(word & pci.MSIX_ENTRY_MASKED)

    def pending(self, vector: int) -> bool:
        """A vector's bit in the pending-bit array."""
        word = self._function.bar_read(self._pba_bar, self._pba_offset + vector // 32 * 4, 4)
        return bool(word >> vector % 32 & 1)

    def close(self) -> None:
        """Close the eventfds."""
        for interrupt in self.interrupts:
            interrupt.close()
        self.interrupts.clear()

    def _control_offset(self, vector: int) -> int:
        at, _ = field_range(pci.MSIX_ENTRY, "control")
        return self._table_offset + vector * pci.MSIX_ENTRY.itemsize + at
