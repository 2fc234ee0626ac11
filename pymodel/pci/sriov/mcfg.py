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
_PIECES_AT_ONCE: Final = 16
_TABLE_MAX: Final = 1 << 20

_RSDP: Final = struct.Struct("<8sB6sBIIQ")
_HEADER: Final = struct.Struct("<4sIB")
_HEADER_SIZE: Final = 36
_MCFG_SIZE: Final = 44
_ENTRY: Final = struct.Struct("<QHBBI")
_ENTRY_ALIGNMENT: Final = 1 << 20


class McfgSearch:
    """A search through the memory of a guest, some megabytes with each `step`.

    `found` has the addresses of ECAM, those of bus 0, of all tables that were found. They are of one machine,
    so what they say is known only where they all say the same.
    """

    def __init__(self, memory: Dma) -> None:
        self._memory = memory
        self._pieces = iter(range(_LOW_MEMORY - _PIECE, -1, -_PIECE))
        self._begun = False
        self.done = False
        self.found: set[int] = set()

    def step(self) -> None:
        """Look at some more; `done` when there is no more. Raises nothing for what a guest may have there."""
        if not self._begun:
            self._begun = True
            self.found.update(self._named_by_bios())
            self.done = bool(self.found)
            return
        looked = 0
        for start in self._pieces:
            try:
                piece = self._memory.read(start, _PIECE)
            except MemoryFault:
                continue
            at = piece.find(b"MCFG")
            while at != -1:
                self.found.update(self._bases(start + at))
                at = piece.find(b"MCFG", at + 1)
            looked += 1
            if looked == _PIECES_AT_ONCE:
                return
        self.done = True

    @property
    def base(self) -> int | None:
        """The address of ECAM, where the search is done and found one only."""
        return next(iter(self.found)) if self.done and len(self.found) == 1 else None

    def _named_by_bios(self) -> Iterator[int]:
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
                    yield from self._bases(int.from_bytes(tables[entry : entry + width], "little"))

    def _table(self, address: int) -> bytes:
        """A table whose length and checksum are right, else nothing."""
        try:
            _, length, _ = _HEADER.unpack(self._memory.read(address, _HEADER.size))
            if not _HEADER_SIZE <= length <= _TABLE_MAX:
                return b""
            table = self._memory.read(address, length)
        except MemoryFault:
            return b""
        return table if not sum(table) & 0xFF else b""

    def _bases(self, address: int) -> Iterator[int]:
        """What a table says, if it is an MCFG, of PCI segment 0."""
        table = self._table(address)
        if not table.startswith(b"MCFG") or (len(table) - _MCFG_SIZE) % _ENTRY.size:
            return
        for base, segment, first, last, _ in _ENTRY.iter_unpack(table[_MCFG_SIZE:]):
            if segment == 0 and first <= last and base and not base % _ENTRY_ALIGNMENT:
                yield base
