"""A split queue on rings of any content: a run ends, is bounded, and fails only as a broken queue."""

from __future__ import annotations

import struct

from hypothesis import example, given
from hypothesis import strategies as st

from pymodel.migration.state import QueueState
from pymodel.queue.virtqueue import BATCH, BATCH_BYTES, Virtqueue
from tests.model.fakes import FakeMemory
from tests.model.queue.any_content import NoisyMemory, RestlessMemory, Taker, bounded_run

SIZE = 8
MEMORY = 1 << 13
DESC, AVAIL, USED = 0x100, 0x400, 0x800
EVENT_IDX = 1 << 29 | 1 << 32


def queue_with(desc: int, driver: int, device: int, last: int, used: int, features: int) -> Virtqueue:
    queue = Virtqueue(0, SIZE)
    queue.reset(features)
    queue.restore(
        QueueState(
            0, SIZE, enable=1, desc=desc, driver=driver, device=device, last_avail_idx=last, used_idx=used
        )
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
    memory = NoisyMemory(MEMORY, noise)
    if driver + 4 <= MEMORY:
        memory.data[driver + 2 : driver + 4] = (avail & 0xFF, avail >> 8)
    bounded_run(queue_with(desc, driver, device, last, used, features), memory)


def test_an_index_that_moves_to_and_fro_is_not_followed_for_ever() -> None:
    memory = RestlessMemory(MEMORY, AVAIL + 2, 1)
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
