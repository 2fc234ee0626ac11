"""The PCI registers of a function that live in QEMU and do not travel with `migrate`: BARs, command, MSI-X table.

QEMU emulates them for a passthrough function. They are read and written through qtest, as the guest's CPU would do.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from pymodel.spec import pci
from vfu_client.qtest import CONFIG_ADDRESS, CONFIG_DATA, ENABLE, QTest

CONFIG_READ = 256
BAR_FIRST, BAR_LAST = 0x10, 0x24
ROM_ADDRESS = 0x30
COMMAND = 0x04
CACHE_LINE_SIZE = 0x0C
INTERRUPT_LINE = 0x3C


class PciStateError(Exception):
    """The function at the destination is not the one that was read, or its registers do not take the values."""


@dataclass(frozen=True)
class Address:
    """Where a function is on the machine's PCI buses."""

    bus: int
    slot: int
    function: int

    def select(self, offset: int) -> str:
        """The qtest command that selects a register (PCI configuration mechanism 1)."""
        value = ENABLE | self.bus << 16 | self.slot << 11 | self.function << 8 | offset & 0xFC
        return f"outl {CONFIG_ADDRESS:#x} {value:#x}"

    def write(self, offset: int, size: int, value: int) -> list[str]:
        """The qtest commands that write a register."""
        letter = {1: "b", 2: "w", 4: "l"}[size]
        return [self.select(offset), f"out{letter} {CONFIG_DATA + (offset & 3):#x} {value:#x}"]

    def __str__(self) -> str:
        return f"{self.bus:02x}:{self.slot:02x}.{self.function}"


@dataclass(frozen=True)
class PciState:
    """One function's registers: the first 256 bytes of its configuration space, and its MSI-X table in 32-bit words."""

    address: Address
    config: bytes
    table: tuple[int, ...]

    @classmethod
    def read(cls, qtest: QTest, address: Address) -> PciState:
        """Read them; the machine must be stopped. Raises QTestError, PciStateError when no function is there.

        The guest may stand between its own write of the address register and that of the data, so the register
        gets its old value back.
        """
        selected = qtest.run([f"inl {CONFIG_ADDRESS:#x}"])[0]
        commands: list[str] = []
        for offset in range(0, CONFIG_READ, 4):
            commands += [address.select(offset), f"inl {CONFIG_DATA:#x}"]
        commands.append(f"outl {CONFIG_ADDRESS:#x} {selected:#x}")
        config = struct.pack(f"<{CONFIG_READ // 4}I", *qtest.run(commands)[1:-1:2])
        if config[:2] == b"\xff\xff":
            raise PciStateError(f"no function answers at {address}")
        state = cls(address, config, ())
        return cls(address, config, tuple(qtest.run([f"readl {at:#x}" for at in state._table_words()])))

    def write(self, qtest: QTest) -> None:
        """Give the registers to the same function of a machine that is stopped; MSI-X control comes last.

        QEMU then gives the device its interrupts. Raises PciStateError where the function is another one or its
        BARs do not answer where they should, QTestError; some registers are written then.
        """
        address = self.address
        commands = [f"inl {CONFIG_ADDRESS:#x}", address.select(0), f"inl {CONFIG_DATA:#x}"]
        for offset, size in self._plain():
            commands += address.write(offset, size, self.register(offset, size))
        words = self._table_words()
        commands += [f"writel {at:#x} {word:#x}" for at, word in zip(words, self.table, strict=True)]
        checks = [f"readl {at:#x}" for at in words]
        selected, _, identity, *answers = qtest.run(commands + checks)
        try:
            if identity != self.register(0, 4):
                raise PciStateError(
                    f"at {address} is {identity & 0xFFFF:04x}:{identity >> 16:04x}, at the source there was"
                    f" {self.register(0, 2):04x}:{self.register(2, 2):04x}: start the destination with the source's options"
                )
            if words and tuple(answers[-len(words) :]) != self.table:
                raise PciStateError(
                    f"the BARs of {address} do not answer: the bridges above it differ from the source's"
                )
            last: list[str] = []
            for offset, size in self._last():
                last += address.write(offset, size, self.register(offset, size))
            qtest.run(last)
        finally:
            qtest.run([f"outl {CONFIG_ADDRESS:#x} {selected:#x}"])

    def register(self, offset: int, size: int) -> int:
        """A register as it was read; bits that start something are 0."""
        value = int.from_bytes(self.config[offset : offset + size], "little")
        express = self.capability(pci.CAP_ID_EXPRESS)
        if express is not None and offset == express + pci.EXPRESS_DEVCTL:
            value &= ~pci.EXPRESS_DEVCTL_FLR
        return value

    def capability(self, capability_id: int) -> int | None:
        """Where the first capability with that id begins."""
        offset = self.config[0x34] & 0xFC
        for _ in range(CONFIG_READ // 4):
            if not 0x40 <= offset < CONFIG_READ:
                break
            if self.config[offset] == capability_id:
                return offset
            offset = self.config[offset + 1] & 0xFC
        return None

    def _plain(self) -> list[tuple[int, int]]:
        """(offset, size) of what is written before the MSI-X table, in order: the command register opens the BARs."""
        registers = [(offset, 4) for offset in (*range(BAR_FIRST, BAR_LAST + 4, 4), ROM_ADDRESS)]
        registers += [(CACHE_LINE_SIZE, 1), (INTERRUPT_LINE, 1)]
        express = self.capability(pci.CAP_ID_EXPRESS)
        if express is not None:
            registers += [
                (express + at, 2) for at in (pci.EXPRESS_DEVCTL, pci.EXPRESS_LNKCTL, pci.EXPRESS_DEVCTL2)
            ]
        return [*registers, (COMMAND, 2)]

    def _last(self) -> list[tuple[int, int]]:
        """(offset, size) of what is written after the table: MSI-X control, then the power state."""
        registers: list[tuple[int, int]] = []
        msix = self.capability(pci.CAP_ID_MSIX)
        if msix is not None:
            registers.append((msix + pci.MSIX_CONTROL, 2))
        power = self.capability(pci.CAP_ID_PM)
        if power is not None and self.register(power + pci.PM_PMCSR, 2) & pci.PM_STATE_MASK:
            registers.append((power + pci.PM_PMCSR, 2))
        return registers

    def _table_words(self) -> list[int]:
        """The guest addresses of the MSI-X table's words; none while the BARs are closed."""
        msix = self.capability(pci.CAP_ID_MSIX)
        if msix is None or not self.register(COMMAND, 2) & pci.COMMAND_MEMORY:
            return []
        vectors = (self.register(msix + pci.MSIX_CONTROL, 2) & pci.MSIX_MAX_VECTORS - 1) + 1
        table = self.register(msix + pci.MSIX_TABLE, 4)
        bar = BAR_FIRST + 4 * (table & 7)
        base = self.register(bar, 4)
        if base & pci.BAR_MEMORY_64:
            base |= self.register(bar + 4, 4) << 32
        start = (base & ~pci.BAR_FLAGS) + (table & ~7)
        return [start + 4 * word for word in range(vectors * pci.MSIX_ENTRY.itemsize // 4)]
