"""A packed queue on rings of any content: a run ends, is bounded, and fails only as a broken queue."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pymodel.errors import BrokenQueue
from pymodel.migration.state import QueueState
from pymodel.queue.virtqueue import BATCH, Virtqueue
from tests.model.queue.any_content import CountingMemory, NoisyMemory, RestlessMemory, Taker, bounded_run
from tests.model.queue.packed_rig import (
    EVENT_IDX,
    IN_ORDER,
    INDIRECT_DESC,
    PACKED,
)

MEMORY = 1 << 13
place = st.sampled_from(
    [0x100, 0x400, 0x800, 0, MEMORY - 64, MEMORY - 16, MEMORY - 4, MEMORY, (1 << 64) - 16]
)
position = st.sampled_from([0x8000, 0x8001, 0x8004, 0, 1, 4])
descriptors = st.lists(
    st.tuples(
        st.sampled_from([0, 0x200, 0x600, MEMORY - 1, MEMORY, (1 << 64) - 1]),
        st.sampled_from([0, 1, 16, 32, 80, 96, 0xFFFFFFFF]),
        st.integers(0, 0xFFFF),
        st.tuples(
            st.sampled_from([0x0080, 0x0080, 0x8000, 0x8080, 0]),
            st.sampled_from([0, 0, 1, 1, 2, 3, 4, 5, 6, 0x7F]),
        ).map(sum),
    ),
    min_size=5,
    max_size=5,
)


@given(
    entries=descriptors,
    noise=st.binary(max_size=256),
    desc=place,
    driver=place,
    device=place,
    start=position,
    features=st.sampled_from(
        [PACKED, PACKED | EVENT_IDX, PACKED | INDIRECT_DESC, PACKED | IN_ORDER | EVENT_IDX]
    ),
)
def test_a_run_ends_whatever_the_ring_holds(
    entries: Sequence[tuple[int, int, int, int]],
    noise: bytes,
    desc: int,
    driver: int,
    device: int,
    start: int,
    features: int,
) -> None:
    memory = NoisyMemory(MEMORY, noise)
    raw = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
    if desc + len(raw) <= MEMORY:
        memory.data[desc : desc + len(raw)] = np.frombuffer(raw, np.uint8)
    queue = Virtqueue(0, 8)
    queue.reset(features | PACKED)
    queue.restore(
        QueueState(0, 5, enable=1, desc=desc, driver=driver, device=device, last_avail=start, last_used=start)
    )
    bounded_run(queue, memory)


def test_a_descriptor_that_comes_and_goes_is_not_followed_for_ever() -> None:
    queue = Virtqueue(0, 8)
    queue.reset(PACKED)
    queue.restore(QueueState(0, 5, enable=1, desc=0, driver=0x400, device=0x404))
    memory = RestlessMemory(MEMORY, 14, 0x80)
    assert queue.run(memory, Taker())
    assert memory.looks <= 2 * (BATCH + 2)


@given(
    kinds=st.lists(st.sampled_from([0, 1, 1, 2, 3]), min_size=5, max_size=5),
    held=st.integers(0, 4),
)
def test_a_chain_is_within_what_is_free(kinds: list[int], held: int) -> None:
    """Whatever the flags say: a chain has at most as many descriptors as are not outstanding."""
    memory = CountingMemory(MEMORY)
    for slot in range(5):
        wrap = 0x80 if slot >= held else 0x8000
        memory.data[16 * slot : 16 * slot + 16] = list(struct.pack("<QIHH", 64, 1, slot, kinds[slot] | wrap))
    queue = Virtqueue(0, 8)
    start = QueueState(0, 5, enable=1, driver=0x400, device=0x404, last_avail=0x8000 | held, last_used=0x8000)
    queue.reset(PACKED)
    queue.restore(start)
    ring = queue.ring
    assert ring.pending(memory)
    try:
        chain = queue.chain
        ring.take(memory, chain)
    except BrokenQueue:
        assert memory.accesses <= 2 * 5
        return
    assert chain.slots <= 5 - held
    assert len(chain.readable) + len(chain.writable) == chain.slots
    assert memory.accesses <= 2 * 5
