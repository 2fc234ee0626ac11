"""PCI registers of a function that live in QEMU and do not travel with `migrate`: BARs, command, MSI-X.

QEMU emulates them for a passthrough function. They are read and written through qtest, as by the guest's CPU.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from pymodel.spec import pci
from vfu_client.qemu.address import Address
from vfu_client.qemu.config_space import ConfigSpace
from vfu_client.qemu.qtest import QTest, Step
from vfu_client.vfio.pci import Capability

ROM_ADDRESS = 0x30
COMMAND = 0x04
CACHE_LINE_SIZE = 0x0C
CAPABILITIES = 0x34
INTERRUPT_LINE = 0x3C
BARS = range(pci.BAR_FIRST, pci.BAR_END, 4)
HEADER_WORDS = (
    0,
    COMMAND,
    CACHE_LINE_SIZE,
    *BARS,
    ROM_ADDRESS,
    CAPABILITIES,
    0x3C,
)
FIRST_CAPABILITY = 0x40
CAPABILITY_WORDS = {
    pci.CAP_ID_EXPRESS: (pci.EXPRESS_DEVCTL, pci.EXPRESS_LNKCTL, pci.EXPRESS_DEVCTL2),
    pci.CAP_ID_MSIX: (pci.MSIX_TABLE,),
    pci.CAP_ID_PM: (pci.PM_PMCSR,),
}
"""The words of capabilities that are read besides the first, which has MSI-X control."""


class PciStateError(Exception):
    """The function at the destination is not the one that was read, or does not take its registers."""


class NobodyAnswersError(PciStateError):
    """Nobody serves the function, or none is there."""


def identity(qtest: QTest, space: ConfigSpace, address: Address) -> int:
    """Vendor and device ID, asked of whoever serves the function; all ones where nobody does.

    QEMU keeps no copy of these, so an answer shows that it is still attached to the server. The machine must
    be stopped. Raises QTestError.
    """
    begun, found = qtest.run_steps([space.begin(), space.read(address, 0)])
    qtest.run_steps([space.end(begun)])
    return found


@dataclass(frozen=True)
class PciState:
    """One function's registers: 32-bit words of its configuration space, by offset, and its MSI-X table.

    Not all of it is read, as each read may be a message to the server, and as a read of virtio's PCI_CFG data
    has side effects. `capabilities` says where the first capability of each id begins.
    """

    address: Address
    words: dict[int, int]
    capabilities: dict[int, int]
    table: bytearray

    @classmethod
    def read(
        cls, qtest: QTest, space: ConfigSpace, address: Address, likely: Sequence[Capability] = ()
    ) -> PciState:
        """Read them; the machine must be stopped. Raises QTestError, and NobodyAnswersError.

        Each question takes time, so what is where a function of its kind has its capabilities, `likely`, is
        asked for at once. What is elsewhere is found all the same.
        """
        state = cls(address, {}, {}, bytearray())
        first = {capability.id: capability.offset for capability in reversed(likely)}
        ahead = [*HEADER_WORDS, *(capability.offset for capability in likely), *_wanted(first)]
        begun, *words = qtest.run_steps([space.begin(), *_reads(space, address, ahead)])
        try:
            state.words.update(zip(ahead, words, strict=True))
            state._read_capabilities(qtest, space)
        except BaseException:
            qtest.run_steps([space.end(begun)])
            raise
        place = state._table_place()
        _, table = qtest.run_steps([space.end(begun), _read_memory(*place) if place else ()])
        if place:
            state.table.extend(table.to_bytes(place[1]))
        return state

    def _read_capabilities(self, qtest: QTest, space: ConfigSpace) -> None:
        """Find the capabilities, and read the words that are wanted of them, unless that was done ahead."""
        if self.register(0, 2) == 0xFFFF:
            raise NobodyAnswersError(f"no function answers at {self.address}")
        offset, seen = self.register(CAPABILITIES, 1) & 0xFC, set[int]()
        while offset >= FIRST_CAPABILITY and offset not in seen:
            seen.add(offset)
            self._read_missing(qtest, space, [offset])
            self.capabilities.setdefault(self.register(offset, 1), offset)
            offset = self.register(offset + 1, 1) & 0xFC
        self._read_missing(qtest, space, _wanted(self.capabilities))

    def _read_missing(self, qtest: QTest, space: ConfigSpace, offsets: Sequence[int]) -> None:
        missing = [offset for offset in offsets if offset not in self.words]
        if missing:
            words = qtest.run_steps(_reads(space, self.address, missing))
            self.words.update(zip(missing, words, strict=True))

    def write(self, qtest: QTest, space: ConfigSpace) -> None:
        """Give the registers to the same function of a machine that is stopped; MSI-X control comes last.

        QEMU then gives the device its interrupts. Raises PciStateError where the function is another one or
        its BARs do not answer where they should, QTestError; some registers are written then.
        """
        address = self.address
        plain = self._writes(space, self._plain())
        place = self._table_place()
        begun, identity, *answers, table = qtest.run_steps(
            [
                space.begin(),
                space.read(address, 0),
                *plain,
                *_reads(space, address, BARS),
                (_write_memory(place[0], self.table), *_read_memory(*place)) if place else (),
            ]
        )
        last: list[Step] = []
        try:
            if identity != self.register(0, 4):
                expected = f"{self.register(0, 2):04x}:{self.register(2, 2):04x}"
                raise PciStateError(
                    f"at {address} is {identity & 0xFFFF:04x}:{identity >> 16:04x}, at the source there was"
                    f" {expected}: start the destination with the source's options"
                )
            bars = answers[len(plain) :]
            if any(bar != self.words[offset] for offset, bar in zip(BARS, bars, strict=True)):
                raise PciStateError(
                    f"the function at {address} has other BARs than at the source: start both servers with"
                    " the same options (--legacy)"
                )
            if place and table.to_bytes(place[1]) != self.table:
                raise PciStateError(
                    f"the BARs of {address} do not answer: the bridges above it differ from the source's"
                )
            last = self._writes(space, self._last())
        finally:
            qtest.run_steps([*last, space.end(begun)])

    def _writes(self, space: ConfigSpace, registers: Iterable[tuple[int, int]]) -> list[Step]:
        """What gives registers, each (offset, size), their values."""
        return [
            space.write(self.address, offset, size, self.register(offset, size)) for offset, size in registers
        ]

    def register(self, offset: int, size: int) -> int:
        """A register as it was read; bits that start something are 0."""
        value = self.words[offset & ~3] >> 8 * (offset & 3) & (1 << 8 * size) - 1
        express = self.capabilities.get(pci.CAP_ID_EXPRESS)
        if express is not None and offset == express + pci.EXPRESS_DEVCTL:
            value &= ~pci.EXPRESS_DEVCTL_FLR
        return value

    def _plain(self) -> list[tuple[int, int]]:
        """(offset, size) of what is written before the MSI-X table, in order: the command register opens the
        BARs.
        """
        registers = [(offset, 4) for offset in (*BARS, ROM_ADDRESS)]
        registers += [(CACHE_LINE_SIZE, 1), (INTERRUPT_LINE, 1)]
        express = self.capabilities.get(pci.CAP_ID_EXPRESS)
        if express is not None:
            registers += [
                (express + at, 2) for at in (pci.EXPRESS_DEVCTL, pci.EXPRESS_LNKCTL, pci.EXPRESS_DEVCTL2)
            ]
        return [*registers, (COMMAND, 2)]

    def _last(self) -> list[tuple[int, int]]:
        """(offset, size) of what is written after the table: MSI-X control, then the power state."""
        registers: list[tuple[int, int]] = []
        msix = self.capabilities.get(pci.CAP_ID_MSIX)
        if msix is not None:
            registers.append((msix + pci.MSIX_CONTROL, 2))
        power = self.capabilities.get(pci.CAP_ID_PM)
        if power is not None and self.register(power + pci.PM_PMCSR, 2) & pci.PM_STATE_MASK:
            registers.append((power + pci.PM_PMCSR, 2))
        return registers

    def _table_place(self) -> tuple[int, int] | None:
        """The guest address of the MSI-X table and its bytes; None while the BARs are closed."""
        msix = self.capabilities.get(pci.CAP_ID_MSIX)
        if msix is None or not self.register(COMMAND, 2) & pci.COMMAND_MEMORY:
            return None
        vectors = (self.register(msix + pci.MSIX_CONTROL, 2) & pci.MSIX_MAX_VECTORS - 1) + 1
        table = self.register(msix + pci.MSIX_TABLE, 4)
        bar = pci.BAR_FIRST + 4 * (table & 7)
        base = self.register(bar, 4)
        if base & pci.BAR_MEMORY_64:
            base |= self.register(bar + 4, 4) << 32
        return (base & ~pci.BAR_FLAGS) + (table & ~7), vectors * pci.MSIX_ENTRY.itemsize


def _wanted(capabilities: Mapping[int, int]) -> list[int]:
    """The offsets of `CAPABILITY_WORDS`, where these capabilities are."""
    return [
        capabilities[capability] + at
        for capability, offsets in CAPABILITY_WORDS.items()
        for at in offsets
        if capability in capabilities
    ]


def _reads(space: ConfigSpace, address: Address, offsets: Iterable[int]) -> list[Step]:
    """What reads words of configuration space."""
    return [space.read(address, offset) for offset in offsets]


def _read_memory(address: int, size: int) -> Step:
    return (f"read {address:#x} {size:#x}",)


def _write_memory(address: int, data: bytearray) -> str:
    return f"write {address:#x} {len(data):#x} 0x{data.hex()}"
