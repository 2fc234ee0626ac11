"""The virtio structures of a function: where they are, and access to those without a driver's state.

virtio 1.4, "Virtio Structure PCI Capabilities".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pymodel.spec import pci, virtio_pci
from vfu_client.vfio.pci import CapabilityMissingError, PciFunction, field_range
from vfu_client.virtio.common_config import CommonConfig, ConfigStructure

_ATOMIC: Final = 4
"""Bytes of configuration that are read at once."""


class VirtioStructures:
    """Common configuration, device configuration, ISR status, and the window in configuration space.

    Raises `CapabilityMissingError` where one that every device has is missing.
    """

    def __init__(self, function: PciFunction) -> None:
        self.function = function
        self.structures = find_structures(function)
        for kind in (virtio_pci.CAP_COMMON_CFG, virtio_pci.CAP_NOTIFY_CFG, virtio_pci.CAP_ISR_CFG):
            if kind not in self.structures:
                raise CapabilityMissingError(f"no virtio structure of type {kind}")
        self.common = CommonConfig(function, self.structures[virtio_pci.CAP_COMMON_CFG])

    def config_read(self, offset: int, size: int) -> int:
        """A field of the device's own configuration structure."""
        return int.from_bytes(self.config_bytes(offset, size), "little")

    def config_field(self, layout: np.dtype[np.void], name: str) -> bytes:
        """A field of `layout`, in accesses of the width that it has, and all of it of one time.

        Source: virtio 1.4, "Device Configuration Space" and "PCI Device Layout". Raises `LookupError`.
        """
        offset, size = field_range(layout, name)
        kind = layout[name].base
        width = min(kind.itemsize, _ATOMIC) if kind.fields is None else 1
        while True:
            before = self.common.read("config_generation")
            places = range(offset, offset + size, width)
            value = b"".join(self.config_bytes(at, width) for at in places)
            if size <= _ATOMIC or self.common.read("config_generation") == before:
                return value

    def config_bytes(self, offset: int = 0, size: int | None = None) -> bytes:
        """Bytes of the device's own configuration structure; all of it by default. Raises `LookupError`."""
        structure = self.structures[virtio_pci.CAP_DEVICE_CFG]
        count = structure.length - offset if size is None else size
        return self.function.bar_bytes(structure.bar, structure.offset + offset, count)

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write a field of the device's own configuration structure. Raises `LookupError`."""
        structure = self.structures[virtio_pci.CAP_DEVICE_CFG]
        self.function.bar_write(structure.bar, structure.offset + offset, size, value)

    def isr_read(self) -> int:
        """The ISR status; reading clears it."""
        structure = self.structures[virtio_pci.CAP_ISR_CFG]
        return self.function.bar_read(structure.bar, structure.offset, 1)

    def window_read(self, bar: int, offset: int, length: int) -> int:
        """Read a BAR through the PCI_CFG capability. Raises `LookupError` where there is none."""
        data = self._aim(bar, offset, length)
        return self.function.config_read(data, length)

    def window_write(self, bar: int, offset: int, length: int, value: int) -> None:
        """Write a BAR through the PCI_CFG capability. Raises `LookupError` where there is none."""
        data = self._aim(bar, offset, length)
        self.function.config_write(data, length, value)

    def _aim(self, bar: int, offset: int, length: int) -> int:
        """Point the window, and return where in configuration space its data is."""
        capability = self.structures[virtio_pci.CAP_PCI_CFG].capability
        self.function.config_write(capability + virtio_pci.CAP_BAR, 1, bar)
        self.function.config_write(capability + virtio_pci.CAP_OFFSET, 4, offset)
        self.function.config_write(capability + virtio_pci.CAP_LENGTH, 4, length)
        return capability + virtio_pci.CAP_PCI_CFG_DATA


def find_structures(function: PciFunction) -> dict[int, ConfigStructure]:
    """The first structure of each type: the device lists the best one first."""
    found: dict[int, ConfigStructure] = {}
    for capability in function.capabilities():
        if capability.id != pci.CAP_ID_VENDOR:
            continue
        at = capability.offset
        bar = function.config_read(at + virtio_pci.CAP_BAR, 1)
        kind = function.config_read(at + virtio_pci.CAP_CFG_TYPE, 1)
        if bar > 5 or kind in found:
            continue
        offset = function.config_read(at + virtio_pci.CAP_OFFSET, 4)
        length = function.config_read(at + virtio_pci.CAP_LENGTH, 4)
        found[kind] = ConfigStructure(kind, bar, offset, length, at)
    return found
