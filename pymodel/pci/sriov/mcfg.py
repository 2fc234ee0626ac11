"""Finds ECAM, the memory-mapped configuration space, in a guest: by its ACPI table MCFG, never by a guess."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pymodel.errors import MemoryFault
from pymodel.pci.dma import Dma
from pymodel.spec import acpi, pci

_LOW_MEMORY: Final = 1 << 32
_PIECE: Final = 1 << 20
_AT_ONCE: Final = 16
"""Pieces and tables that a step looks at."""

_TABLE_MAX: Final = 1 << 16
"""Bytes of a table, which are added up."""

_TABLES_MAX: Final = 4096
"""Tables, and what only begins like one: a guest has some dozens, unless it means harm."""

_ALL_BUSES: Final = (0, 0, 255)
"""PCI segment, first and last bus."""

ADDRESSES: Final = 1 << 64


class McfgSearch:
    """A search through the memory of a guest, some megabytes with each `step`.

    `found` has the addresses of ECAM, those of bus 0, of all tables that were found. They are of one machine,
    so what they say is known only where they all say the same.
    """

    def __init__(self, memory: Dma) -> None:
        self._memory = memory
        self._tables = 0
        self._search = self._look()
        self.done = False
        self.found: set[int] = set()

    def step(self) -> None:
        """Look at some more; `done` when there is no more. Raises nothing for what a guest may have there."""
        for count, _ in enumerate(self._search, 1):
            if self._tables > _TABLES_MAX:
                # What was not looked at may say something else.
                self.found.clear()
                break
            if count == _AT_ONCE:
                return
        self.done = True

    def _look(self) -> Iterator[None]:
        """All that there is to look at; each turn is a piece of memory or a table."""
        yield from self._named_by_bios()
        if self.found:
            return
        for start in range(_LOW_MEMORY - _PIECE, -1, -_PIECE):
            try:
                piece = self._memory.read(start, _PIECE)
            except MemoryFault:
                continue
            at = piece.find(acpi.MCFG_SIGNATURE)
            while at != -1:
                self._add(start + at)
                yield
                at = piece.find(acpi.MCFG_SIGNATURE, at + 1)
            yield

    @property
    def base(self) -> int | None:
        """The address of ECAM, where the search is done and found one only."""
        return next(iter(self.found)) if self.done and len(self.found) == 1 else None

    def _named_by_bios(self) -> Iterator[None]:
        """What the RSDP in the BIOS's own area leads to. Firmware of UEFI has none there."""
        try:
            area = self._memory.read(acpi.BIOS_START, acpi.BIOS_END - acpi.BIOS_START)
        except MemoryFault:
            return
        for at in range(0, len(area), 16):
            if area.startswith(acpi.RSDP_SIGNATURE, at) and not sum(area[at : at + acpi.RSDP_SUMMED]) & 0xFF:
                _, _, _, revision, rsdt, _, xsdt = acpi.RSDP.unpack_from(
                    area.ljust(at + acpi.RSDP.size, b"\0"), at
                )
                root, width = (xsdt, 8) if revision >= 2 and xsdt else (rsdt, 4)
                tables = self._table(root)[acpi.HEADER_SIZE :]
                for entry in range(0, len(tables) - width + 1, width):
                    self._add(int.from_bytes(tables[entry : entry + width], "little"))
                    yield
                yield

    def _table(self, address: int) -> bytes:
        """A table whose length and checksum are right, else nothing."""
        self._tables += 1
        try:
            _, length, _ = acpi.HEADER.unpack(self._memory.read(address, acpi.HEADER.size))
            if not acpi.HEADER_SIZE <= length <= _TABLE_MAX:
                return b""
            table = self._memory.read(address, length)
        except MemoryFault:
            return b""
        return table if not sum(table) & 0xFF else b""

    def _add(self, address: int) -> None:
        """What a table says, if it is an MCFG, of PCI segment 0 with all its buses."""
        table = self._table(address)
        if not table.startswith(acpi.MCFG_SIGNATURE) or (len(table) - acpi.MCFG_SIZE) % acpi.MCFG_ENTRY.size:
            return
        for base, segment, first, last, _ in acpi.MCFG_ENTRY.iter_unpack(table[acpi.MCFG_SIZE :]):
            sound = 0 < base <= ADDRESSES - pci.ECAM_SIZE and not base % (1 << pci.ECAM_BUS_SHIFT)
            if sound and (segment, first, last) == _ALL_BUSES:
                self.found.add(base)
