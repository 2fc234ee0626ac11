"""Frames between VFs without the interpreter: who has them, who loses them, and what may happen meanwhile."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.wire.frames import BROADCAST, ethernet, mac, received
from tests.wire.networks.in_process import Served, served
from vfu_client.drivers.net import FEATURES, Header, NetDriver
from vfu_server.datapath import COMPILED

ONE, TWO, THREE = mac(1), mac(2), mac(3)
GROUP = b"\x01\0\x5e\0\0\x07"
CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4 = 0, 1, 7, 11
OFFLOADS = FEATURES | {CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4}


@pytest.fixture
def rig(monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    with served(monkeypatch, vfs=3) as found:
        yield found


@contextlib.contextmanager
def three(rig: Served, **options: Any) -> Iterator[tuple[NetDriver, NetDriver, NetDriver]]:
    """VF 1 to 3, promiscuous no more. The options are those of VF 2."""
    with rig.driver(1) as one, rig.driver(2, **options) as two, rig.driver(3) as other:
        for driver in (one, two, other):
            driver.set_mode(0, False)
        yield one, two, other


def by_engines(rig: Served, count: int) -> bool:
    """Whether of so many frames few were Python's work: those that met a thread with another message."""
    return max(rig.asked.values()) < count // 4 or not COMPILED


def test_all_kinds_of_frames_reach_those_who_want_them(rig: Served) -> None:
    with three(rig) as (one, two, other):
        other.set_mac_table([], [GROUP])
        two.set_vlan(7)
        for number in range(60):
            data = bytes([number]) * (20 * number)
            tagged = ethernet(TWO, ONE, data, vlan=7)
            for frame in (
                tagged,
                ethernet(TWO, ONE, data, vlan=8),
                ethernet(BROADCAST, ONE, data),
                ethernet(GROUP, ONE, data),
                ethernet(mac(99), ONE, data),
                ethernet(THREE, ONE, data),
            ):
                one.send(frame)
            assert received(two, 2) == [tagged, ethernet(BROADCAST, ONE, data)]
            assert received(other, 3) == [ethernet(to, ONE, data) for to in (BROADCAST, GROUP, THREE)]
            other.send(ethernet(ONE, THREE, data))
            assert received(one) == [ethernet(ONE, THREE, data)]
        assert by_engines(rig, 360)
    counts = {name: port.counters() for name, port in rig.ports.items()}
    assert [counts[name]["frames-sent"] for name in ("vf1", "vf2", "vf3")] == [360, 0, 60]
    assert [counts[name]["frames-received"] for name in ("vf1", "vf2", "vf3")] == [60, 120, 180]
    assert all(count["dropped-sending"] == count["dropped-receiving"] == 0 for count in counts.values())


