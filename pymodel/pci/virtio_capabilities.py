"""The five virtio capabilities. virtio 1.4, "Virtio Structure PCI Capabilities"."""

from __future__ import annotations

from typing import Protocol

from pymodel.registers import Register
from pymodel.spec import pci, virtio_pci


class VirtioCapability:
    """Says where in a BAR one of the virtio structures lies. `multiplier` is that of the notify structure."""

    id = pci.CAP_ID_VENDOR

    def __init__(
        self, name: str, cfg_type: int, bar: int, offset: int, length: int, multiplier: int | None = None
    ) -> None:
        self.name = name
        self.size = virtio_pci.CAP_SIZE if multiplier is None else virtio_pci.CAP_NOTIFY_SIZE
        self.registers: tuple[Register, ...] = (
            Register("cap_len", virtio_pci.CAP_LEN, 1, self.size),
            Register("cfg_type", virtio_pci.CAP_CFG_TYPE, 1, cfg_type),
            Register("bar", virtio_pci.CAP_BAR, 1, bar),
            Register("id_of_cap", virtio_pci.CAP_ID, 1),
            Register("offset", virtio_pci.CAP_OFFSET, 4, offset),
            Register("length", virtio_pci.CAP_LENGTH, 4, length),
        )
        if multiplier is not None:
            self.registers += (Register("multiplier", virtio_pci.CAP_NOTIFY_MULTIPLIER, 4, multiplier),)


class Bars(Protocol):
    """The BARs behind the window."""

    bars: dict[int, int]

    def window_write(self) -> bool:
        """Whether a write to the capability is taken: not in Freeze (DEV-27)."""
        ...

    def bar_read(self, bar: int, offset: int, length: int) -> bytes:
        """Read a BAR."""
        ...

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Write a BAR."""
        ...


class PciCfgCapability:
    """A window on the BARs for those who can only reach configuration space ("PCI configuration access
    capability"). A window that does not fit its BAR reads 0 and takes no write.
    """

    id = pci.CAP_ID_VENDOR
    name = "pci_cfg"
    size = virtio_pci.CAP_PCI_CFG_SIZE
    registers = (
        Register("cap_len", virtio_pci.CAP_LEN, 1, size),
        Register("cfg_type", virtio_pci.CAP_CFG_TYPE, 1, virtio_pci.CAP_PCI_CFG),
        Register("bar", virtio_pci.CAP_BAR, 1),
        Register("id_of_cap", virtio_pci.CAP_ID, 1),
        Register("offset", virtio_pci.CAP_OFFSET, 4),
        Register("length", virtio_pci.CAP_LENGTH, 4),
        Register("data", virtio_pci.CAP_PCI_CFG_DATA, 4, window=True),
    )

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self.reset()

    def reset(self) -> None:
        """A window of no length."""
        self._bar = 0
        self._offset = 0
        self._length = 0

    @property
    def place(self) -> tuple[int, int, int]:
        """BAR, offset and length of the window."""
        return self._bar, self._offset, self._length

    @property
    def _fits(self) -> bool:
        return (
            self._length in (1, 2, 4)
            and self._offset % self._length == 0
            and self._offset + self._length <= self._bars.bars.get(self._bar, 0)
        )

    def read_bar(self) -> int:
        return self._bar

    def write_bar(self, value: int) -> None:
        if self._bars.window_write():
            self._bar = value

    def read_offset(self) -> int:
        return self._offset

    def write_offset(self, value: int) -> None:
        if self._bars.window_write():
            self._offset = value

    def read_length(self) -> int:
        return self._length

    def write_length(self, value: int) -> None:
        if self._bars.window_write():
            self._length = value

    def read_data(self) -> int:
        """Read the BAR, side effects and all."""
        if not self._fits:
            return 0
        return int.from_bytes(self._bars.bar_read(self._bar, self._offset, self._length), "little")

    def write_data(self, value: int) -> None:
        """Write the first `length` bytes to the BAR."""
        if self._bars.window_write() and self._fits:
            data = value.to_bytes(4, "little")[: self._length]
            self._bars.bar_write(self._bar, self._offset, data)
