"""A disk that never waits and that nobody else has: what a file is to the model, without its threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from pymodel.devices.block.disk import Job, Kind, Shape
from pymodel.memory import Bytes


class PlainDisk:
    """A `Disk` of `size` bytes. Its content is no part of a function's state, as a file's is not."""

    shape = Shape()
    read_only = False
    in_order = True

    def __init__(self, size: int) -> None:
        self.size = size
        self._content = np.zeros(size, np.uint8)

    def connect(self, wake: Callable[[], None]) -> None:
        """Nobody is ever woken."""

    def ready(self) -> bool:
        return True

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        if job.kind in (Kind.ZERO, Kind.DISCARD):
            self._content[job.offset : job.offset + job.length] = 0
        at = job.offset
        for view in views:
            place = self._content[at : at + len(view)]
            if job.kind is Kind.READ:
                view[:] = place
            else:
                place[:] = view
            at += len(view)
        return True

    def start(self, job: Job) -> None:
        raise AssertionError("every attempt succeeds")

    def work_unlocked(self) -> bool:
        return False

    def finished(self) -> list[Job]:
        return []

    def abandon(self) -> None:
        """Nothing is under way."""

    def expect_release(self, *, soon: bool) -> None:
        pass

    def release(self) -> bool:
        return True
