"""Where a packed queue stands, as plain values: given back as taken, and refused where it cannot be."""

from __future__ import annotations

import pytest

from pymodel.errors import InvalidField
from pymodel.migration.state import QueueState
from pymodel.queue.packed import PackedRing
from pymodel.queue.virtqueue import Virtqueue
from tests.model.queue.packed_rig import (
    DATA,
    EVENT_IDX,
    NEXT,
    PACKED,
    WRITE,
    Rig,
)


@pytest.mark.parametrize("start", [0x8000, 0x8006, 0x0002, 0x0006])
def test_captured_and_restored(start: int) -> None:
    rig = Rig(7, EVENT_IDX, start=start)
    rig.offer((DATA, 1, NEXT), (DATA, 1, WRITE))
    rig.run()
    state = rig.queue.capture()
    assert (state.last_avail, state.last_used) == (rig.position, rig.position)
    assert (state.last_avail_idx, state.used_idx) == (0, 0)
    other = Rig(7, EVENT_IDX)
    other.queue.check(state, other.features)
    other.queue.reset(other.features)
    other.queue.restore(state)
    assert other.queue.capture() == state
    other.memory.data[:] = rig.memory.data
    other.at, other.wrap = rig.at, rig.wrap
    for number in range(7):
        other.offer_writable(number)
    other.run()
    assert other.consumer.taken == 7
    assert other.queue.ring.used == other.position


@pytest.mark.parametrize(
    ("size", "last_avail", "last_used", "good"),
    [
        (7, 0x8000, 0x8000, True),
        (7, 0x8006, 0x8000, True),
        (7, 0x0000, 0x8000, True),  # a whole lap outstanding
        (7, 0x8003, 0x0003, True),
        (7, 0x0001, 0x8000, False),  # more than a lap
        (7, 0x8000, 0x8001, False),  # used before it was available
        (7, 0x8007, 0x8000, False),
        (7, 0x8000, 0x0007, False),
        (7, 0xFFFF, 0xFFFF, False),
        (1, 0x0000, 0x8000, True),
        (1, 0x8001, 0x8001, False),
    ],
)
def test_positions(size: int, last_avail: int, last_used: int, *, good: bool) -> None:
    queue = Virtqueue(3, 256)
    state = QueueState(3, size, enable=1, notify_off=3, last_avail=last_avail, last_used=last_used)
    if good:
        queue.check(state, PACKED)
    else:
        with pytest.raises(InvalidField, match="position"):
            queue.check(state, PACKED)
    if size == 1:
        queue.check(state, 1 << 32)  # nothing that a split ring has


@pytest.mark.parametrize(
    ("features", "size", "good"),
    [
        (0, 7, False),
        (0, 8, True),
        (PACKED, 7, True),
        (PACKED, 256, True),
        (PACKED, 257, False),
        (PACKED, 0, False),
    ],
)
def test_sizes_in_a_state(features: int, size: int, *, good: bool) -> None:
    queue = Virtqueue(3, 256)
    state = QueueState(3, size, enable=1, notify_off=3)
    if good:
        queue.check(state, features)
    else:
        with pytest.raises(InvalidField, match=r"size|descriptors"):
            queue.check(state, features)


@pytest.mark.parametrize(
    ("features", "data", "good"),
    [
        (0, 0, True),
        (0, 0x103, True),
        (0, 3, False),
        (1 << 39, 0x103, True),
        (1 << 39, 0, False),
        (1 << 39, 0x104, False),
    ],
)
def test_notification_data_in_a_state(features: int, data: int, *, good: bool) -> None:
    """A driver that notifies with it must go on to be understood."""
    queue = Virtqueue(3, 256)
    state = QueueState(3, 8, enable=1, notify_off=3, notif_config_data=data)
    if good:
        queue.check(state, features)
    else:
        with pytest.raises(InvalidField, match="notif"):
            queue.check(state, features)


@pytest.mark.parametrize(
    ("desc", "driver", "device", "good"),
    [(16, 4, 8, True), (0, 0, 0, True), (8, 4, 4, False), (16, 2, 4, False), (16, 4, 2, False)],
)
def test_alignment(desc: int, driver: int, device: int, *, good: bool) -> None:
    assert PackedRing.aligned(desc, driver, device) is good


@pytest.mark.parametrize("size", [0, 1, 3, 100, 32768, 32769, 65535])
def test_any_size_up_to_32768(size: int) -> None:
    assert PackedRing.accepts_size(size) is (0 < size <= 32768)
