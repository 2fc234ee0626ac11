"""The driver's half of a queue, and what it needs of a device that a test plays."""

from __future__ import annotations

from typing import Generic, TypeVar

from vfu_client.vfio.interrupt import Interrupt
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.driver_queue import DriverQueue

Queue = TypeVar("Queue", bound=DriverQueue)


class PlayedDevice(Generic[Queue]):
    """Queue 3 of `size`, in memory of its own. `kicks` are its notifications: (index, position)."""

    def __init__(self, kind: type[Queue], size: int, **options: bool) -> None:
        self.memory = GuestMemory()
        self.memory.add_region(1 << 20)
        self.interrupt = Interrupt()
        self.kicks: list[tuple[int, int]] = []
        self.size = size
        self.queue = kind(
            self.memory,
            3,
            size,
            notify=lambda index, position: self.kicks.append((index, position)),
            interrupt=self.interrupt,
            **options,
        )