def segment(size: int, *, hint: int = 0) -> tuple[Header, bytes]:
    """A TCP segment from VF 1 to VF 2 that is to be cut at 1000 bytes."""
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 40 + size, 1, 0, 64, 6, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 9, 0, 0)
    data = bytes(range(256)) * (size // 256)
    return Header(1, 1, hint, 1000, 34, 16), TWO + ONE + b"\x08\0" + ip + tcp + data


@pytest.mark.parametrize("large", [True, False], ids=["whole", "cut"])
def test_segments_are_left_to_who_takes_them(rig: Served, large: bool) -> None:
    """With a true header, whatever the driver's hint was; else they are cut in Python."""
    with (
        rig.driver(1, features=OFFLOADS) as one,
        rig.driver(2, features=OFFLOADS if large else FEATURES) as two,
    ):
        header, frame = segment(32768, hint=17)
        for _ in range(60):
            one.send(frame, header=header)
            found = two.receive()
            while not large and len(found) < 33:
                found += two.receive()
            if large:
                (whole,) = found
                assert whole.data == frame
                assert whole[1:7] == (1, 1, 54, 1000, 34, 16)
            else:
                assert b"".join(part.data[54:] for part in found) == frame[54:]
                assert all(part[1:7] == (0, 0, 0, 0, 0, 0) for part in found)
        assert by_engines(rig, 60) or not large


def test_a_bad_header_is_dropped_and_counted(rig: Served) -> None:
    with rig.driver(1, features=OFFLOADS) as one, rig.driver(2, features=OFFLOADS) as two:
        header, frame = segment(4096)
        one.send(frame[:23] + b"\x11" + frame[24:], header=header)  # UDP, it says
        one.send(ethernet(TWO, GROUP))
        one.send(ethernet(TWO, ONE))
        assert received(two) == [ethernet(TWO, ONE)]
        assert rig.ports["vf1"].counters()["dropped-sending"] == 2


def test_who_has_no_buffers_loses_its_own_frames_and_stalls_nobody(rig: Served) -> None:
    with three(rig, fill=False) as (one, two, other):
        for number in range(2000):
            one.send(ethernet(TWO, ONE, number.to_bytes(4)))
            one.send(ethernet(BROADCAST, ONE, number.to_bytes(4)))
            if number % 50 == 49:
                late = [
                    ethernet(BROADCAST, ONE, count.to_bytes(4)) for count in range(number - 49, number + 1)
                ]
                assert received(other, 50) == late
        two.send(ethernet(THREE, TWO))
        assert received(other) == [ethernet(THREE, TWO)]
        one.flush()
        rig.asked["receive"] = 0  # who has no buffers is not asked for any
        assert by_engines(rig, 4000)
        assert (rig.ports["vf1"].counters()["frames-sent"], rig.lost(3)) == (4000, 0)
        two.refill()
        # The first ones waited, 256 in the function or 1024 at the switch.
        found = [frame.data for frame in two.receive()]
        assert found[:2] == [ethernet(to, ONE, bytes(4)) for to in (TWO, BROADCAST)]


@contextlib.contextmanager
def flood(*sends: Callable[[], None]) -> Iterator[None]:
    """Call each again and again, on a thread of its own."""
    ended = threading.Event()
    failures: list[BaseException] = []

    def again(send: Callable[[], None]) -> None:
        try:
            while not ended.is_set():
                send()
        except BaseException as error:  # noqa: BLE001 - told below
            failures.append(error)

    threads = [threading.Thread(target=again, args=(send,)) for send in sends]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join()
    assert not failures


A, B = mac(50), mac(51)


def test_a_filter_changes_between_frames(rig: Served) -> None:
    """Under a flood for two addresses, which a third VF takes in turn."""
    with three(rig) as (one, two, other):

        def send(driver: NetDriver, origin: bytes) -> None:
            for to in (A, B) * 20:
                driver.send(ethernet(to, origin), kick=False)
            driver.transmitters[0].kick()

        with flood(lambda: send(one, ONE), lambda: send(two, TWO)):
            for number in range(30):
                wanted = (A, B)[number % 2]
                other.set_mac_table([wanted], [])
                came = [frame.data[:6] for frame in other.poll()]
                while came.count(wanted) < 50:
                    came += [frame.data[:6] for frame in other.receive()]
                # What waited for the old filter comes first, then none of it.
                assert set(came[came.index(wanted) :]) == {wanted}


def test_resets_under_a_flood(rig: Served) -> None:
    """Also a broadcast one; each life of the receiver gets frames."""
    with rig.driver(1) as one, rig.driver(2) as two:

        def send(driver: NetDriver, to: bytes, origin: bytes) -> Callable[[], None]:
            return lambda: driver.send(ethernet(to, origin, bytes(500)))

        with flood(send(one, THREE, ONE), send(two, BROADCAST, TWO)):
            for _ in range(20):
                with rig.driver(3) as other:
                    assert other.receive()


def test_a_port_closes_under_a_flood(rig: Served) -> None:
    """Nobody is told through a descriptor that may be another's by then; the sender's other frames arrive."""
    with three(rig) as (one, two, _):
        with flood(lambda: one.send(ethernet(BROADCAST, ONE))):
            received_some(two, 50)
            rig.ports["vf3"].close()
            received_some(two, 50)
        one.flush()
    assert rig.ports["vf3"].waits == ()


def received_some(driver: NetDriver, count: int) -> None:
    while count > 0:
        count -= len(driver.receive())
