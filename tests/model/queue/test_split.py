"""A split queue between a driver made of bytes and a consumer that only completes."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.memory import Buffer
from pymodel.migration.state import QueueState
from pymodel.queue.split import SplitRing
from pymodel.queue.virtqueue import Virtqueue
from tests.model.fakes import FakeMemory
from tests.model.queue.consumer import Consumer

DESC, AVAIL, USED, DATA = 0x0000, 0x4000, 0x6000, 0x8000
EVENT_IDX = 1 << 29


class Rig:
    """A queue of `size` whose every descriptor is one writable buffer of 16 bytes."""

    def __init__(self, size: int, features: int = 0, start: int = 0) -> None:
        self.memory = FakeMemory(1 << 16)
        self.queue = Virtqueue(3, 256)
        self.queue.negotiated(features)
        self.queue.size = size
        self.queue.desc, self.queue.driver, self.queue.device = DESC, AVAIL, USED
        self.queue.enable()
        self.queue.ring.restore(QueueState(3, last_avail_idx=start, used_idx=start))
        self.consumer = Consumer()
        self.size = size
        self.idx = start
        self.put(AVAIL + 2, start)
        for slot in range(size):
            raw = struct.pack("<QIHH", DATA + 16 * slot, 16, 2, 0)
            self.memory.data[DESC + 16 * slot : DESC + 16 * slot + 16] = np.frombuffer(raw, np.uint8)

    def put(self, at: int, value: int) -> None:
        self.memory.store_u16(at, value & 0xFFFF)

    def get(self, at: int) -> int:
        return self.memory.load_u16(at)

    def offer(self, count: int = 1) -> None:
        for _ in range(count):
            self.put(AVAIL + 4 + 2 * (self.idx % self.size), self.idx % self.size)
            self.idx = (self.idx + 1) & 0xFFFF
        self.put(AVAIL + 2, self.idx)

    def run(self) -> bool:
        return self.queue.run(self.memory, self.consumer)

    def element(self, index: int) -> tuple[int, int]:
        at = USED + 4 + 8 * (index % self.size)
        return struct.unpack("<II", self.memory.data[at : at + 8].tobytes())

    def told(self) -> bool:
        """Whether an interrupt is owed; then it is not."""
        owed = self.queue.owed
        self.queue.told()
        return owed


@pytest.mark.parametrize(
    ("size", "features", "start", "requests"),
    [(256, EVENT_IDX, 0, 66000), (256, 0, 65000, 1000), (2, 0, 65000, 1000), (1, EVENT_IDX, 65000, 1000)],
)
def test_more_than_65536_requests(size: int, features: int, start: int, requests: int) -> None:
    """Every index wraps, the free-running ones and the slots, at depth 1 and at full depth."""
    rig = Rig(size, features, start=start)
    done = start
    rig.consumer.written = 5
    while done < start + requests:
        count = 1 if size == 1 else size - done // size % 2
        rig.offer(count)
        rig.put(AVAIL + 4 + 2 * size, rig.idx - 1)  # used_event: the last of them
        while rig.run():
            pass
        done += count
        assert rig.get(USED + 2) == done & 0xFFFF
        assert rig.element(done - 1) == ((done - 1) % size, 5)
        assert rig.told()
        assert rig.queue.outstanding == 0
        if features:
            assert rig.get(USED + 4 + 8 * size) == done & 0xFFFF  # avail_event
            assert rig.get(USED) == 0
    assert rig.consumer.taken == done - start


@pytest.mark.parametrize("old", [0, 5, 65534, 65535])
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("offset", range(-3, 6))
@pytest.mark.spec("Used Buffer Notification Suppression")
def test_used_event(old: int, count: int, offset: int) -> None:
    """Told if used.idx moved past used_event, which is told by counting, in every position of the wrap."""
    rig = Rig(8, EVENT_IDX, start=old)
    event = (old + offset) & 0xFFFF
    rig.put(AVAIL + 4 + 16, event)
    rig.put(AVAIL, 1)  # NO_INTERRUPT means nothing with EVENT_IDX
    rig.offer(count)
    rig.run()
    assert rig.told() == (event in {(old + step) & 0xFFFF for step in range(count)})


@pytest.mark.parametrize("flag", [0, 1])
def test_no_interrupt_flag(flag: int) -> None:
    rig = Rig(4)
    rig.put(AVAIL, flag)
    rig.offer(3)
    rig.run()
    assert rig.told() == (not flag)
    rig.run()
    assert not rig.told()  # nothing new


def test_kicks_are_asked_for_when_idle() -> None:
    """used.flags is 0 whenever the queue rests; while a consumer takes no more it need not be."""
    rig = Rig(4)
    rig.offer(2)
    rig.run()
    assert rig.get(USED) == 0


def test_a_full_consumer_keeps_the_queue_waiting() -> None:
    rig = Rig(8)
    rig.consumer.room = 2
    rig.offer(5)
    assert (rig.run(), rig.queue.waiting, rig.get(USED + 2)) == (False, True, 2)
    rig.consumer.room = 100
    assert (rig.run(), rig.queue.waiting, rig.get(USED + 2)) == (False, False, 5)


def test_completions_out_of_order() -> None:
    """Used elements come in the order of completion, each with its own head and length."""
    rig = Rig(4)
    rig.consumer.keep = True
    rig.offer(3)
    rig.run()
    assert rig.queue.outstanding == 3
    first, second, third = rig.consumer.kept
    for buffer, length in ((third, 30), (first, 10), (second, 20)):
        buffer.complete(length)
    rig.queue.settle(rig.memory)
    assert [rig.element(index) for index in range(3)] == [(2, 30), (0, 10), (1, 20)]
    assert rig.told()
    assert rig.queue.outstanding == 0


def test_buffers_of_an_earlier_life_complete_into_nothing() -> None:
    rig = Rig(4)
    rig.consumer.keep = True
    rig.offer(2)
    rig.run()
    rig.queue.reset()
    before = rig.memory.data.copy()
    for buffer in rig.consumer.kept:
        buffer.complete(1)
    rig.queue.settle(rig.memory)
    assert np.array_equal(rig.memory.data, before)
    assert (rig.queue.outstanding, rig.queue.ring.used, rig.queue.owed) == (0, 0, False)


def test_lengths_are_cut_to_32_bits() -> None:
    rig = Rig(4)
    rig.consumer.written = 1 << 40
    rig.offer()
    rig.run()
    assert rig.element(0) == (0, 0xFFFFFFFF)


@pytest.mark.parametrize("jump", [5, 6, 100, 0x8000, 0xFFFF])
@pytest.mark.parametrize("start", [0, 65534])
def test_more_available_than_the_ring_holds(start: int, jump: int) -> None:
    rig = Rig(4, start=start)
    rig.put(AVAIL + 2, start + jump)
    with pytest.raises(BrokenQueue, match="available"):
        rig.run()
    assert rig.consumer.taken == 0


def test_more_than_fits_beside_what_is_outstanding() -> None:
    """A driver that adds to a full ring breaks its queue: what the device holds stays bounded."""
    rig = Rig(4)
    rig.consumer.keep = True
    rig.offer(4)
    rig.run()
    rig.offer(1)
    with pytest.raises(BrokenQueue, match="5 buffers available in a ring of 4"):
        rig.run()
    assert rig.consumer.taken == 4


def test_heads_out_of_range() -> None:
    rig = Rig(4)
    rig.offer(2)
    rig.put(AVAIL + 4 + 2, 4)
    with pytest.raises(BrokenQueue, match="descriptor 4"):
        rig.run()
    assert rig.get(USED + 2) == 1  # the one before it stays done


@pytest.mark.parametrize(
    ("desc", "driver", "device", "good"),
    [(16, 2, 4, True), (0, 0, 0, True), (8, 2, 4, False), (16, 1, 4, False), (16, 2, 2, False)],
)
def test_alignment(desc: int, driver: int, device: int, good: bool) -> None:
    assert SplitRing.aligned(desc, driver, device) is good


def test_captured_and_restored() -> None:
    """All that a context says of a queue comes back, and the queue goes on where it was."""
    rig = Rig(8, EVENT_IDX, start=65535)
    rig.offer(1)
    rig.run()
    state = rig.queue.capture()
    other = Rig(8, EVENT_IDX)
    other.queue.check(state, EVENT_IDX)
    other.queue.reset(EVENT_IDX)
    other.queue.restore(state)
    assert other.queue.capture() == state
    other.memory.data[:] = rig.memory.data
    other.idx = rig.idx
    other.offer(2)
    other.run()
    assert other.get(USED + 2) == 2


def test_a_buffer_whose_memory_is_away_is_taken_again() -> None:
    """QEMU takes memory away for a moment and maps it anew; nothing may be lost by a look in between."""
    rig = Rig(4)
    rig.offer(2)
    take, faults = rig.consumer.take, [True, False, True]

    def at_times(buffer: Buffer) -> None:
        if faults and faults.pop():
            raise MemoryFault("away")
        take(buffer)

    rig.consumer.take = at_times  # type: ignore[method-assign]
    for completed in (0, 1):
        with pytest.raises(MemoryFault):
            rig.run()
        assert (rig.get(USED + 2), rig.queue.outstanding) == (completed, 0)
    rig.run()
    assert (rig.get(USED + 2), rig.consumer.taken, rig.queue.outstanding) == (2, 2, 0)


def test_a_used_ring_that_is_away_is_written_later() -> None:
    """What was completed is published once, and the interrupt is owed then."""
    rig = Rig(4)
    rig.offer(1)
    write = rig.memory.write
    rig.memory.write = lambda *_: (_ for _ in ()).throw(MemoryFault("away"))  # type: ignore[method-assign]
    with pytest.raises(MemoryFault):
        rig.run()
    assert (rig.get(USED + 2), rig.queue.outstanding, rig.queue.owed) == (0, 1, False)
    rig.memory.write = write  # type: ignore[method-assign]
    rig.queue.settle(rig.memory)
    assert (rig.get(USED + 2), rig.queue.outstanding, rig.queue.owed) == (1, 0, True)
    assert rig.consumer.taken == 1
