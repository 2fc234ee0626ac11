"""The common configuration structure of virtio over PCI, field by field."""

from __future__ import annotations

from dataclasses import dataclass

from pymodel.spec import virtio_pci
from vfu_client.vfio.pci import PciFunction, field_range


@dataclass(frozen=True)
class ConfigStructure:
    """Where a virtio structure is, as one virtio capability tells it."""

    kind: int
    bar: int
    offset: int
    length: int
    capability: int


class CommonConfig:
    """Named access in the width that virtio prescribes: 64-bit fields as two 32-bit halves, low first.

    Source: virtio 1.4, "Common configuration structure layout" and "General driver requirements".
    """

    def __init__(self, function: PciFunction, structure: ConfigStructure) -> None:
        self._function = function
        self.structure = structure

    def read(self, name: str) -> int:
        """A field, by its name in `pymodel.spec.virtio_pci.COMMON_CFG`."""
        offset, size = field_range(virtio_pci.COMMON_CFG, name)
        if size == 8:
            return self.raw_read(offset, 4) | self.raw_read(offset + 4, 4) << 32
        return self.raw_read(offset, size)

    def write(self, name: str, value: int, *, posted: bool | None = None) -> None:
        """Write a field, by its name in `pymodel.spec.virtio_pci.COMMON_CFG`."""
        offset, size = field_range(virtio_pci.COMMON_CFG, name)
        if size == 8:
            self.raw_write(offset, 4, value & 0xFFFF_FFFF, posted=posted)
            self.raw_write(offset + 4, 4, value >> 32, posted=posted)
        else:
            self.raw_write(offset, size, value, posted=posted)

    def has(self, name: str) -> bool:
        """Whether the structure is long enough to have the field."""
        offset, size = field_range(virtio_pci.COMMON_CFG, name)
        return offset + size <= self.structure.length

    def raw_read(self, offset: int, size: int) -> int:
        """Any access, for tests of those that a driver must not make."""
        return self._function.bar_read(self.structure.bar, self.structure.offset + offset, size)

    def raw_write(self, offset: int, size: int, value: int, *, posted: bool | None = None) -> None:
        """Any access, for tests of those that a driver must not make."""
        at = self.structure.offset + offset
        self._function.bar_write(self.structure.bar, at, size, value, posted=posted)

    def features(self, name: str = "device_feature") -> int:
        """All 128 feature bits that the device offers, or with `driver_feature` those it was given."""
        bits = 0
        for word in range(4):
            self.write(f"{name}_select", word)
            bits |= self.read(name) << 32 * word
        return bits

    def accept(self, features: int) -> None:
        """Write the driver's feature bits; words that no known bit is in are written too, as 0."""
        for word in range(4):
            self.write("driver_feature_select", word)
            self.write("driver_feature", features >> 32 * word & 0xFFFF_FFFF)
