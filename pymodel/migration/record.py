"""Which guest memory a member wrote: what a migration copies again (docs/wire.md, "Write records")."""

from __future__ import annotations

from array import array
from itertools import pairwise

import numpy as np

PAGE_SHIFT = 12

# Runs of pages that are noted before they are sorted in: for that the interpreter is needed.
_NOTES = 512


class WriteRecord:
    """The guest pages (4 KiB) that a member wrote since `start`.

    Its memory is bounded by the guest memory that is mapped: a write elsewhere never happens. `add` is
    compiled to run without the interpreter.
    """

    __slots__ = ("_firsts", "_lasts", "_noted", "_pages", "active")

    def __init__(self) -> None:
        self.active = False
        self._pages: set[int] = set()
        self._firsts: array[int] = array("Q")
        self._lasts: array[int] = array("Q")
        self._noted = 0

    def start(self) -> None:
        """Begin, or begin again, with nothing recorded."""
        self._firsts = array("Q", bytes(8 * _NOTES))
        self._lasts = array("Q", bytes(8 * _NOTES))
        self._noted = 0
        self._pages.clear()
        self.active = True

    def stop(self) -> None:
        """End, and forget what was recorded."""
        self.active = False
        self._noted = 0
        self._pages.clear()

    def add(self, address: int, length: int) -> int:
        """Note that the device wrote [address, address + length). Call it only while `active`."""
        if not length:
            return 0
        first, last = address >> PAGE_SHIFT, (address + length - 1) >> PAGE_SHIFT
        if self._noted and self._firsts[self._noted - 1] == first and self._lasts[self._noted - 1] == last:
            return 0
        if self._noted == _NOTES:
            self.sort_in()
        self._firsts[self._noted] = first
        self._lasts[self._noted] = last
        self._noted += 1
        return 0

    def sort_in(self) -> int:
        """Have all that was noted among the pages."""
        for number in range(self._noted):
            if self._firsts[number] == self._lasts[number]:
                self._pages.add(self._firsts[number])
            else:
                self._pages.update(range(self._firsts[number], self._lasts[number] + 1))
        self._noted = 0
        return 0

    def take(self, limit: int) -> tuple[list[tuple[int, int]], int]:
        """Remove at most `limit` runs of pages, lowest first.

        Returns them as (address, length), merged, and how many runs are left.
        """
        self.sort_in()
        if not self._pages:
            return [], 0
        pages = np.fromiter(self._pages, np.uint64, len(self._pages))
        pages.sort()
        starts = np.concatenate(([0], np.flatnonzero(np.diff(pages) != 1) + 1, [len(pages)]))
        count = min(limit, len(starts) - 1)
        runs = [
            (int(pages[first]) << PAGE_SHIFT, (end - first) << PAGE_SHIFT)
            for first, end in pairwise(starts[: count + 1].tolist())
        ]
        if count == len(starts) - 1:
            self._pages.clear()
        else:
            self._pages.difference_update(pages[: starts[count]].tolist())
        return runs, len(starts) - 1 - count
