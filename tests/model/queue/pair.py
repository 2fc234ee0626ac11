"""A queue between the driver's half of `vfu_client` and the device's half of `pymodel`, over one memory."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Self

from pymodel.queue.virtqueue import Virtqueue
from tests.fuzz.local import LocalMemory
from tests.model.queue.consumer import Consumer
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.driver_queue import Completion, DriverQueue
from vfu_client.virtio.packed import PackedQueue
from vfu_client.virtio.split import SplitQueue

INDIRECT, EVENT_IDX, VERSION_1, RING_PACKED, IN_ORDER = 28, 29, 32, 34, 35


class Pair:
    """Both halves of queue 3, whose consumer keeps buffers. `kicks` are notifications: (index, position)."""

    def __init__(self, size: int, bits: Iterable[int], *, consumer: Consumer | None = None) -> None:
        bits = {*bits, VERSION_1}
        self.features = sum(1 << bit for bit in bits)
        self.guest = GuestMemory()
        region = self.guest.add_region(1 << 20)
        self.memory = LocalMemory()
        self.memory.map(region.fd, 0, region.address, region.size, writable=True)
        self.kicks: list[tuple[int, int]] = []
        kind = PackedQueue if RING_PACKED in bits else SplitQueue
        self.driver: DriverQueue = kind(
            self.guest,
            3,
            size,
            notify=lambda index, position: self.kicks.append((index, position)),
            event_idx=EVENT_IDX in bits,
            indirect=INDIRECT in bits,
            in_order=IN_ORDER in bits,
        )
        self.consumer = consumer or Consumer(keep=True)
        self.device = Virtqueue(3, 256)
        self.device.negotiated(self.features)
        self.device.size = size
        self.device.desc, self.device.driver, self.device.device = (
            part.address for part in self.driver.parts
        )
        assert self.device.trouble() is None
        self.device.enable()
        self.data = self.guest.allocate(4096)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.guest.close()

    def add(self, readable: int = 1, writable: int = 1, size: int = 16, *, kick: bool = True) -> int:
        """Add a buffer of so many elements of `size` bytes; kick, where the device wants it."""
        head = self.driver.add(
            [(self.data.address, size)] * readable, [(self.data.address + 2048, size)] * writable
        )
        if kick:
            self.driver.kick()
        return head

    def run(self) -> bool:
        return self.device.run(self.memory, self.consumer)

    def settle(self) -> None:
        self.device.settle(self.memory)

    def told(self) -> bool:
        """Whether an interrupt was owed; it is sent now."""
        owed = self.device.owed
        self.device.told()
        return owed

    def collect(self) -> list[Completion]:
        return self.driver.collect()
