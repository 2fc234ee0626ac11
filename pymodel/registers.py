"""Register records, and the one engine that reads, writes, resets and dumps them.

A block of registers is a tuple of `Register` records, laid out by offset. A `RegisterMap` puts blocks into
one address space, and a `RegisterFile` serves accesses of any offset and width to it: each is cut into the
registers that it touches, and bytes that belong to no register read 0 and take no write. A register with
behaviour has a method of its block's owner, found by name in the owner's class when the block is placed:
`read_<name>() -> int` computes the value, `write_<name>(value)` takes it.

All VFs of a device look alike, so they share a map: a file has only what is its own, values and owners.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import NoneType
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Register:
    """One register: `width` bytes, little-endian, at `offset` from the start of its block.

    `writable` and `clear` are masks of bits that a write sets to its own value, or clears where it has
    a 1. A register whose owner has `write_<name>` need not say what is writable: the owner decides.
    A write of only some of its bytes is completed with the register's present value, but for a
    `window`, whose read has side effects: there the missing bytes are 0.
    """

    name: str
    offset: int
    width: int
    reset: int = 0
    writable: int = 0
    clear: int = 0
    window: bool = False


@dataclass(frozen=True, slots=True)
class _Placed:
    register: Register
    name: str
    """The register's, with what its block is prefixed with."""
    start: int
    number: int
    """Which of a file's values is its own."""
    block: int
    """Which of a file's owners has its methods."""
    read: Callable[[Any], int] | None
    write: Callable[[Any, int], None] | None


class RegisterMap:
    """An address space of `size` bytes made of register blocks, for any number of files.

    `at` has the register of each byte, `names` the number of each register's value, `initial` the reset
    values by number, `owners` the class of each block's owner. All is there before the first file is made.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.names: dict[str, int] = {}
        self.initial: list[int] = []
        self.owners: list[type] = []
        self.at: list[_Placed | None] = [None] * size

    def place(
        self, base: int, registers: Sequence[Register], owner: type = NoneType, prefix: str = ""
    ) -> None:
        """Put a block at `base`, whose owners are of the class `owner`.

        Raises ValueError for an overlap, a bad size or a name used before.
        """
        for register in registers:
            start, end = base + register.offset, base + register.offset + register.width
            name = prefix + register.name
            if end > self.size or name in self.names:
                raise ValueError(f"register {name} at {start:#x} does not fit, or its name is taken")
            for offset in range(start, end):
                taken = self.at[offset]
                if taken is not None:
                    raise ValueError(f"registers {name} and {taken.register.name} overlap at {offset:#x}")
            placed = _Placed(
                register,
                name,
                start,
                len(self.initial),
                len(self.owners),
                getattr(owner, "read_" + register.name, None),
                getattr(owner, "write_" + register.name, None),
            )
            self.names[name] = placed.number
            self.initial.append(register.reset)
            self.at[start:end] = [placed] * register.width
        self.owners.append(owner)

    def preset(self, name: str, value: int) -> None:
        """Make `value` a register's reset value."""
        self.initial[self.names[name]] = value

    def touched(self, offset: int, length: int) -> Iterator[tuple[_Placed | None, int, int]]:
        """Cut [offset, offset + length) into pieces that each lie in one register or in none."""
        end = min(offset + length, self.size)
        while offset < end:
            placed = self.at[offset]
            stop = min(end, placed.start + placed.register.width) if placed else offset + 1
            yield placed, offset, stop
            offset = stop


class RegisterFile:
    """The registers of a map, with values of their own. `owners` are those of its blocks, in their order.

    Raises ValueError for owners that are not of the map's classes.
    """

    def __init__(self, layout: RegisterMap, owners: Sequence[object]) -> None:
        if len(owners) != len(layout.owners) or not all(map(isinstance, owners, layout.owners)):
            raise ValueError(f"owners of {len(layout.owners)} blocks: {owners}")
        self._map = layout
        self._at = layout.at
        self._owners = owners
        self._values = layout.initial.copy()

    def __getitem__(self, name: str) -> int:
        """The stored value of a register; no handler runs."""
        return self._values[self._map.names[name]]

    def __setitem__(self, name: str, value: int) -> None:
        """Store a value whatever the masks say; no handler runs."""
        self._values[self._map.names[name]] = value

    def reset(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Bring each stored value, but for the names in `keep`, back to its reset value; no handler runs."""
        kept = {name: self[name] for name in keep}
        self._values = self._map.initial.copy()
        for name, value in kept.items():
            self[name] = value

    def dump(self) -> dict[str, int]:
        """Every register's stored value by name; no handler runs."""
        return {name: self._values[number] for name, number in self._map.names.items()}

    def touched(self, offset: int, length: int) -> Iterator[tuple[str, int, int, int, int]]:
        """The registers that an access touches: name, start and width, and from where to where they are."""
        for placed, first, end in self._map.touched(offset, length):
            if placed is not None:
                yield placed.name, placed.start, placed.register.width, first, end

    def _read(self, placed: _Placed) -> int:
        if placed.read is not None:
            return placed.read(self._owners[placed.block])
        return self._values[placed.number]

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; what lies outside every register, or past the end, is 0."""
        placed = self._at[offset] if 0 <= offset < len(self._at) else None
        if placed is not None and placed.start == offset and placed.register.width == length:
            # As `_read`: nearly all accesses come this way.
            handler = placed.read
            value = self._values[placed.number] if handler is None else handler(self._owners[placed.block])
            return value.to_bytes(length, "little")
        out = bytearray(length)
        for piece, start, stop in self._map.touched(offset, length):
            if piece is not None:
                data = self._read(piece).to_bytes(piece.register.width, "little")
                out[start - offset : stop - offset] = data[start - piece.start : stop - piece.start]
        return bytes(out)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, register by register in address order; what no register takes is dropped."""
        for placed, start, stop in self._map.touched(offset, len(data)):
            if placed is None:
                continue
            register = placed.register
            shift = 8 * (start - placed.start)
            given = int.from_bytes(data[start - offset : stop - offset], "little") << shift
            covered = ((1 << 8 * (stop - start)) - 1) << shift
            if placed.write is not None:
                whole = stop - start == register.width
                if not whole and not register.window:
                    given |= self._read(placed) & ~covered
                placed.write(self._owners[placed.block], given)
                continue
            value = self._values[placed.number]
            writable = register.writable & covered
            value = (value & ~writable) | (given & writable)
            self._values[placed.number] = value & ~(given & register.clear & covered)


def registers_of(layout: np.dtype[np.void]) -> tuple[Register, ...]:
    """One record for each field of a packed structure, read-only but for what its owner's methods do."""
    fields = layout.fields
    assert fields is not None
    return tuple(Register(name, fields[name][1], fields[name][0].itemsize) for name in layout.names or ())
