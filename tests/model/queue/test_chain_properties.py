"""Descriptor chains of any content: a walk ends, and what it finds are the descriptors that are there."""

from __future__ import annotations

import struct

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.queue.chain import Chain
from tests.model.queue.any_content import CountingMemory

SIZE = 8
MEMORY = 1 << 12
TABLE = 0x100
INDIRECT = 0x400

edge = st.sampled_from([0, 1, SIZE - 1, SIZE, 0xFFFF])
place = st.sampled_from(
    [0, TABLE, INDIRECT, INDIRECT + 16, MEMORY - 16, MEMORY, (1 << 64) - 16, (1 << 64) - 1]
)
length = st.sampled_from([0, 1, 16, 32, 16 * SIZE, 16 * SIZE + 16, (1 << 32) - 1])
flags = st.one_of(st.integers(0, 7), st.integers(0, 0xFFFF))
descriptor = st.tuples(
    st.one_of(place, st.integers(0, (1 << 64) - 1)), length, flags, st.one_of(edge, st.integers(0, SIZE))
)


@given(
    table=st.lists(descriptor, min_size=SIZE, max_size=SIZE),
    further=st.lists(descriptor, min_size=SIZE, max_size=SIZE),
    head=st.one_of(edge, st.integers(0, 0xFFFF)),
    indirect=st.booleans(),
)
def test_a_walk_ends_and_invents_nothing(
    table: list[tuple[int, int, int, int]],
    further: list[tuple[int, int, int, int]],
    head: int,
    indirect: bool,
) -> None:
    memory = CountingMemory(MEMORY)
    for at, entries in ((TABLE, table), (INDIRECT, further)):
        raw = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
        memory.data[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
    before = memory.data.copy()
    try:
        chain = Chain()
        chain.walk(memory, TABLE, SIZE, head, SIZE * indirect)
    except (BrokenQueue, MemoryFault):
        return
    finally:
        assert memory.accesses <= 2 * 2 * SIZE
        assert np.array_equal(memory.data, before)
    found = chain.readable + chain.writable
    assert 0 < len(found) <= 2 * SIZE
    assert sum(size for _, size in found) <= 1 << 32
    direct = [entry[:2] for entry in table if not entry[2] & 4]
    assert indirect or all(pair in direct for pair in found)
