"""A split queue on rings of any content: a run ends, is bounded, and fails only as a broken queue."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st

from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.memory import Buffer
from pymodel.migration.state import QueueState
from pymodel.queue.virtqueue import BATCH, BATCH_BYTES, Virtqueue
from tests.model.fakes import FakeMemory

SIZE = 8
MEMORY = 1 << 13
DESC, AVAIL, USED = 0x100, 0x400, 0x800
EVENT_IDX = 1 << 29 | 1 << 32


@dataclass
class Taker:
    """Completes each buffer with what it has room for."""

    sizes: list[int] = field(default_factory=list)

    def accepts(self, queue: int) -> bool:
        return True

    def take(self, buffer: Buffer) -> None:
        self.sizes.append(buffer.readable.length + buffer.writable.length)
        buffer.complete(buffer.writable.length)

    def service(self) -> None:
        pass

    def drop(self, queue: int) -> None:
        pass

    def reset(self) -> None:
        pass


def strict(memory: FakeMemory) -> FakeMemory:
    """Word accesses fault as those of mapped memory do."""

    class Strict(FakeMemory):
        def load_u16(self, address: int) -> int:
            if address + 2 > len(self.data) or address & 1:
                raise MemoryFault(f"{address:#x}")
            return super().load_u16(address)

        def store_u16(self, address: int, value: int) -> None:
            self.load_u16(address)
            super().store_u16(address, value)

    made = Strict(len(memory.data))
    made.data = memory.data
    return made


def queue_with(desc: int, driver: int, device: int, last: int, used: int, features: int) -> Virtqueue:
    queue = Virtqueue(0, SIZE)
    queue.restore(
        QueueState(
            0, SIZE, enable=1, desc=desc, driver=driver, device=device, last_avail_idx=last, used_idx=used
        ),
        features,
    )
    return queue


place = st.sampled_from(
    [DESC, AVAIL, USED, 0, USED + 4, AVAIL + 4, MEMORY - 16, MEMORY - 4, MEMORY, (1 << 64) - 16]
)
index = st.sampled_from([0, 1, SIZE - 1, SIZE, SIZE + 1, 0x7FFF, 0x8000, 0xFFFE, 0xFFFF])


@example(noise=b"", desc=DESC, driver=USED, device=USED, last=0, used=0, avail=1, features=1 << 32)
@given(
    noise=st.binary(max_size=256),
    desc=place,
    driver=place,
    device=place,
    last=index,
    used=index,
    avail=index,
    features=st.sampled_from([1 << 32, EVENT_IDX]),
)
def test_a_run_ends_whatever_the_rings_hold(
    noise: bytes, desc: int, driver: int, device: int, last: int, used: int, avail: int, features: int
) -> None:
    memory = strict(FakeMemory(MEMORY))
    if noise:
        memory.data[:] = np.resize(np.frombuffer(noise, np.uint8), MEMORY)
    if driver + 4 <= MEMORY:
        memory.data[driver + 2 : driver + 4] = (avail & 0xFF, avail >> 8)
    queue = queue_with(desc, driver, device, last, used, features)
    taker = Taker()
    try:
        queue.run(memory, taker)
    except BrokenQueue:
        pass
    else:
        assert queue.outstanding == 0
    assert len(taker.sizes) <= BATCH
    assert sum(taker.sizes[:-1]) < BATCH_BYTES


def test_an_index_that_moves_to_and_fro_is_not_followed_for_ever() -> None:
    """The guest has another processor: each second look finds what the first did not."""

    class Restless(FakeMemory):
        looks = 0

        def load_u16(self, address: int) -> int:
            if address == AVAIL + 2:
                self.looks += 1
                return (self.looks + 1) % 2
            return super().load_u16(address)

    memory = Restless(MEMORY)
    queue = queue_with(DESC, AVAIL, USED, 0, 0, 1 << 32)
    assert queue.run(memory, Taker())
    assert memory.looks <= 2 * (BATCH + 2)


def test_a_batch_is_bounded_in_bytes() -> None:
    """Whoever waits for the function's lock waits for a batch: not for eight disks' worth of reads."""
    memory = FakeMemory(MEMORY)
    for slot in range(SIZE):
        raw = struct.pack("<QIHH", 0, BATCH_BYTES // 2, 2, 0)
        memory.data[DESC + 16 * slot : DESC + 16 * slot + 16] = list(raw)
        memory.data[AVAIL + 4 + 2 * slot] = slot
    memory.data[AVAIL + 2] = SIZE
    queue = queue_with(DESC, AVAIL, USED, 0, 0, 1 << 32)
    taker = Taker()
    rounds = [queue.run(memory, taker) for _ in range(4)]
    assert len(taker.sizes) == SIZE
    assert rounds == [True, True, True, False]
