"""A packed ring under a well-behaved driver: positions, ids, flags, who is told when."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pymodel.errors import MemoryFault
from pymodel.memory import Buffer
from tests.model.fakes import FakeMemory
from tests.model.queue.packed_rig import (
    DATA,
    DESC,
    DEVICE,
    DRIVER,
    EVENT_IDX,
    IN_ORDER,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    WRITE,
    Rig,
)


@pytest.mark.parametrize("features", [0, EVENT_IDX, IN_ORDER])
@pytest.mark.parametrize(("size", "requests"), [(1, 50), (2, 50), (3, 100), (7, 100), (256, 999), (255, 999)])
def test_laps(size: int, requests: int, features: int) -> None:
    """Wrap counters, at depth 1 and full depth, for sizes that are no power of 2 too."""
    rig = Rig(size, features)
    rig.consumer.written = 5
    done = 0
    while done < requests:
        count = 1 if size == 1 else size - done % 2
        places = []
        for number in range(count):
            places.append((rig.at, rig.wrap, number))
            rig.offer_writable(number)
        while rig.run():
            pass
        for at, wrap, number in places:
            assert rig.used(at) == (5, number, (0x8080 if wrap else 0) | WRITE)
        assert rig.told()
        assert rig.queue.outstanding == 0
        assert rig.queue.ring.last_avail == rig.queue.ring.used == rig.position
        if features & EVENT_IDX:
            assert (rig.word(DEVICE), rig.word(DEVICE + 2)) == (rig.position, 2)
        else:
            assert rig.word(DEVICE + 2) == 0
        done += count
    assert rig.consumer.taken == done


@pytest.mark.parametrize("start", [0x8000, 0x8004, 0x0003, 0x8001])
@pytest.mark.spec("Next Flag: Descriptor Chaining")
def test_a_used_descriptor_stands_for_a_chain(start: int) -> None:
    """The id is that of the last descriptor; the device skips the rest, over the end of the ring too."""
    rig = Rig(5, start=start)
    rig.consumer.written = 7
    for turn in range(12):
        first, wrap = rig.at, rig.wrap
        rig.offer((DATA, 4, NEXT), (DATA, 8, NEXT | WRITE), (DATA, 2, WRITE), buffer_id=0x100 + turn)
        rig.run()
        assert rig.used(first) == (7, 0x100 + turn, (0x8080 if wrap else 0) | WRITE)
        assert rig.queue.ring.used == rig.position


def test_a_chain_as_long_as_the_ring() -> None:
    rig = Rig(5)
    for turn in range(4):
        rig.offer(*[(DATA, 1, NEXT)] * 4, (DATA, 1, WRITE), buffer_id=turn)
        rig.run()
        assert rig.queue.ring.used == rig.position
        assert rig.used(0)[1] == turn


@pytest.mark.spec("Write Flag")
def test_the_write_flag_says_whether_there_is_a_length() -> None:
    rig = Rig(4)
    rig.consumer.written = 0
    rig.offer((DATA, 16, 0), buffer_id=9)
    rig.run()
    assert rig.used(0) == (0, 9, 0x8080)


@pytest.mark.spec("Write Flag")
@pytest.mark.parametrize("features", [0, IN_ORDER], ids=["any-order", "in-order"])
def test_the_write_flag_says_whether_anything_was_written(features: int) -> None:
    """In any part of the buffer: also behind a gap, of which the length does not tell.

    Looking at memory is no writing, and neither is a write that faults.
    """
    rig = Rig(16, features)
    rig.consumer.keep = True
    for number in range(5):
        rig.offer((DATA, 16, NEXT), (DATA + 64 * number, 16, WRITE), buffer_id=number)
    rig.offer((DATA, 16, NEXT), (1 << 40, 16, WRITE), buffer_id=5)
    rig.run()
    put, wrote, viewed, looked, nothing, faulty = rig.consumer.kept
    put.writable.put(15, b"\1")
    wrote.writable.write(3, [np.ones(5, np.uint8)])
    viewed.writable.views(4, 2, write=True)[0][:] = 7
    looked.writable.views(0, 16, write=False)
    looked.writable.read(0, 16)
    looked.writable.probe(write=True)
    with pytest.raises(MemoryFault):
        faulty.writable.put(0, b"\1")
    for buffer in (put, wrote, viewed, looked, nothing, faulty):
        buffer.complete(0)
        rig.queue.settle(rig.memory)
    flags = (0x8082, 0x8082, 0x8082, 0x8080, 0x8080, 0x8080)
    assert [rig.used(2 * slot) for slot in range(6)] == [(0, slot, flag) for slot, flag in enumerate(flags)]


@pytest.mark.spec("Indirect Flag: Scatter-Gather Support")
def test_tables_are_positional() -> None:
    """All entries of a table belong to the buffer; only WRITE counts in them."""
    rig = Rig(4, INDIRECT_DESC)
    rig.consumer.keep = True
    address, length = rig.table(
        (1, 16, 0xFFFF, 0), (2, 8, 7, NEXT), (3, 4, 9, WRITE | NEXT), (4, 2, 9, WRITE | INDIRECT)
    )
    rig.offer((address, length, INDIRECT | WRITE), buffer_id=77)
    rig.run()
    (buffer,) = rig.consumer.kept
    assert (buffer.readable._segments, buffer.writable._segments) == ([(1, 16), (2, 8)], [(3, 4), (4, 2)])
    buffer.complete(3)
    rig.queue.settle(rig.memory)
    assert rig.used(0) == (3, 77, 0x8082)


@pytest.mark.spec("Polling of available and used descriptors")
def test_flags_come_last() -> None:
    """Of what a batch uses, the driver can see nothing before the flags of the first descriptor."""

    class Watched(FakeMemory):
        stored: list[tuple[int, int]]

        def write(self, address: int, data: bytes) -> None:
            self.stored.append((address, len(data)))
            super().write(address, data)

        def store_u16(self, address: int, value: int) -> None:
            self.stored.append((address, 2))
            super().store_u16(address, value)

    rig = Rig(8)
    rig.memory.__class__ = Watched
    for number in range(3):
        rig.offer_writable(number)
    rig.memory.stored = []  # type: ignore[attr-defined]
    rig.run()
    ring = [entry for entry in rig.memory.stored if entry[0] < DRIVER]  # type: ignore[attr-defined]
    assert ring == [(8, 6), (24, 8), (40, 8), (14, 2)]


def test_descriptors_are_copied_once() -> None:
    """Each descriptor is read once, whatever the guest makes of it meanwhile."""

    class Counted(FakeMemory):
        reads: list[range]

        def read(self, address: int, length: int) -> bytes:
            self.reads.append(range(address, address + length))
            return super().read(address, length)

    rig = Rig(16)
    rig.memory.__class__ = Counted
    rig.memory.reads = []  # type: ignore[attr-defined]
    rig.offer(*[(DATA, 1, NEXT)] * 9, (DATA, 1, WRITE))
    rig.run()
    read = [at for part in rig.memory.reads for at in part]  # type: ignore[attr-defined]
    assert len(read) == len(set(read))


@pytest.mark.parametrize("size", [3, 8])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("start", [0x8000, 0x8002, 0x0001])
@pytest.mark.spec("Driver and Device Event Suppression")
def test_event_of_a_descriptor(size: int, count: int, start: int) -> None:
    """Told if the descriptor that the driver named is among those used, told apart by the wrap counter."""
    for event in [offset | wrap for offset in range(size) for wrap in (0, 0x8000)]:
        rig = Rig(size, EVENT_IDX, start=start)
        named = False
        rig.put(DRIVER, struct.pack("<HH", event, 2))
        for _ in range(count):
            named = named or rig.position == event
            rig.offer_writable()
        rig.run()
        assert rig.told() == named, f"event {event:#x}"
        # Once, until the driver names another one.
        rig.offer_writable()
        named = rig.queue.ring.used == event
        rig.run()
        assert rig.told() == named, f"event {event:#x}"


@pytest.mark.parametrize(
    ("features", "flags", "wanted"),
    [
        (0, 0, True),
        (0, 1, False),
        (EVENT_IDX, 0, True),
        (EVENT_IDX, 1, False),
        (0, 2, True),
        (EVENT_IDX, 3, True),
    ],
)
def test_event_flags(features: int, flags: int, *, wanted: bool) -> None:
    """Enable, disable; a descriptor's event without EVENT_IDX, and the reserved value, count as enable."""
    rig = Rig(4, features)
    rig.put(DRIVER, struct.pack("<HH", 0x7FFF, flags | 0xFFFC))
    rig.offer_writable()
    rig.run()
    assert rig.told() is wanted


