"""Register records, and the one engine that reads, writes, resets and dumps them.

A block of registers is a tuple of `Register` records, laid out by offset. `RegisterFile` puts blocks
into one address space and serves accesses of any offset and width: each is cut into the registers that
it touches, and bytes that belong to no register read 0 and take no write. A register with behaviour has
a method on its block's owner, found by name when the block is placed: `read_<name>() -> int` computes the
value, `write_<name>(value)` takes it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

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


@dataclass(slots=True)
class _Placed:
    register: Register
    start: int
    read: Callable[[], int] | None
    write: Callable[[int], None] | None
    initial: int
    value: int


class RegisterFile:
    """An address space of `size` bytes made of register blocks."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._at: list[_Placed | None] = [None] * size
        self._named: dict[str, _Placed] = {}

    def place(self, base: int, registers: Sequence[Register], owner: object = None, prefix: str = "") -> None:
        """Put a block at `base`. Raises ValueError for an overlap, a bad size or a name used before."""
        for register in registers:
            start, end = base + register.offset, base + register.offset + register.width
            name = prefix + register.name
            if end > self.size or name in self._named:
                raise ValueError(f"register {name} at {start:#x} does not fit, or its name is taken")
            for offset in range(start, end):
                taken = self._at[offset]
                if taken is not None:
                    raise ValueError(f"registers {name} and {taken.register.name} overlap at {offset:#x}")
            placed = _Placed(
                register,
                start,
                getattr(owner, "read_" + register.name, None),
                getattr(owner, "write_" + register.name, None),
                register.reset,
                register.reset,
            )
            self._named[name] = placed
            self._at[start:end] = [placed] * register.width

    def __getitem__(self, name: str) -> int:
        """The stored value of a register; no handler runs."""
        return self._named[name].value

    def __setitem__(self, name: str, value: int) -> None:
        """Store a value whatever the masks say; no handler runs."""
        self._named[name].value = value

    def preset(self, name: str, value: int) -> None:
        """Make `value` a register's present value and its reset value."""
        self._named[name].value = self._named[name].initial = value

    def reset(self, *, keep: frozenset[str] = frozenset()) -> None:
        """Bring each stored value, but for the names in `keep`, back to its reset value; no handler runs."""
        for name, placed in self._named.items():
            if name not in keep:
                placed.value = placed.initial

    def dump(self) -> dict[str, int]:
        """Every register's stored value by name; no handler runs."""
        return {name: placed.value for name, placed in self._named.items()}

    def _touched(self, offset: int, length: int) -> Iterator[tuple[_Placed | None, int, int]]:
        """Cut [offset, offset + length) into pieces that each lie in one register or in none."""
        end = min(offset + length, self.size)
        while offset < end:
            placed = self._at[offset]
            stop = min(end, placed.start + placed.register.width) if placed else offset + 1
            yield placed, offset, stop
            offset = stop

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes; what lies outside every register, or past the end, is 0."""
        placed = self._at[offset] if 0 <= offset < self.size else None
        if placed is not None and placed.start == offset and placed.register.width == length:
            return (placed.read() if placed.read else placed.value).to_bytes(length, "little")
        out = bytearray(length)
        for piece, start, stop in self._touched(offset, length):
            if piece is not None:
                value = piece.read() if piece.read else piece.value
                data = value.to_bytes(piece.register.width, "little")
                out[start - offset : stop - offset] = data[start - piece.start : stop - piece.start]
        return bytes(out)

    def write(self, offset: int, data: bytes) -> None:
        """Write bytes, register by register in address order; what no register takes is dropped."""
        for placed, start, stop in self._touched(offset, len(data)):
            if placed is None:
                continue
            register = placed.register
            shift = 8 * (start - placed.start)
            given = int.from_bytes(data[start - offset : stop - offset], "little") << shift
            covered = ((1 << 8 * (stop - start)) - 1) << shift
            if placed.write is not None:
                whole = stop - start == register.width
                if not whole and not register.window:
                    given |= (placed.read() if placed.read else placed.value) & ~covered
                placed.write(given)
                continue
            writable = register.writable & covered
            value = (placed.value & ~writable) | (given & writable)
            placed.value = value & ~(given & register.clear & covered)


def registers_of(layout: np.dtype[np.void]) -> tuple[Register, ...]:
    """One record for each field of a packed structure, read-only but for what its owner's methods do."""
    fields = layout.fields
    assert fields is not None
    return tuple(Register(name, fields[name][1], fields[name][0].itemsize) for name in layout.names or ())
