"""Descriptor chains: whatever the table holds, the walk ends, with a chain or with `BrokenQueue`."""

from __future__ import annotations

import random
import struct

import numpy as np
import pytest

from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.queue.chain import Chain
from tests.model.fakes import FakeMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
TABLE = 0x1000

Entry = tuple[int, int, int, int]


def table(memory: FakeMemory, *entries: Entry, at: int = 0) -> int:
    raw = b"".join(struct.pack("<QIHH", *entry) for entry in entries)
    memory.data[at : at + len(raw)] = np.frombuffer(raw, np.uint8)
    return at


def walk(memory: FakeMemory, table: int, size: int, head: int, table_max: int) -> Chain:
    chain = Chain()
    chain.walk(memory, table, size, head, table_max)
    return chain


def walked(*entries: Entry, head: int = 0, size: int = 8, inner: tuple[Entry, ...] = ()) -> Chain:
    memory = FakeMemory(1 << 16)
    table(memory, *entries)
    table(memory, *inner, at=TABLE)
    return walk(memory, 0, size, head, size)


def test_direct() -> None:
    chain = walked((7, 1, NEXT, 3), (0, 0, 0, 0), (9, 3, WRITE, 0), (8, 2, NEXT | WRITE, 2))
    assert (chain.readable, chain.writable, chain.size) == ([(7, 1)], [(8, 2), (9, 3)], 6)


def test_as_long_as_the_queue() -> None:
    entries: list[Entry] = [(slot, 1, NEXT, slot + 1) for slot in range(7)]
    assert walked(*entries, (7, 1, 0, 0)).readable == [(slot, 1) for slot in range(8)]
    with pytest.raises(BrokenQueue, match="longer"):
        walked(*entries, (7, 1, NEXT, 0))


def test_indirect_after_direct() -> None:
    """A table may end a chain; the WRITE flag of the descriptor that refers to it is ignored."""
    inner: tuple[Entry, ...] = ((3, 3, NEXT, 2), (0, 0, 0, 0), (4, 4, WRITE, 0))
    chain = walked((1, 1, NEXT, 1), (TABLE, 48, INDIRECT | WRITE, 0), inner=inner)
    assert (chain.readable, chain.writable) == ([(1, 1), (3, 3)], [(4, 4)])


def test_order_holds_across_the_table() -> None:
    """A readable descriptor in a table may not follow a writable one before it."""
    with pytest.raises(BrokenQueue, match="follows"):
        walked((1, 1, NEXT | WRITE, 1), (TABLE, 16, INDIRECT, 0), inner=((3, 3, 0, 0),))


@pytest.mark.parametrize(
    ("entries", "inner", "reason"),
    [
        (((1, 1, NEXT, 8),), (), "outside"),
        (((1, 1, NEXT, 0xFFFF),), (), "outside"),
        (((1, 1, NEXT, 0),), (), "longer"),
        (((1, 1, NEXT, 1), (1, 1, NEXT, 0)), (), "longer"),
        (((1, 1, WRITE | NEXT, 1), (1, 1, 0, 0)), (), "follows"),
        (((TABLE, 16, INDIRECT | NEXT, 1),), ((1, 1, 0, 0),), "both"),
        (((TABLE, 0, INDIRECT, 0),), (), "0 bytes"),
        (((TABLE, 15, INDIRECT, 0),), (), "15 bytes"),
        (((TABLE, 17, INDIRECT, 0),), (), "17 bytes"),
        (((TABLE, 16 * 9, INDIRECT, 0),), (), "144 bytes"),
        (((TABLE, 16, INDIRECT, 0),), ((1, 1, NEXT, 1),), "longer"),
        (((TABLE, 32, INDIRECT, 0),), ((1, 1, NEXT, 2), (1, 1, 0, 0)), "outside"),
        (((TABLE, 32, INDIRECT, 0),), ((1, 1, NEXT, 1), (1, 1, NEXT, 0)), "longer"),
        (((TABLE, 16, INDIRECT, 0),), ((TABLE, 16, INDIRECT, 0),), "inside"),
        (((1, 0xFFFFFFFF, NEXT, 1), (1, 2, 0, 0)), (), "more than"),
    ],
)
def test_broken(entries: tuple[Entry, ...], inner: tuple[Entry, ...], reason: str) -> None:
    with pytest.raises(BrokenQueue, match=reason):
        walked(*entries, inner=inner)


def test_two_to_the_32_bytes_are_allowed() -> None:
    assert walked((1, 0xFFFFFFFF, NEXT, 1), (1, 1, 0, 0)).size == 1 << 32


@pytest.mark.parametrize(("most", "good"), [(8, False), (99, False), (100, True)])
def test_a_table_longer_than_the_queue(most: int, good: bool) -> None:
    """As long as it may be, whatever the size of the queue."""
    memory = FakeMemory(1 << 16)
    table(memory, (TABLE, 16 * 100, INDIRECT, 0))
    table(memory, *((slot, 1, NEXT * (slot < 99), slot + 1) for slot in range(100)), at=TABLE)
    if good:
        assert walk(memory, 0, 8, 0, most).readable == [(slot, 1) for slot in range(100)]
    else:
        with pytest.raises(BrokenQueue, match="1600 bytes"):
            walk(memory, 0, 8, 0, most)


def test_not_negotiated() -> None:
    memory = FakeMemory(1 << 16)
    table(memory, (TABLE, 16, INDIRECT, 0))
    with pytest.raises(BrokenQueue, match="negotiated"):
        walk(memory, 0, 8, 0, 0)


@pytest.mark.parametrize("where", [1 << 16, (1 << 64) - 16])
def test_tables_that_are_not_mapped(where: int) -> None:
    memory = FakeMemory(1 << 16)
    table(memory, (where, 16, INDIRECT, 0))
    with pytest.raises(MemoryFault):
        walk(memory, 0, 8, 0, 8)
    with pytest.raises(MemoryFault):
        walk(memory, where, 8, 0, 8)


@pytest.mark.parametrize("seed", range(8))
def test_random_tables(seed: int) -> None:
    """A chain that keeps the rules, or BrokenQueue; never anything else, and never without end."""
    randomly = random.Random(seed)
    for _ in range(50):
        memory = FakeMemory(1 << 12)
        size = randomly.choice([1, 2, 8, 16])
        for slot in range(0, 1 << 12, 16):
            address = randomly.choice([randomly.randrange(1 << 12), randomly.randrange(1 << 64)])
            length = randomly.choice([0, 16, 32, randomly.randrange(1 << 32)])
            flags = randomly.choice([0, 1, 1, 1, 2, 3, 3, 4, randomly.randrange(1 << 16)])
            table(memory, (address, length, flags, randomly.randrange(size + 1)), at=slot)
        try:
            chain = walk(memory, 0, size, randomly.randrange(size), size)
        except BrokenQueue:
            continue
        assert 1 <= len(chain.readable) + len(chain.writable) <= 2 * size
        assert chain.size == sum(length for _, length in chain.readable + chain.writable) <= 1 << 32
