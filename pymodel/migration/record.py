"""Which guest memory a member wrote: what a migration copies again (docs/wire.md, "Write records")."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

PAGE_SHIFT = 12


class WriteRecord:
    """The guest pages (4 KiB) that a member wrote since `start`.

    Its memory is bounded by the guest memory that is mapped: a write elsewhere never happens.
    """

    __slots__ = ("_pages", "active")

    def __init__(self) -> None:
        self.active = False
        self._pages: set[int] = set()

    def start(self) -> None:
        """Begin, or begin again, with nothing recorded."""
        self.active = True
        self._pages.clear()

    def stop(self) -> None:
        """End, and forget what was recorded."""
        self.active = False
        self._pages.clear()

    def add(self, address: int, length: int) -> None:
        """Note that the device wrote [address, address + length). Call it only while `active`."""
        if length > 0:
            first, last = address >> PAGE_SHIFT, (address + length - 1) >> PAGE_SHIFT
            if first == last:
                self._pages.add(first)
            else:
                self._pages.update(range(first, last + 1))

    def take(self, limit: int) -> tuple[list[tuple[int, int]], int]:
        """Remove at most `limit` runs of pages, lowest first.

        Returns them as (address, length), merged, and how many runs are left.
        """
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
