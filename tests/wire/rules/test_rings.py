"""Chains and rings that are wrong: which queue, position, head and descriptor is told."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.wire.rules.author import (
    EVENT_IDX,
    IN_ORDER,
    RING_PACKED,
    VERSION_1,
    Author,
    Mistake,
)
from tests.wire.running import until
from vfu_client.virtio.packed import PackedQueue
from vfu_client.virtio.split import SplitQueue

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAIL, USED = 1 << 7, 1 << 15
INDIRECT_DESC = 28


def _offer(
    author: Author, *descriptors: tuple[int, int, int, int], head: int = 0, features: tuple[int, ...] = ()
) -> SplitQueue:
    """A chain as it is given, of (address, length, flags, next) from descriptor 0 on; then a notification."""
    queue = author.split(*features)
    for slot, descriptor in enumerate(descriptors):
        queue.desc[slot] = descriptor
    queue.publish(head)
    queue.kick(force=True)
    author.settle()
    return queue


def _get_id(author: Author, *, queue: SplitQueue | PackedQueue) -> int:
    header, answer = author.bytes(bytes([8]) + bytes(15)), author.bytes(bytes(21))
    head = queue.add([(header.address, 16)], [(answer.address, 21)])
    queue.kick(force=True)
    return head


def _room(author: Author, size: int = 16) -> int:
    return author.bytes(bytes([8]) + bytes(size - 1)).address


def readable_behind_writable(author: Author) -> None:
    at = _room(author)
    _offer(author, (at, 16, NEXT, 1), (at, 16, NEXT | WRITE, 2), (at, 16, 0, 0))


def a_buffer_in_no_memory(author: Author) -> None:
    _offer(author, (0x7F_DEAD_0000, 16, NEXT, 1), (_room(author), 16, WRITE, 0))


def a_table_of_17_bytes(author: Author) -> None:
    _offer(author, (_room(author, 32), 17, INDIRECT, 0), features=(INDIRECT_DESC,))


def no_bytes(author: Author) -> None:
    at = _room(author, 64)
    _offer(author, (at, 16, NEXT, 1), (at, 0, NEXT, 2), (at + 32, 21, WRITE, 0))


def unknown_flags(author: Author) -> None:
    at = _room(author, 64)
    _offer(author, (at, 16, NEXT | 0x100, 1), (at + 32, 21, WRITE, 0))


def next_outside(author: Author) -> None:
    _offer(author, (_room(author), 16, NEXT, 8))


def a_loop(author: Author) -> None:
    at = _room(author)
    _offer(author, (at, 16, NEXT, 1), (at, 16, NEXT, 0))


def indirect_and_next(author: Author) -> None:
    _offer(author, (_room(author), 16, INDIRECT | NEXT, 1), features=(INDIRECT_DESC,))


def a_table_in_a_table(author: Author) -> None:
    table = author.bytes(struct.pack("<QIHH", 0x1000, 16, INDIRECT, 0))
    _offer(author, (table.address, 16, INDIRECT, 0), features=(INDIRECT_DESC,))


def more_than_4_gib(author: Author) -> None:
    at = _room(author)
    _offer(author, (at, 0xFFFF_FFFF, NEXT, 1), (at, 0xFFFF_FFFF, 0, 0))


def a_table_without_the_feature(author: Author) -> None:
    _offer(author, (_room(author), 16, INDIRECT, 0))


def too_many_available(author: Author) -> None:
    queue = author.split()
    queue.avail[1] = 100
    queue.kick(force=True)


def _chain_at_0(author: Author) -> SplitQueue:
    """Two descriptors from 0 on, which are not available yet."""
    queue = author.split()
    at = _room(author, 64)
    queue.desc[0] = (at, 16, NEXT, 1)
    queue.desc[1] = (at + 32, 21, WRITE, 0)
    return queue


def the_same_head_twice_at_once(author: Author) -> None:
    queue = _chain_at_0(author)
    queue.publish(0)
    queue.publish(0)
    queue.kick(force=True)


def counts_descriptors(author: Author) -> None:
    queue = _chain_at_0(author)
    queue.avail[1] = 2
    queue.kick(force=True)


def a_head_that_is_not_there(author: Author) -> None:
    _offer(author, head=8)


def flags_of_the_available_ring(author: Author) -> None:
    queue = author.split()
    queue.avail[0] = 2
    _get_id(author, queue=queue)


def flags_with_event_idx(author: Author) -> None:
    queue = author.split(EVENT_IDX)
    queue.avail[0] = 1
    _get_id(author, queue=queue)


def out_of_order(author: Author) -> None:
    at = _room(author, 64)
    _offer(author, (at, 16, NEXT, 2), (0, 0, 0, 0), (at + 32, 21, WRITE, 0), features=(IN_ORDER,))


def a_table_out_of_order(author: Author) -> None:
    at = _room(author, 64)
    table = author.bytes(
        struct.pack("<QIHH", at, 16, NEXT, 2) + bytes(16) + struct.pack("<QIHH", at + 32, 21, WRITE, 0)
    )
    _offer(author, (table.address, 48, INDIRECT, 0), features=(IN_ORDER, INDIRECT_DESC))


def scribbles_on_the_used_ring(author: Author) -> None:
    queue = author.split()
    queue.used[1] = 7
    _get_id(author, queue=queue)


def waits_for_what_cannot_come(author: Author) -> None:
    queue = author.split(EVENT_IDX)
    queue.avail[-1] = 5
    _get_id(author, queue=queue)


def _packed(author: Author, *features: int) -> PackedQueue:
    queue = author.run([VERSION_1, RING_PACKED, *features])
    assert isinstance(queue, PackedQueue)
    return queue


def _offer_packed(
    author: Author, *descriptors: tuple[int, int, int, int], features: tuple[int, ...] = ()
) -> None:
    """(address, length, id, flags), available unless flags say USED."""
    queue = _packed(author, *features)
    for slot, (address, length, number, flags) in enumerate(descriptors):
        queue.desc[slot] = (address, length, number, flags if flags & USED else flags | AVAIL)
    queue.kick(force=True)
    author.settle()


def packed_readable_behind_writable(author: Author) -> None:
    at = _room(author)
    _offer_packed(author, (at, 16, 0, NEXT | WRITE), (at, 16, 0, 0))


def packed_longer_than_the_ring(author: Author) -> None:
    at = _room(author)
    _offer_packed(author, *[(at, 16, 0, NEXT)] * 8)


def packed_first_before_the_others(author: Author) -> None:
    _offer_packed(author, (_room(author), 16, 0, NEXT))


def packed_indirect_in_a_list(author: Author) -> None:
    at = _room(author)
    _offer_packed(author, (at, 16, 0, NEXT), (at, 16, 0, INDIRECT), features=(INDIRECT_DESC,))


def packed_table_without_the_feature(author: Author) -> None:
    _offer_packed(author, (_room(author), 16, 0, INDIRECT))


def packed_flags_in_a_table(author: Author) -> None:
    at = _room(author, 64)
    table = author.bytes(struct.pack("<QIHH", at, 16, 0, NEXT) + struct.pack("<QIHH", at + 32, 21, 0, WRITE))
    _offer_packed(author, (table.address, 32, 0, INDIRECT), features=(INDIRECT_DESC,))


def packed_with_the_wrong_wrap_counter(author: Author) -> None:
    _offer_packed(author, (_room(author), 16, 0, USED))


def packed_with_the_wrap_counter_of_the_first_lap(author: Author) -> None:
    queue = _packed(author)
    for number in range(1, 5):
        _get_id(author, queue=queue)
        until(lambda number=number: queue.device_used_idx == number, "it is used")  # type: ignore[misc]
    queue.desc[1] = (_room(author, 32), 21, 0, WRITE | AVAIL)
    queue.desc[0] = (_room(author), 16, 0, NEXT | AVAIL)
    queue.kick(force=True)
    author.settle()


def packed_event_flags(author: Author) -> None:
    queue = _packed(author)
    queue.driver_event[1] = 3
    _get_id(author, queue=queue)


SPLIT = [
    Mistake(
        "RING-01",
        readable_behind_writable,
        "queue 0: .* follows a device-writable one .ring position 0, head 0, descriptor 2 of the table at 0x",
        where={"queue": 0, "descriptor": 2},
    ),
    Mistake("RING-02", a_buffer_in_no_memory, "queue 0: .*0x7fdead0000"),
    Mistake("RING-03", a_table_of_17_bytes, "an indirect table of 17 bytes, where 8 descriptors may be"),
    Mistake("RING-04", no_bytes, "ring position 0, head 0: descriptor 1 has no bytes", where={"head": 0}),
    Mistake("RING-05", unknown_flags, "flags 0x100 in descriptor 0"),
    Mistake(
        "RING-07",
        the_same_head_twice_at_once,
        "queue 0: head 0 is available at positions 0 and 1",
        where={"queue": 0, "head": 0, "position": 1},
    ),
    Mistake("RING-07", counts_descriptors, "available index 2, which counts chains and not descriptors"),
    Mistake("SPLIT-01", next_outside, "descriptor 8 lies outside a table of 8", where={"descriptor": 8}),
    Mistake("SPLIT-02", a_loop, "longer than its queue of 8"),
    Mistake("SPLIT-03", indirect_and_next, "both INDIRECT and NEXT"),
    Mistake("SPLIT-04", a_table_in_a_table, "an indirect descriptor inside an indirect table"),
    Mistake("SPLIT-05", more_than_4_gib, r"more than 2\^32 bytes"),
    Mistake("SPLIT-06", a_table_without_the_feature, "INDIRECT_DESC was not negotiated"),
    Mistake("SPLIT-07", too_many_available, "queue 0: 100 buffers available in a ring of 8"),
    Mistake("SPLIT-08", a_head_that_is_not_there, "names descriptor 8 in a ring of 8 .ring position 0"),
    Mistake("SPLIT-09", flags_of_the_available_ring, "flags 0x2", where={"expected": "0 or 1"}),
    Mistake("SPLIT-09", flags_with_event_idx, "flags 0x1", where={"expected": "0"}),
    Mistake("SPLIT-10", out_of_order, "next 2 in descriptor 0", where={"expected": "1"}),
    Mistake("SPLIT-11", a_table_out_of_order, "next 2 in entry 0 of the table", where={"expected": "1"}),
    Mistake("SPLIT-12", scribbles_on_the_used_ring, "index 7 in the used ring", where={"expected": "0"}),
    Mistake("SPLIT-13", waits_for_what_cannot_come, "used_event of queue 0 is 5, and the available index 1"),
]
PACKED = [
    Mistake("RING-01", packed_readable_behind_writable, "ring position 0, wrap counter 1, descriptor 1"),
    Mistake("PACK-01", packed_longer_than_the_ring, "more than the 8 free descriptors"),
    Mistake(
        "PACK-02",
        packed_first_before_the_others,
        "goes on in descriptor 1, which is not available .*: it has AVAIL 0, USED 0",
        where={"expected": "AVAIL 1, USED 0"},
    ),
    Mistake("PACK-03", packed_indirect_in_a_list, "an indirect descriptor in a chain of a packed ring"),
    Mistake("PACK-04", packed_table_without_the_feature, "INDIRECT_DESC was not negotiated"),
    Mistake("PACK-05", packed_flags_in_a_table, "flags 0x1 in entry 0 of the table"),
    Mistake(
        "PACK-06",
        packed_with_the_wrong_wrap_counter,
        "descriptor 0 of queue 0 has AVAIL 0, USED 1, and the wrap counter is 1",
        frozenset({"KICK-10"}),
        where={"expected": "AVAIL 1, USED 0"},
    ),
    Mistake(
        "PACK-06",
        packed_with_the_wrap_counter_of_the_first_lap,
        "descriptor 0 of queue 0 has AVAIL 1, USED 0, and the wrap counter is 0",
        where={"expected": "AVAIL 0, USED 1", "descriptor": 0},
    ),
    Mistake("PACK-07", packed_event_flags, "flags 3 in the driver event suppression structure"),
]


@pytest.mark.parametrize("mistake", [*SPLIT, *PACKED], ids=lambda mistake: mistake.id)
def test_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)


# What is in flight: on a disk that takes its time.


def alters_what_the_device_has(author: Author) -> None:
    queue = author.split()
    _get_id(author, queue=queue)
    author.settle()
    queue.desc[1]["len"] = 512
    until(lambda: queue.device_used_idx == 1, "the request is done")


def the_same_head_twice(author: Author) -> None:
    queue = author.split()
    _get_id(author, queue=queue)
    author.settle()
    queue.publish(0)
    queue.kick(force=True)


def a_descriptor_of_two_chains(author: Author) -> None:
    queue = author.split()
    _get_id(author, queue=queue)
    author.settle()
    queue.desc[4] = (_room(author), 16, NEXT, 1)
    queue.publish(4)
    queue.kick(force=True)


def the_same_id_twice(author: Author) -> None:
    queue = _packed(author)
    _get_id(author, queue=queue)
    author.settle()
    at = _room(author, 64)
    queue.desc[3] = (at + 32, 21, 0, WRITE | AVAIL)
    number = int(queue.desc[1]["id"])
    queue.desc[2] = (at, 16, number, NEXT | AVAIL)
    queue.desc[3]["id"] = number
    queue.kick(force=True)


IN_FLIGHT = [
    Mistake(
        "RING-06",
        alters_what_the_device_has,
        r"descriptor 1 of buffer 0 is \(0x\w+, length 512, flags WRITE, next 0\), and was \(0x\w+, length 21",
    ),
    Mistake("RING-07", the_same_head_twice, "descriptor 0 is in flight, in the chain of head 0"),
    Mistake(
        "RING-07", a_descriptor_of_two_chains, "head 4: descriptor 1 is in flight, in the chain of head 0"
    ),
    Mistake("PACK-08", the_same_id_twice, r"ring position 2, buffer id (\d+): id \1 is in flight"),
]


@pytest.mark.parametrize("mistake", IN_FLIGHT, ids=lambda mistake: mistake.id)
def test_mistake_in_flight(
    slow_author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    told(slow_author, mistake)


def test_device_writes_over_another_buffer(author: Author) -> None:
    """In a packed ring what is used first stands in the descriptors of what was available first."""
    queue = _packed(author)
    author.server.ask("inject", function=author.function, fault="late", ms=200)
    first, second = (_get_id(author, queue=queue) for _ in range(2))
    until(lambda: queue.device_used_idx == 2, "both are used")
    assert [done.head for done in queue.collect()] == [second, first]
    assert author.told() == {}
