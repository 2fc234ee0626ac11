"""A packed ring in bare hands: any flags in its descriptors, and what must come of those that make sense."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from typing import Final

NEXT: Final = 1
AVAIL_BIT: Final = 0x0080
USED_BIT: Final = 0x8000

# Address, length, flags, id.
Entry = tuple[int, int, int, int]


class BarePacked:
    """The driver's place in a ring of `size` descriptors at `ring`.

    `sound` is whether the device can know of every chain that was offered: each was made available as it
    should be, in descriptors that were free.
    """

    def __init__(
        self, ring: int, size: int, poke: Callable[[int, bytes], None], peek: Callable[[int, int], bytes]
    ) -> None:
        self._ring = ring
        self._size = size
        self._poke = poke
        self._peek = peek
        self._at = 0
        self._wrap = 1
        # Where the chains begin that are not seen to be used, with the flags that will say so.
        self._begun: list[tuple[int, int]] = []
        self._free = size
        self._last = 0
        self.sound = True

    def offer(self, entries: Sequence[Entry]) -> None:
        """Put descriptors into the ring, the first one's flags last. AVAIL and USED in flags turn those."""
        if self.all_used():
            self._begun.clear()
            self._free = self._size
        self._free -= len(entries)
        ends = not entries[-1][2] & NEXT
        if self._free < 0 or not ends or any(flags & (AVAIL_BIT | USED_BIT) for _, _, flags, _ in entries):
            self.sound = False
        begins = True
        first: tuple[int, bytes] | None = None
        for address, length, flags, buffer_id in entries:
            place = self._ring + 16 * self._at
            state = AVAIL_BIT if self._wrap else USED_BIT
            if begins:
                self._last = self._at
                self._begun.append((self._at, AVAIL_BIT | USED_BIT if self._wrap else 0))
            begins = not flags & NEXT
            raw = struct.pack("<QIHH", address, length, buffer_id, flags ^ state)
            if first is None:
                first = place + 14, raw[14:]
                raw = raw[:14]
            self._poke(place, raw)
            self._at += 1
            if self._at == self._size:
                self._at, self._wrap = 0, self._wrap ^ 1
        assert first is not None
        self._poke(*first)

    def all_used(self) -> bool:
        """Whether every chain was used."""
        return all(self._state(at) == flags for at, flags in self._begun)

    def _state(self, at: int) -> int:
        flags = int.from_bytes(self._peek(self._ring + 16 * at + 14, 2), "little")
        return flags & (AVAIL_BIT | USED_BIT)

    def written(self, address: int, length: int) -> None:
        """The device may write there: a ring that it was told to write into says nothing any more."""
        if address < self._ring + 16 * self._size and self._ring < address + length:
            self.sound = False

    def length(self) -> int:
        """What the device says of the chain that was offered last."""
        return int.from_bytes(self._peek(self._ring + 16 * self._last + 8, 4), "little")
