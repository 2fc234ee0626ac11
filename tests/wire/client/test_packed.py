"""The driver's half of a packed queue, against a device that the test plays."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from tests.wire.client.played_device import PlayedDevice
from vfu_client.virtio.driver_queue import QueueBrokenError, QueueFullError
from vfu_client.virtio.packed import PackedQueue

NEXT, WRITE, INDIRECT, AVAIL, USED = 1, 2, 4, 0x80, 0x8000


class Device(PlayedDevice[PackedQueue]):
    """Puts used descriptors where the standard wants them."""

    def __init__(self, size: int, **options: bool) -> None:
        super().__init__(PackedQueue, size, **options)
        self.at, self.wrap = 0, 1

    def use(self, buffer_id: int, length: int, skip: int = 1) -> None:
        flags = (AVAIL | USED if self.wrap else 0) | (WRITE if length else 0)
        raw = np.frombuffer(struct.pack("<IHH", length, buffer_id, flags), np.uint8)
        self.queue.desc_buffer.view[16 * self.at + 8 : 16 * self.at + 16] = raw
        self.at += skip
        if self.at >= self.size:
            self.at, self.wrap = self.at - self.size, self.wrap ^ 1

    def entry(self, slot: int) -> tuple[int, int, int, int]:
        """Address, length, id, flags."""
        raw = self.queue.desc_buffer.view[16 * slot : 16 * slot + 16].tobytes()
        found: tuple[int, int, int, int] = struct.unpack("<QIHH", raw)
        return found


def test_a_chain_is_laid_out_as_the_standard_says() -> None:
    device = Device(4)
    first = device.queue.add([(0x1000, 24), (0x2000, 8)], [(0x3000, 16)])
    assert [device.entry(slot) for slot in range(3)] == [
        (0x1000, 24, first, NEXT | AVAIL),
        (0x2000, 8, first, NEXT | AVAIL),
        (0x3000, 16, first, WRITE | AVAIL),
    ]
    with pytest.raises(QueueFullError):
        device.queue.add([(1, 1), (2, 2)])
    device.use(first, 16, skip=3)
    assert [(done.head, done.length) for done in device.queue.collect()] == [(first, 16)]
    second = device.queue.add([(5, 5)], [(6, 6)])
    assert device.entry(3) == (5, 5, second, NEXT | AVAIL)
    assert device.entry(0) == (6, 6, second, WRITE | USED)  # the next lap


def test_tables_have_no_next() -> None:
    device = Device(2, indirect=True)
    head = device.queue.add([(1, 1), (2, 2)], [(3, 3)])
    address, length, buffer_id, flags = device.entry(0)
    assert (length, buffer_id, flags) == (48, head, INDIRECT | AVAIL)
    table = device.memory.buffer(address, length).view.tobytes()
    assert list(struct.iter_unpack("<QIHH", table)) == [(1, 1, 0, 0), (2, 2, 0, 0), (3, 3, 0, WRITE)]


def test_a_length_counts_with_the_write_flag_only() -> None:
    device = Device(4)
    head = device.queue.add([(0, 1)])
    device.queue.desc[0] = (0, 77, head, AVAIL | USED)
    assert [(done.head, done.length) for done in device.queue.collect()] == [(head, 0)]


@pytest.mark.parametrize("size", [1, 3, 4])
def test_laps(size: int) -> None:
    device = Device(size)
    for turn in range(1000):
        head = device.queue.add([], [(0, 1)])
        device.use(head, 1 + turn % 7)
        assert device.queue.device_used_idx == turn + 1
        assert [(done.head, done.length) for done in device.queue.collect()] == [(head, 1 + turn % 7)]
        assert device.queue.collect() == []
    assert device.queue.in_flight == 0


def test_a_batch_in_order() -> None:
    """One used descriptor with the last id: those before it were used completely."""
    device = Device(8, in_order=True)
    heads = [
        device.queue.add([], [(0, 16)]),
        device.queue.add([(0, 1), (1, 1)]),
        device.queue.add([], [(0, 9)]),
    ]
    late = device.queue.add([], [(0, 5)])
    device.use(heads[2], 4, skip=4)
    assert device.queue.device_used_idx == 3
    assert [(done.head, done.length) for done in device.queue.collect()] == list(
        zip(heads, (16, 0, 4), strict=True)
    )
    device.use(late, 5)
    assert [done.head for done in device.queue.collect()] == [late]


@pytest.mark.parametrize(("flags", "kicked"), [(0, True), (1, False)])
def test_kicks_heed_the_flags(flags: int, *, kicked: bool) -> None:
    device = Device(4)
    device.queue.device_event[1] = flags
    device.queue.add([(0, 1)])
    assert device.queue.kick() is kicked
    assert device.queue.kick(force=True)
    assert device.kicks[-1] == (3, 0x8001)


@pytest.mark.parametrize("event", [offset | wrap for offset in range(4) for wrap in (0, 0x8000)])
def test_kicks_heed_the_event(event: int) -> None:
    """A kick if the descriptor that the device named is among those added since the last one."""
    device = Device(4, event_idx=True)
    device.queue.device_event[:] = (event, 2)
    for turn in range(6):
        positions = []
        for _ in range(1 + turn % 2):
            positions.append(device.queue.next)
            device.use(device.queue.add([(0, 1)]), 0)
        assert device.queue.kick() == (event in positions), f"turn {turn}"
        device.queue.collect()


def test_wait_asks_for_the_interrupt() -> None:
    device = Device(4, event_idx=True)
    for expected in (0x8000, 0x8001, 0x8002, 0x8003, 0x0000):
        head = device.queue.add([], [(0, 1)])
        with pytest.raises(TimeoutError, match="1 in flight"):
            device.queue.wait(0.01)
        assert device.queue.driver_event.tolist() == [expected, 2]
        device.use(head, 1)
        assert [done.head for done in device.queue.wait(0)] == [head]


def test_a_used_descriptor_out_of_nowhere() -> None:
    device = Device(4)
    device.queue.add([(0, 1)])
    device.use(2, 0)
    with pytest.raises(QueueBrokenError):
        device.queue.collect()
