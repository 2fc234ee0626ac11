"""Frames that do not fit into what the driver made available: dropped and counted, and the next ones arrive.

Each test on all kinds of rings, with and without event indices. Nobody kicks: a driver whose ring is full of
buffers has no reason to.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.model.devices.net.rig import NetRig, ethernet
from vfu_client.drivers.net import FEATURES
from vfu_client.virtio.function import KNOWN_FEATURES

EVENT_IDX, RING_PACKED, IN_ORDER = 29, 34, 35
MRG_RXBUF, RSS = 15, 60
KEY = bytes(40)

RINGS = pytest.mark.parametrize(
    "without",
    [
        frozenset({RING_PACKED, IN_ORDER}),
        frozenset({RING_PACKED}),
        frozenset({IN_ORDER}),
        frozenset(),
    ],
    ids=["split", "split-order", "packed", "packed-order"],
)
EVENTS = pytest.mark.parametrize("events", [frozenset(), frozenset({EVENT_IDX})], ids=["event-idx", "flags"])
SMALL = ethernet(b"small")


def rings(without: frozenset[int], events: frozenset[int]) -> frozenset[int]:
    """What the driver takes of the rings' features."""
    return KNOWN_FEATURES - without - events


def hold_timers(rig: NetRig, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[float]]:
    """Have timers run when the test says so; that tells their times in seconds."""
    late: list[tuple[float, Callable[[], None]]] = []
    monkeypatch.setattr(rig.world.hosts["vf1"], "after", lambda *timer: late.append(timer))

    def over() -> list[float]:
        due = late.copy()
        late.clear()
        for _, call in due:
            call()
        rig.work()
        return [seconds for seconds, _ in due]

    return over


@RINGS
@EVENTS
@pytest.mark.parametrize("burst", [1, 2, 300])
def test_too_long_for_a_buffer(without: frozenset[int], events: frozenset[int], burst: int) -> None:
    """Buffers of 1526 bytes, all there are: 1514 bytes of frame fit behind the header, 1515 do not."""
    with NetRig(
        features=FEATURES - {MRG_RXBUF},
        ring_features=rings(without, events),
        buffer_size=1526,
        queue_size=16,
    ) as rig:
        fits, longer = ethernet(bytes(1514 - 14)), ethernet(bytes(1515 - 14))
        for turn in range(1, 40):
            rig.put(*[longer] * burst)
            rig.put(SMALL)
            assert rig.got() == [SMALL]
            rig.put(longer, SMALL, longer, fits)
            assert rig.got() == [SMALL, fits]
            assert rig.counters["rx-dropped-buffer-too-small"] == (burst + 2) * turn


@RINGS
@EVENTS
def test_longer_than_the_whole_ring(without: frozenset[int], events: frozenset[int]) -> None:
    """4 x 2048 bytes, and the driver can add no more: 9014 bytes never fit, and nothing waits for that."""
    with NetRig(ring_features=rings(without, events), buffer_size=2048, queue_size=4) as rig:
        jumbo, half = ethernet(bytes(9000)), ethernet(bytes(6000))
        for turn in range(1, 20):
            rig.put(jumbo)
            rig.put(SMALL)
            assert rig.got() == [SMALL]
            rig.put(jumbo, jumbo, SMALL, half)
            assert rig.got() == [SMALL, half]
            assert rig.counters["rx-dropped-buffer-too-small"] == 3 * turn


@RINGS
@EVENTS
def test_the_driver_fills_its_ring_and_that_is_not_enough(
    without: frozenset[int], events: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it could add buffers the frame waits, and those behind it; when it has added all, no longer."""
    with NetRig(ring_features=rings(without, events), buffer_size=2048, queue_size=4) as rig:
        hold_timers(rig, monkeypatch)
        rig.put(SMALL, ethernet(bytes(9000)), SMALL)
        for _ in range(2):
            # The buffers of the first are added, with a kick.
            assert rig.got() == [SMALL]
        assert rig.got() == []
        assert rig.counters["rx-dropped-buffer-too-small"] == 1
        assert rig.function.outstanding == 0


@RINGS
@EVENTS
def test_the_driver_adds_nothing(
    without: frozenset[int], events: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As Linux does before it has received something: a frame waits 0.1 s for buffers, and then the next ones
    have those that there are. Further ones are dropped at once, until one over several buffers got through.
    """
    with NetRig(ring_features=rings(without, events), buffer_size=2048, queue_size=16, fill=False) as rig:
        over = hold_timers(rig, monkeypatch)
        jumbo, two = ethernet(bytes(9000)), ethernet(bytes(3000))
        rig.driver.refill(count=4)
        rig.put(jumbo, SMALL)
        assert rig.driver.poll(refill=False) == []
        assert over() == [0.1]
        assert [frame.data for frame in rig.driver.poll(refill=False)] == [SMALL]
        rig.put(jumbo, jumbo, two)
        assert [frame.data for frame in rig.driver.poll(refill=False)] == [two]
        assert rig.counters["rx-dropped-buffer-too-small"] == 3
        rig.put(two)
        assert rig.driver.poll(refill=False) == []
        rig.driver.refill(count=2)
        assert [frame.data for frame in rig.driver.poll(refill=False)] == [two]
        assert over() == [0.1]  # of a frame that got through: nothing comes of it
        rig.put(two)
        rig.put(SMALL)
        assert rig.driver.poll(refill=False) == []
        assert over() == [0.1]
        assert [frame.data for frame in rig.driver.poll(refill=False)] == [SMALL]
        assert rig.counters["rx-dropped-buffer-too-small"] == 4
        assert rig.function.outstanding == 0


@RINGS
def test_what_is_steered_elsewhere_holds_nobody_up(
    without: frozenset[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame waits for buffers of the second queue, and a command sends all to the first."""
    with NetRig(
        queues=2,
        pairs=2,
        ring_features=rings(without, frozenset()),
        features=FEATURES | {RSS},
        buffer_size=2048,
        queue_size=16,
        fill=False,
    ) as rig:
        hold_timers(rig, monkeypatch)
        rig.driver.set_rss([1], types=0x3F, key=KEY, unclassified=1, pairs=2)
        rig.driver.refill(1, count=2)
        rig.driver.refill(0, count=8)
        jumbo = ethernet(bytes(9000))
        rig.put(jumbo, SMALL)
        assert rig.got(1) == []
        rig.driver.set_pairs(1)
        assert rig.got(0) == [jumbo, SMALL]
        rig.driver.set_rss([1], types=0x3F, key=KEY, unclassified=1, pairs=2)
        rig.put(SMALL)
        assert rig.got(1) == [SMALL]


def test_a_reset_ends_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was waited for in an earlier life has no say in this one."""
    with NetRig(buffer_size=2048, queue_size=16, fill=False) as rig:
        over = hold_timers(rig, monkeypatch)
        two = ethernet(bytes(3000))
        rig.driver.refill(count=1)
        rig.put(two)
        rig.restart(buffer_size=2048, queue_size=16, fill=False)
        assert over() == [0.1]
        rig.driver.refill(count=1)
        rig.put(two)
        rig.driver.refill(count=1)
        assert rig.got() == [two]
