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
        # Of the chains that are not seen to be used, id and descriptors; and where the next one will be.
        self._offered: list[tuple[int, int]] = []
        self._used_at = 0
        self._used_wrap = 1
        self._free = size
        self._last = 0
        self.sound = True

    def offer(self, entries: Sequence[Entry]) -> None:
        """Put descriptors into the ring, the first one's flags last. AVAIL and USED in flags turn those."""
        self._see_used()
        self._free -= len(entries)
        ends = not entries[-1][2] & NEXT
        if self._free < 0 or not ends or any(flags & (AVAIL_BIT | USED_BIT) for _, _, flags, _ in entries):
            self.sound = False
        count = 0
        first: tuple[int, bytes] | None = None
        for address, length, flags, buffer_id in entries:
            place = self._ring + 16 * self._at
            state = AVAIL_BIT if self._wrap else USED_BIT
            if count == 0:
                self._last = self._at
            count += 1
            if not flags & NEXT:
                # Which of two with one id was used nobody can tell.
                self.sound &= all(other != buffer_id or many == count for other, many in self._offered)
                self._offered.append((buffer_id, count))
                count = 0
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
        self._see_used()
        return not self._offered

    def _see_used(self) -> None:
        """Forget the chains that were used, in whatever order."""
        while self._offered:
            place = self._ring + 16 * self._used_at
            buffer_id, flags = struct.unpack("<HH", self._peek(place + 12, 4))
            if flags & (AVAIL_BIT | USED_BIT) != (AVAIL_BIT | USED_BIT if self._used_wrap else 0):
                return
            used = next((offered for offered in self._offered if offered[0] == buffer_id), None)
            if used is None:
                return
            self._offered.remove(used)
            self._free += used[1]
            self._used_at += used[1]
            if self._used_at >= self._size:
                self._used_at, self._used_wrap = self._used_at - self._size, self._used_wrap ^ 1

    def written(self, address: int, length: int) -> None:
        """The device may write there: a ring that it was told to write into says nothing any more."""
        if address < self._ring + 16 * self._size and self._ring < address + length:
            self.sound = False

    def length(self) -> int:
        """What the device says of the chain that was offered last."""
        return int.from_bytes(self._peek(self._ring + 16 * self._last + 8, 4), "little")
