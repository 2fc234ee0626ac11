"""A packed ring under a driver that breaks the rules, or whose memory goes: `BrokenQueue`, nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from pymodel.errors import BrokenQueue, MemoryFault
from tests.model.queue.packed_rig import (
    DATA,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    TABLES,
    WRITE,
    Entry,
    Rig,
)

BROKEN: dict[str, tuple[Sequence[Entry], Sequence[tuple[int, int, int, int]], str]] = {
    "longer than the ring": ([(DATA, 1, NEXT)] * 4, (), "free descriptors"),
    "goes on where nothing is available": ([(DATA, 1, NEXT)], (), "goes on in descriptor 1"),
    "readable after writable": ([(DATA, 1, NEXT | WRITE), (DATA, 1, 0)], (), "follows"),
    "indirect with next": ([(TABLES, 16, INDIRECT | NEXT), (DATA, 1, 0)], [(DATA, 1, 0, 0)], "indirect"),
    "indirect at the end of a chain": (
        [(DATA, 1, NEXT), (TABLES, 16, INDIRECT)],
        [(DATA, 1, 0, 0)],
        "indirect",
    ),
    "table of no length": ([(TABLES, 0, INDIRECT)], (), "0 bytes"),
    "table of odd length": ([(TABLES, 17, INDIRECT)], (), "17 bytes"),
    "table longer than the ring": ([(TABLES, 80, INDIRECT)], (), "80 bytes"),
    "readable after writable in a table": (
        [(TABLES, 32, INDIRECT)],
        [(DATA, 1, 0, WRITE), (DATA, 1, 0, 0)],
        "follows",
    ),
    "more than 4 GiB": ([(DATA, 0xFFFFFFFF, NEXT), (DATA, 2, 0)], (), "more than"),
    "table that is not mapped": ([(1 << 63, 16, INDIRECT)], (), "0x8"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_chains(case: str) -> None:
    chain, table, reason = BROKEN[case]
    rig = Rig(4, INDIRECT_DESC)
    rig.table(*table)
    rig.offer(*chain)
    with pytest.raises(BrokenQueue, match=reason):
        rig.run()
    assert (rig.consumer.taken, rig.queue.outstanding) == (0, 0)


def test_indirect_that_was_not_negotiated() -> None:
    rig = Rig(4)
    rig.table((DATA, 1, 0, 0))
    rig.offer((TABLES, 16, INDIRECT))
    with pytest.raises(BrokenQueue, match="negotiated"):
        rig.run()


def test_what_was_completed_before_stays_so() -> None:
    rig = Rig(4)
    rig.offer_writable(5)
    rig.offer((DATA, 1, NEXT))
    with pytest.raises(BrokenQueue):
        rig.run()
    assert rig.used(0) == (1, 5, 0x8082)


def test_a_chain_over_what_is_outstanding() -> None:
    """Descriptors that the device has not used yet are not free for another chain."""
    rig = Rig(4)
    rig.consumer.keep = True
    for _ in range(3):
        rig.offer_writable()
    rig.run()
    rig.offer((DATA, 1, NEXT), (DATA, 1, 0))
    with pytest.raises(BrokenQueue, match="more than the 1 free"):
        rig.run()


@pytest.mark.parametrize("number", [0, 1, 2])
def test_memory_that_is_away_for_a_moment(number: int) -> None:
    """Faults in the consumer, in the ring, and in the event structure: all is done once in the end."""
    rig = Rig(4)
    rig.offer((DATA, 1, NEXT), (DATA, 1, WRITE), buffer_id=6)
    owner, name = [(rig.consumer, "take"), (rig.memory, "write"), (rig.memory, "load_u16")][number]
    kept = getattr(owner, name)
    event_flags = rig.queue.driver + 2

    def away(*arguments: Any) -> Any:
        if name == "load_u16" and arguments != (event_flags,):
            return kept(*arguments)
        raise MemoryFault("away")

    setattr(owner, name, away)
    with pytest.raises(MemoryFault):
        rig.run()
    assert not rig.queue.owed
    setattr(owner, name, kept)
    rig.run()
    assert (rig.consumer.taken, rig.queue.outstanding, rig.told()) == (1, 0, True)
    assert rig.used(0) == (1, 6, 0x8082)
    assert rig.queue.ring.used == rig.position
