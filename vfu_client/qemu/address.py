"""Where a function is on a machine's PCI buses, and its registers as qtest commands reach them."""

from __future__ import annotations

from dataclasses import dataclass

from vfu_client.qemu.qtest import CONFIG_ADDRESS, CONFIG_DATA, ENABLE


@dataclass(frozen=True)
class Address:
    """Where a function is on the machine's PCI buses."""

    bus: int
    slot: int
    function: int

    def selected(self, offset: int) -> int:
        """What selects a register (PCI configuration mechanism 1)."""
        return ENABLE | self.bus << 16 | self.slot << 11 | self.function << 8 | offset & 0xFC

    def select(self, offset: int) -> str:
        """The qtest command that selects a register."""
        return f"outl {CONFIG_ADDRESS:#x} {self.selected(offset):#x}"

    def write(self, offset: int, size: int, value: int) -> list[str]:
        """The qtest commands that write a register."""
        letter = {1: "b", 2: "w", 4: "l"}[size]
        return [self.select(offset), f"out{letter} {CONFIG_DATA + (offset & 3):#x} {value:#x}"]

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.slot:02x}.{self.function}"
