"""A PCI function seen through its vfio-user regions: configuration space, BARs, FLR, power states."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pymodel.spec import pci
from vfu_client.vfio import protocol
from vfu_client.vfio.connection import Connection


class CapabilityMissingError(LookupError):
    """The function does not have a capability that the driver needs."""


@dataclass(frozen=True)
class Capability:
    """One capability: its id and where in configuration space it begins."""

    id: int
    offset: int


@dataclass(frozen=True)
class Bar:
    """One base address register, as sizing shows it."""

    index: int
    size: int
    address: int
    is_64bit: bool
    prefetchable: bool


def field_range(layout: np.dtype[np.void], name: str) -> tuple[int, int]:
    """Offset and size of a field of a structure. Raises `KeyError` for a name that it does not have."""
    fields = layout.fields
    if fields is None:
        raise KeyError(name)
    kind, offset = fields[name][:2]
    return offset, kind.itemsize


class PciFunction:
    """The driver's access to one PCI function. Keeps no copy of any register."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    # Configuration space.

    def config_read(self, offset: int, size: int) -> int:
        """A register of 1, 2 or 4 bytes."""
        return int.from_bytes(self.config_bytes(offset, size), "little")

    def config_write(self, offset: int, size: int, value: int) -> None:
        """Write a register of 1, 2 or 4 bytes; waits for the server's answer."""
        data = value.to_bytes(size, "little")
        self.connection.region_write(protocol.REGION_CONFIG, offset, data, posted=False)

    def config_bytes(self, offset: int = 0, size: int = pci.CONFIG_SIZE) -> bytes:
        """A piece of configuration space; all of it by default.

        In two accesses where it is on both sides of 100h: a PF shows less to who reads that at once.
        """
        first = min(max(pci.EXTENDED_START - offset, 0), size)
        pieces = ((offset, first), (offset + first, size - first))
        return b"".join(
            self.connection.region_read(protocol.REGION_CONFIG, at, length) for at, length in pieces if length
        )

    def header(self, name: str) -> int:
        """A field of the header, by its name in `pymodel.spec.pci.HEADER`."""
        return self.config_read(*field_range(pci.HEADER, name))

    def set_command(self, bits: int) -> None:
        """Set bits of the command register, and leave the others."""
        offset, size = field_range(pci.HEADER, "command")
        self.config_write(offset, size, self.config_read(offset, size) | bits)

    def clear_command(self, bits: int) -> None:
        """Clear bits of the command register, and leave the others."""
        offset, size = field_range(pci.HEADER, "command")
        self.config_write(offset, size, self.config_read(offset, size) & ~bits)

    # Capabilities.

    def capabilities(self) -> list[Capability]:
        """The list of capabilities, in order. Raises `ValueError` on a list that loops."""
        if not self.header("status") & pci.STATUS_CAP_LIST:
            return []
        found: list[Capability] = []
        offset = self.header("capabilities") & 0xFC
        while offset:
            if offset < pci.HEADER.itemsize or any(known.offset == offset for known in found):
                raise ValueError(f"broken capability list at {offset:#x}")
            id_and_next = self.config_read(offset, 2)
            found.append(Capability(id_and_next & 0xFF, offset))
            offset = id_and_next >> 8 & 0xFC
        return found

    def extended_capabilities(self) -> list[Capability]:
        """The list of extended capabilities, in order. Raises `ValueError` as `capabilities` does."""
        found: list[Capability] = []
        offset = pci.EXTENDED_START
        while offset:
            if offset < pci.EXTENDED_START or any(known.offset == offset for known in found):
                raise ValueError(f"broken extended capability list at {offset:#x}")
            header = self.config_read(offset, 4)
            if header & 0xFFFF:
                found.append(Capability(header & 0xFFFF, offset))
            offset = header >> 20 & 0xFFC
        return found

    def find_capability(self, capability_id: int) -> int:
        """Offset of the first capability with that id; raises `CapabilityMissingError`."""
        for capability in self.capabilities():
            if capability.id == capability_id:
                return capability.offset
        raise CapabilityMissingError(f"no capability {capability_id:#x}")

    def find_extended(self, capability_id: int) -> int:
        """Offset of the first extended capability with that id; raises `CapabilityMissingError`."""
        for capability in self.extended_capabilities():
            if capability.id == capability_id:
                return capability.offset
        raise CapabilityMissingError(f"no extended capability {capability_id:#x}")

    # BARs.

    def bars(self) -> list[Bar]:
        """Every implemented BAR, sized by writing all ones; the registers get their old values back."""
        found: list[Bar] = []
        base, _ = field_range(pci.HEADER, "bar")
        index = 0
        while index < 6:
            low, low_mask = self._size_register(base + 4 * index)
            flags = low_mask & pci.BAR_FLAGS
            wide = bool(flags & pci.BAR_MEMORY_64)
            address, mask = low & ~pci.BAR_FLAGS, low_mask & ~pci.BAR_FLAGS
            if wide:
                high, high_mask = self._size_register(base + 4 * (index + 1))
                address, mask = address | high << 32, mask | high_mask << 32
            if mask:
                size = mask & -mask
                found.append(Bar(index, size, address, wide, bool(flags & pci.BAR_PREFETCH)))
            index += 2 if wide else 1
        return found

    def _size_register(self, offset: int) -> tuple[int, int]:
        """The value of a BAR register, and what it reads after all ones."""
        value = self.config_read(offset, 4)
        self.config_write(offset, 4, 0xFFFF_FFFF)
        mask = self.config_read(offset, 4)
        self.config_write(offset, 4, value)
        return value, mask

    def bar_read(self, bar: int, offset: int, size: int) -> int:
        """A little-endian integer of a BAR, in one access."""
        return int.from_bytes(self.bar_bytes(bar, offset, size), "little")

    def bar_bytes(self, bar: int, offset: int, size: int) -> bytes:
        """Bytes of a BAR, in one access."""
        return self.connection.region_read(protocol.REGION_BAR0 + bar, offset, size)

    def bar_write(self, bar: int, offset: int, size: int, value: int, *, posted: bool | None = None) -> None:
        """Write a little-endian integer to a BAR, in one access."""
        data = value.to_bytes(size, "little")
        self.connection.region_write(protocol.REGION_BAR0 + bar, offset, data, posted=posted)

    # Reset and power.

    def flr(self) -> None:
        """Start a function level reset; the device may still be at it when this returns.

        Raises `CapabilityMissingError` where the function announces none.
        """
        express = self.find_capability(pci.CAP_ID_EXPRESS)
        if not self.config_read(express + pci.EXPRESS_DEVCAP, 4) & pci.EXPRESS_DEVCAP_FLR:
            raise CapabilityMissingError("function level reset is not announced")
        control = self.config_read(express + pci.EXPRESS_DEVCTL, 2)
        self.config_write(express + pci.EXPRESS_DEVCTL, 2, control | pci.EXPRESS_DEVCTL_FLR)

    @property
    def power_state(self) -> int:
        """0 for D0 ... 3 for D3hot."""
        return self.config_read(self._pmcsr(), 2) & pci.PM_STATE_MASK

    def set_power_state(self, state: int) -> None:
        """Ask for a power state; the device may still be on its way when this returns."""
        offset = self._pmcsr()
        value = self.config_read(offset, 2)
        self.config_write(offset, 2, value & ~pci.PM_STATE_MASK | state)

    def _pmcsr(self) -> int:
        return self.find_capability(pci.CAP_ID_PM) + pci.PM_PMCSR
