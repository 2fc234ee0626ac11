"""Two ways to a machine's PCI configuration space, as steps of qtest: a PC's ports, and memory (ECAM)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Protocol

from pymodel.spec import pci
from vfu_client.qemu.address import Address
from vfu_client.qemu.qtest import Step

CONFIG_ADDRESS: Final = 0xCF8
CONFIG_DATA: Final = 0xCFC
ENABLE: Final = 1 << 31

LETTERS: Final = {1: "b", 2: "w", 4: "l"}
"""What a command's name ends with, by the bytes of the access."""


class ConfigSpace(Protocol):
    """A way; offsets and sizes in bytes.

    The guest may stand between two accesses of its own: what is done for others stands between `begin` and
    `end`, which is given the value of `begin`.
    """

    def begin(self) -> Step:
        """Take down what `end` gives back."""

    def read(self, address: Address, offset: int) -> Step:
        """Read the 32-bit word that has this offset in it."""

    def write(self, address: Address, offset: int, size: int, value: int) -> Step:
        """Write a register of 1, 2 or 4 bytes."""

    def end(self, begun: int) -> Step:
        """Give the guest back what it had."""


class Ports:
    """A PC's: one selects a register, which the other then reads or writes (configuration mechanism 1)."""

    def begin(self) -> Step:
        return (f"inl {CONFIG_ADDRESS:#x}",)

    def read(self, address: Address, offset: int) -> Step:
        return (self._select(address, offset), f"inl {CONFIG_DATA:#x}")

    def write(self, address: Address, offset: int, size: int, value: int) -> Step:
        data = CONFIG_DATA + (offset & 3)
        return (self._select(address, offset), f"out{LETTERS[size]} {data:#x} {value:#x}")

    def end(self, begun: int) -> Step:
        return (f"outl {CONFIG_ADDRESS:#x} {begun:#x}",)

    def _select(self, address: Address, offset: int) -> str:
        return f"outl {CONFIG_ADDRESS:#x} {selected(address, offset):#x}"


@dataclass(frozen=True)
class Ecam:
    """Memory at `base`, in which each function has 4 KiB: each access is one of its own."""

    base: int

    def begin(self) -> Step:
        return ()

    def read(self, address: Address, offset: int) -> Step:
        return (f"readl {self._place(address, offset & ~3):#x}",)

    def write(self, address: Address, offset: int, size: int, value: int) -> Step:
        return (f"write{LETTERS[size]} {self._place(address, offset):#x} {value:#x}",)

    def end(self, _begun: int) -> Step:
        return ()

    def _place(self, address: Address, offset: int) -> int:
        function = (address.slot << 3 | address.function) << pci.ECAM_FUNCTION_SHIFT
        return self.base + (address.bus << pci.ECAM_BUS_SHIFT | function | offset)


def selected(address: Address, offset: int) -> int:
    """What a PC's address port is given to select a register."""
    return ENABLE | address.bus << 16 | address.slot << 11 | address.function << 8 | offset & 0xFC