@pytest.mark.parametrize("features", [0, EVENT_IDX])
def test_no_kicks_while_at_work(features: int) -> None:
    """Kicks are off while the ring is worked on, and asked for at its end; what came meanwhile is seen."""
    rig = Rig(4, features)
    wishes = []
    take = rig.consumer.take

    def late(buffer: Buffer) -> None:
        wishes.append((rig.word(DEVICE), rig.word(DEVICE + 2)))
        if len(wishes) < 3:
            rig.offer_writable()
        take(buffer)

    rig.consumer.take = late  # type: ignore[method-assign]
    rig.offer_writable()
    rig.run()
    assert rig.consumer.taken == 3
    if features:
        assert (rig.word(DEVICE), rig.word(DEVICE + 2)) == (0x8003, 2)
    else:
        assert [flags for _, flags in wishes] == [1, 1, 1]
        assert rig.word(DEVICE + 2) == 0


def test_zeroes_and_used_descriptors_are_not_available() -> None:
    for flags in (0x0000, 0x8080, 0x8000):
        rig = Rig(4)
        rig.put(DESC + 14, struct.pack("<H", flags))
        assert not rig.run()
        assert rig.consumer.taken == 0
    for flags in (0x0000, 0x8080, 0x0080):
        rig = Rig(4, start=0)
        rig.put(DESC + 14, struct.pack("<H", flags))
        assert not rig.run()
        assert rig.consumer.taken == 0
