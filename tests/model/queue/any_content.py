"""Rings of any content: memories that play tricks, and what holds of a run of a queue whatever they do."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.memory import Buffer, Bytes
from pymodel.queue.virtqueue import BATCH, BATCH_BYTES, Virtqueue
from tests.model.fakes import FakeMemory
from tests.model.queue.consumer import Consumer


@dataclass
class Taker(Consumer):
    """Completes each buffer with what it has room for."""

    sizes: list[int] = field(default_factory=list)

    def take(self, buffer: Buffer) -> None:
        self.sizes.append(buffer.readable.length + buffer.writable.length)
        buffer.complete(buffer.writable.length)


class NoisyMemory(FakeMemory):
    """Full of `noise`. Word accesses fault as those of mapped memory do."""

    def __init__(self, size: int, noise: bytes) -> None:
        super().__init__(size)
        if noise:
            self.data[:] = np.resize(np.frombuffer(noise, np.uint8), size)

    def load_u16(self, address: int) -> int:
        if address + 2 > len(self.data) or address & 1:
            raise MemoryFault(f"{address:#x}")
        return super().load_u16(address)

    def store_u16(self, address: int, value: int) -> None:
        self.load_u16(address)
        super().store_u16(address, value)


class RestlessMemory(FakeMemory):
    """The guest has another processor: each second look at a word finds `value` there, the others find 0."""

    def __init__(self, size: int, word: int, value: int) -> None:
        super().__init__(size)
        self._word = word
        self._value = value
        self.looks = 0

    def load_u16(self, address: int) -> int:
        if address == self._word:
            self.looks += 1
            return self._value if self.looks % 2 == 0 else 0
        return super().load_u16(address)


class CountingMemory(FakeMemory):
    """Counts accesses."""

    accesses = 0

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        self.accesses += 1
        return super().view(address, length, write=write)


def bounded_run(queue: Virtqueue, memory: FakeMemory) -> None:
    """Run a queue once: that ends, is bounded, and fails only as a broken queue."""
    taker = Taker()
    try:
        queue.run(memory, taker)
    except BrokenQueue:
        pass
    else:
        assert queue.outstanding == 0
    assert len(taker.sizes) <= BATCH
    assert sum(taker.sizes[:-1]) < BATCH_BYTES
