"""A packed queue between a driver made of bytes and a consumer that completes. Numbers are the standard's."""

from __future__ import annotations

import struct

import numpy as np

from pymodel.migration.state import QueueState
from pymodel.queue.virtqueue import Virtqueue
from tests.model.fakes import FakeMemory
from tests.model.queue.consumer import Consumer

DESC, DRIVER, DEVICE, TABLES, DATA = 0x0000, 0x4000, 0x4004, 0x6000, 0x8000
INDIRECT_DESC, EVENT_IDX, PACKED, IN_ORDER = 1 << 28, 1 << 29, 1 << 32 | 1 << 34, 1 << 35
NEXT, WRITE, INDIRECT = 1, 2, 4

Entry = tuple[int, int, int]


class Rig:
    """A queue of `size`, and a driver with the wrap counter that the standard describes."""

    def __init__(self, size: int, features: int = 0, start: int = 0x8000) -> None:
        self.memory = FakeMemory(1 << 16)
        self.features = features | PACKED
        self.queue = Virtqueue(3, 256)
        self.queue.negotiated(self.features)
        self.queue.size = size
        self.queue.desc, self.queue.driver, self.queue.device = DESC, DRIVER, DEVICE
        self.queue.enable()
        self.queue.ring.restore(QueueState(3, size, last_avail=start, last_used=start))
        self.consumer = Consumer()
        self.size = size
        self.at, self.wrap = start & 0x7FFF, start >> 15

    def put(self, at: int, data: bytes) -> None:
        self.memory.data[at : at + len(data)] = np.frombuffer(data, np.uint8)

    def word(self, at: int) -> int:
        return self.memory.load_u16(at)

    @property
    def position(self) -> int:
        return self.at | self.wrap << 15

    def offer(self, *chain: Entry, buffer_id: int = 0) -> None:
        """(address, length, flags), NEXT being the caller's matter; the id is in the last one only."""
        for number, (address, length, flags) in enumerate(chain, 1):
            state = 0x0080 if self.wrap else 0x8000
            shown = buffer_id if number == len(chain) else 0xDEAD
            self.put(DESC + 16 * self.at, struct.pack("<QIHH", address, length, shown, flags | state))
            self.at += 1
            if self.at == self.size:
                self.at, self.wrap = 0, self.wrap ^ 1

    def offer_writable(self, buffer_id: int = 0) -> None:
        self.offer((DATA, 16, WRITE), buffer_id=buffer_id)

    def table(self, *entries: tuple[int, int, int, int]) -> tuple[int, int]:
        raw = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        self.put(TABLES, raw)
        return TABLES, len(raw)

    def run(self) -> bool:
        return self.queue.run(self.memory, self.consumer)

    def used(self, at: int) -> tuple[int, int, int]:
        """(length, id, flags) of a descriptor."""
        found: tuple[int, int, int] = struct.unpack(
            "<IHH", self.memory.data[DESC + 16 * at + 8 : DESC + 16 * at + 16].tobytes()
        )
        return found

    def told(self) -> bool:
        owed = self.queue.owed
        self.queue.told()
        return owed
