"""The driver's half of a split queue, against a device that the test plays."""

from __future__ import annotations

import numpy as np
import pytest

from tests.wire.client.played_device import PlayedDevice
from vfu_client.vfio.memory import GuestMemory, OutOfMemoryError
from vfu_client.virtio.driver_queue import QueueBrokenError, QueueFullError
from vfu_client.virtio.split import SplitQueue


class Device(PlayedDevice[SplitQueue]):
    """Reads what the driver made available, and puts used entries where the standard wants them."""

    def __init__(self, size: int, **options: bool) -> None:
        super().__init__(SplitQueue, size, **options)
        self.used_idx = 0

    def use(self, head: int, length: int) -> None:
        used = self.queue.used_buffer.view
        at = 4 + 8 * (self.used_idx % self.size)
        used[at : at + 8] = np.frombuffer(head.to_bytes(4, "little") + length.to_bytes(4, "little"), np.uint8)
        self.used_idx = (self.used_idx + 1) & 0xFFFF
        used[2:4] = np.frombuffer(self.used_idx.to_bytes(2, "little"), np.uint8)

    def word(self, buffer: str, offset: int, value: int | None = None) -> int:
        view = getattr(self.queue, buffer).view[offset : offset + 2].view("<u2")
        if value is not None:
            view[0] = value
        return int(view[0])


def test_a_chain_is_laid_out_as_the_standard_says() -> None:
    device = Device(4)
    head = device.queue.add([(0x1000, 24), (0x2000, 8)], [(0x3000, 16)])
    chain = []
    at: int | None = head
    while at is not None:
        address, length, flags, following = device.queue.desc[at].tolist()
        chain.append((address, length, flags))
        at = following if flags & 1 else None
    assert chain == [(0x1000, 24, 1), (0x2000, 8, 1), (0x3000, 16, 2)]
    assert device.word("avail_buffer", 2) == 1
    assert device.word("avail_buffer", 4) == head


def test_indirect_chains_take_one_slot() -> None:
    device = Device(2, indirect=True)
    heads = [device.queue.add([(1, 1), (2, 2)], [(3, 3)]) for _ in range(2)]
    address, length, flags, _ = device.queue.desc[heads[0]].tolist()
    assert (length, flags) == (48, 4)
    table = device.memory.buffer(address, length).view.view(device.queue.desc.dtype)
    assert table["flags"].tolist() == [1, 1, 2]
    assert table["next"].tolist()[:2] == [1, 2]
    with pytest.raises(QueueFullError):
        device.queue.add([(1, 1)])


def test_slots_come_back_and_indices_wrap() -> None:
    device = Device(4)
    for turn in range(70_000):
        head = device.queue.add([(0, 1)], [(0, 1)])
        device.use(head, turn & 0xFF)
        (done,) = device.queue.collect()
        assert (done.head, done.length) == (head, turn & 0xFF)
    assert device.queue.in_flight == 0


def test_kick_without_event_idx_heeds_the_flag() -> None:
    device = Device(4)
    device.queue.add([(0, 1)])
    assert device.queue.kick()
    device.word("used_buffer", 0, 1)
    device.queue.add([(0, 1)])
    assert not device.queue.kick()
    assert device.kicks == [(3, 1)]
    assert device.queue.kick(force=True)


def test_kick_with_event_idx_heeds_the_event() -> None:
    device = Device(8, event_idx=True)
    event = 4 + 8 * 8
    device.queue.add([(0, 1)])
    assert device.queue.kick()
    device.word("used_buffer", event, 3)
    device.queue.add([(0, 1)])
    assert not device.queue.kick()
    for _ in range(3):
        device.queue.add([(0, 1)])
    assert device.queue.kick()


def test_wait_asks_for_the_interrupt_and_takes_it() -> None:
    device = Device(4, event_idx=True)
    head = device.queue.add([(0, 1)])
    with pytest.raises(TimeoutError, match="1 in flight"):
        device.queue.wait(0.01)
    assert device.word("avail_buffer", 4 + 2 * 4) == 0
    device.use(head, 0)
    assert [done.head for done in device.queue.wait(0)] == [head]
    with pytest.raises(TimeoutError):
        device.queue.wait(0.01)
    assert device.word("avail_buffer", 4 + 2 * 4) == 1


def test_a_used_entry_out_of_nowhere() -> None:
    device = Device(4)
    device.use(2, 0)
    with pytest.raises(QueueBrokenError):
        device.queue.collect()
    assert device.queue.collect() == []


def test_memory_comes_back_whole() -> None:
    memory = GuestMemory()
    region = memory.add_region(4096, 0x1000)
    buffers = [memory.allocate(size, align) for size, align in ((1, 1), (100, 16), (256, 256), (7, 2))]
    for buffer, align in zip(buffers, (1, 16, 256, 2), strict=True):
        assert buffer.address % align == 0
    with pytest.raises(OutOfMemoryError):
        memory.allocate(4096)
    for buffer in (buffers[2], buffers[0], buffers[3], buffers[1]):
        memory.free(buffer)
    assert region.free_ranges == [(0x1000, 0x2000)]
    with pytest.raises(LookupError):
        memory.buffer(0x1FFF, 2)
