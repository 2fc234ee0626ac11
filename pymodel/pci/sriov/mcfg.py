"""Finds ECAM, the memory-mapped configuration space, in a guest: by its ACPI table MCFG, never by a guess.

The table is "PCI Express Memory-mapped Configuration Space base address description table" of the PCI
Firmware Specification; its header, and how it is found, are in ACPI 6.5, 5.2.5 to 5.2.8.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

from pymodel.errors import MemoryFault
from pymodel.pci.dma import Dma

_BIOS: Final = range(0xE0000, 0x100000)
"""Where the RSDP of a machine without UEFI is, at a multiple of 16."""

_LOW_MEMORY: Final = 1 << 32
_PIECE: Final = 1 << 20
_AT_ONCE: Final = 16
"""Pieces and tables that a step looks at."""

_TABLE_MAX: Final = 1 << 16
"""Bytes of a table, which are added up."""

_TABLES_MAX: Final = 4096
"""Tables, and what only begins like one: a guest has some dozens, unless it means harm."""

_RSDP: Final = struct.Struct("<8sB6sBIIQ")
_HEADER: Final = struct.Struct("<4sIB")
_HEADER_SIZE: Final = 36
_MCFG_SIZE: Final = 44
_ENTRY: Final = struct.Struct("<QHBBI")
_ENTRY_ALIGNMENT: Final = 1 << 20
_ALL_BUSES: Final = (0, 0, 255)
"""PCI segment, first and last bus."""

ECAM_SIZE: Final = 256 << 20
"""Of all buses of a segment."""

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
            at = piece.find(b"MCFG")
            while at != -1:
                self._add(start + at)
                yield
                at = piece.find(b"MCFG", at + 1)
            yield

    @property
    def base(self) -> int | None:
        """The address of ECAM, where the search is done and found one only."""
        return next(iter(self.found)) if self.done and len(self.found) == 1 else None

    def _named_by_bios(self) -> Iterator[None]:
        """What the RSDP in the BIOS's own area leads to. Firmware of UEFI has none there."""
        try:
            area = self._memory.read(_BIOS.start, len(_BIOS))
        except MemoryFault:
            return
        for at in range(0, len(area), 16):
            if area.startswith(b"RSD PTR ", at) and not sum(area[at : at + 20]) & 0xFF:
                _, _, _, revision, rsdt, _, xsdt = _RSDP.unpack_from(area.ljust(at + _RSDP.size, b"\0"), at)
                root, width = (xsdt, 8) if revision >= 2 and xsdt else (rsdt, 4)
                tables = self._table(root)[_HEADER_SIZE:]
                for entry in range(0, len(tables) - width + 1, width):
                    self._add(int.from_bytes(tables[entry : entry + width], "little"))
                    yield
                yield

    def _table(self, address: int) -> bytes:
        """A table whose length and checksum are right, else nothing."""
        self._tables += 1
        try:
            _, length, _ = _HEADER.unpack(self._memory.read(address, _HEADER.size))
            if not _HEADER_SIZE <= length <= _TABLE_MAX:
                return b""
            table = self._memory.read(address, length)
        except MemoryFault:
            return b""
        return table if not sum(table) & 0xFF else b""

    def _add(self, address: int) -> None:
        """What a table says, if it is an MCFG, of PCI segment 0 with all its buses."""
        table = self._table(address)
        if not table.startswith(b"MCFG") or (len(table) - _MCFG_SIZE) % _ENTRY.size:
            return
        for base, segment, first, last, _ in _ENTRY.iter_unpack(table[_MCFG_SIZE:]):
            sound = 0 < base <= ADDRESSES - ECAM_SIZE and not base % _ENTRY_ALIGNMENT
            if sound and (segment, first, last) == _ALL_BUSES:
                self.found.add(base)
