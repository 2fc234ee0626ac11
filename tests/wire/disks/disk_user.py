"""What a device is to a disk, for tests of disks alone."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np

from pymodel.devices.block.disk import Job, Kind
from pymodel.memory import Bytes
from tests.wire.running import until
from vfu_server.disks.shared_disk import SharedDisk

SECONDS = 10


class User:
    """What a device is to a disk, without a guest."""

    def __init__(self, disk: SharedDisk) -> None:
        self.disk = disk
        self._woken = threading.Event()
        disk.connect(self._woken.set)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until `condition`, which is looked at after each wake: there must be one."""
        while True:
            self._woken.clear()
            if condition():
                return
            assert self._woken.wait(SECONDS), "no wake"

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Until `condition`, which nobody wakes for."""
        until(condition, "what the disk does by itself", SECONDS)

    def wait_for(self, jobs: Sequence[Job]) -> list[Job]:
        """Until all of these have ended: each once, and no other. In the order in which they did."""
        ended: list[Job] = []

        def all_ended() -> bool:
            ended.extend(self.disk.finished())
            return len(ended) >= len(jobs)

        self.wait(all_ended)
        assert sorted(map(id, ended)) == sorted(map(id, jobs))
        return ended

    def open(self) -> User:
        self.wait(self.disk.ready)
        return self

    def do(
        self,
        kind: Kind,
        offset: int = 0,
        data: Bytes | int = 0,
        *,
        durable: bool = False,
        unmap: bool = False,
    ) -> Job:
        """Start a job and wait for its end."""
        length = data if isinstance(data, int) else len(data)
        job = Job(kind, offset, length, durable, unmap, None if isinstance(data, int) else data)
        self.disk.start(job)
        self.wait(lambda: job in self.disk.finished())
        return job

    def release(self) -> None:
        self.wait(self.disk.release)


def filled(length: int, value: int) -> Bytes:
    return np.full(length, value, np.uint8)
