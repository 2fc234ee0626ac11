"""The switch inside the server: who gets which frame, in which form, and what happens to too many."""

from __future__ import annotations

import mmap
import struct
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from pymodel.devices.net import segmentation
from pymodel.devices.net.filter import Filter
from pymodel.devices.net.frame_head import FrameHead
from pymodel.devices.net.segmentation import Checked
from pymodel.memory import Bytes
from tests.wire.frames import ALL, BROADCAST, DEADLINE, Hand, ethernet, mac, wants
from vfu_server.networks.frame_port import NoPort
from vfu_server.networks.switch import Switch
from vfu_server.networks.switch_port import SwitchPort
from vfu_server.networks.uplink import Uplink
from vfu_server.vfio.clock import Clock

GUEST_CSUM, GUEST_TSO4 = 1 << 1, 1 << 7
GROUP = bytes.fromhex("01005e000001")


class Net:
    """Functions 1, 2 and so on with addresses mac(1), mac(2) and so on, at one switch."""

    def __init__(self, count: int = 3) -> None:
        self.clock = Clock()
        self.switch = Switch(self.clock)
        self.hands = [Hand(SwitchPort(self.switch)) for _ in range(count)]
        for number, hand in enumerate(self.hands, 1):
            hand.port.configure(0, wants(mac(number)))
            hand.drain()

    def got(self) -> list[list[bytes]]:
        return [hand.drain() for hand in self.hands]


@pytest.fixture
def net() -> Net:
    return Net()


def test_a_function_has_what_is_sent_to_its_address(net: Net) -> None:
    frame = ethernet(mac(2), mac(1), b"hello")
    assert net.hands[0].send(frame)
    assert net.got() == [[], [frame], []]


def test_broadcast_reaches_all_but_its_sender(net: Net) -> None:
    frame = ethernet(BROADCAST, mac(1))
    net.hands[0].send(frame, 3, 12, 40)
    assert net.got() == [[], [frame], [frame]]


def test_a_group_reaches_those_who_asked_for_it(net: Net) -> None:
    net.hands[2].port.configure(0, wants(mac(3), groups={GROUP}))
    frame = ethernet(GROUP, mac(1))
    net.hands[0].send(frame)
    assert net.got() == [[], [], [frame]]


def test_an_unknown_address_is_flooded_to_those_who_take_it(net: Net) -> None:
    net.hands[1].port.configure(0, ALL)
    frame = ethernet(mac(99), mac(1))
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], []]


def test_vlans_are_the_receivers_to_filter(net: Net) -> None:
    net.hands[1].port.configure(0, wants(mac(2), vlans={7}))
    seven, eight = (ethernet(mac(2), mac(1), vlan=vlan) for vlan in (7, 8))
    net.hands[0].send(seven)
    net.hands[0].send(eight)
    assert net.got() == [[], [seven], []]


def test_an_address_of_a_function_needs_no_learning(net: Net) -> None:
    net.hands[2].port.configure(0, ALL)
    frame = ethernet(mac(2), mac(1))
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], []]


def test_an_address_is_learned_from_what_it_sends(net: Net) -> None:
    bridge, watcher = net.hands[1], net.hands[2]
    bridge.port.configure(0, ALL)
    watcher.port.configure(0, ALL)
    bridge.send(ethernet(BROADCAST, mac(50)))
    net.got()
    frame = ethernet(mac(50), mac(1))
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], []]


def test_an_address_moves_with_the_one_who_has_it(net: Net) -> None:
    for hand in net.hands[1:]:
        hand.port.configure(0, ALL)
        hand.send(ethernet(BROADCAST, mac(50)))
    net.got()
    frame = ethernet(mac(50), mac(1))
    net.hands[0].send(frame)
    assert net.got() == [[], [], [frame]]


def test_a_function_can_not_take_a_neighbours_traffic_away(net: Net) -> None:
    # Neither what is a function's own, nor what it would not take itself.
    net.hands[2].port.configure(0, ALL)
    net.hands[2].send(ethernet(BROADCAST, mac(50)))
    net.hands[1].send(ethernet(BROADCAST, mac(50)))
    net.hands[2].send(ethernet(BROADCAST, mac(2)))
    net.got()
    learned, owned = ethernet(mac(50), mac(1)), ethernet(mac(2), mac(1))
    net.hands[0].send(learned)
    net.hands[0].send(owned)
    assert net.got() == [[], [owned], [learned]]


def test_what_was_learned_is_forgotten_after_300_seconds(net: Net) -> None:
    for hand in net.hands[1:]:
        hand.port.configure(0, ALL)
    net.hands[1].send(ethernet(BROADCAST, mac(50)))
    net.got()
    frame = ethernet(mac(50), mac(1))
    net.clock.ahead = 299 * 10**9
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], []]
    net.clock.ahead = 300 * 10**9
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], [frame]]


def test_the_table_is_bounded_and_keeps_those_heard_of_last(net: Net) -> None:
    for hand in net.hands[1:]:
        hand.port.configure(0, ALL)
    bridge = net.hands[1]
    bridge.send(ethernet(BROADCAST, mac(5000)))
    bridge.send(ethernet(BROADCAST, mac(5001)))
    for number in range(6000, 6000 + 4095):
        bridge.send(ethernet(mac(6000), mac(number)))
        bridge.send(ethernet(mac(6000), mac(5001)))
    net.got()
    kept, lost = ethernet(mac(5001), mac(1)), ethernet(mac(5000), mac(1))
    net.hands[0].send(kept)
    net.hands[0].send(lost)
    assert net.got() == [[], [kept, lost], [lost]]


def test_a_frame_does_not_go_back_to_where_it_came_from(net: Net) -> None:
    net.hands[1].port.configure(0, ALL)
    net.hands[1].send(ethernet(BROADCAST, mac(50)))
    net.got()
    net.hands[1].send(ethernet(mac(50), mac(51)))
    net.hands[1].send(ethernet(mac(2), mac(51)))
    assert net.got() == [[], [], []]


def test_two_functions_with_one_address_both_have_it(net: Net) -> None:
    net.hands[2].port.configure(0, wants(mac(2)))
    frame = ethernet(mac(2), mac(1))
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], [frame]]
    net.hands[1].port.configure(0, wants(mac(7)))
    net.hands[0].send(frame)
    assert net.got() == [[], [], [frame]]


def test_any_number_of_functions_with_one_address_have_it() -> None:
    net = Net(30)
    for hand in net.hands[5:]:
        hand.port.configure(0, wants(mac(99)))
    for _ in range(2):
        frame = ethernet(mac(99), mac(1))
        net.hands[0].send(frame)
        assert net.got() == [[]] * 5 + [[frame]] * 25


def test_nothing_comes_to_a_function_after_its_reset(net: Net) -> None:
    frame = ethernet(mac(2), mac(1))
    net.hands[0].send(frame)
    net.hands[1].port.configure(0, None)
    net.hands[0].send(frame)
    assert net.got() == [[], [], []]
    net.hands[1].port.configure(0, wants(mac(2)))
    assert net.got() == [[], [], []]
    net.hands[0].send(frame)
    assert net.got() == [[], [frame], []]


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="none"),
        pytest.param(ethernet(mac(2), mac(1))[:13], id="no whole Ethernet header"),
        pytest.param(ethernet(mac(2), GROUP), id="sent by a group"),
        pytest.param(bytes(70000), id="too long"),
    ],
)
def test_what_is_no_frame_is_dropped_and_counted(net: Net, frame: bytes) -> None:
    assert net.hands[0].send(frame)
    assert net.got() == [[], [], []]
    counters = net.hands[0].port.counters()
    assert (counters["frames-sent"], counters["dropped-sending"]) == (0, 1)


def test_a_bad_header_is_dropped_and_counted(net: Net) -> None:
    frame = ethernet(mac(2), mac(1))
    assert net.hands[0].send(frame, header=struct.pack("<BBHHHHH", 1, 0, 0, 0, 60, 0, 0))
    assert net.got() == [[], [], []]
    assert net.hands[0].port.counters()["dropped-sending"] == 1


def tcp_frame(payload: bytes) -> tuple[bytes, bytes]:
    """(virtio header, frame) of a TCP segment for mac(2) to be cut at 1000; the checksum field left at 0."""
    total = 40 + len(payload)
    network = struct.pack(">BBHHHBBH", 0x45, 0, total, 1, 0, 64, 6, 0) + bytes((10, 0, 0, 1, 10, 0, 0, 2))
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, 0x10, 9, 0, 0)
    header = struct.pack("<BBHHHHH", 1, 1, 54, 1000, 34, 16, 0)
    return header, mac(2) + mac(1) + b"\x08\x00" + network + tcp + payload


def ones_sum(data: bytes) -> int:
    total = sum(int.from_bytes(data[at : at + 2].ljust(2, b"\0")) for at in range(0, len(data), 2))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def test_a_receiver_without_offloads_has_segments_with_checksums(net: Net) -> None:
    header, frame = tcp_frame(bytes(range(250)) * 10)
    net.hands[0].send(frame, 50, header=header)
    _, segments, _ = net.got()
    assert [len(segment) - 54 for segment in segments] == [1000, 1000, 500]
    assert b"".join(segment[54:] for segment in segments) == bytes(range(250)) * 10
    for segment in segments:
        assert ones_sum(segment[14:34]) == 0xFFFF
        pseudo = segment[26:34] + struct.pack(">HH", 6, len(segment) - 34)
        assert ones_sum(pseudo + segment[34:]) == 0xFFFF


def test_a_receiver_with_offloads_has_the_frame_as_it_is(net: Net) -> None:
    for hand in net.hands[1:]:
        hand.port.configure(GUEST_CSUM | GUEST_TSO4, wants(mac(2)))
    header, frame = tcp_frame(bytes(2500))
    net.hands[0].send(frame, header=header)
    first, second = (hand.port.receive() for hand in net.hands[1:])
    assert first is not None
    assert second is not None
    assert first.tobytes() == second.tobytes() == header + frame


def test_what_several_receivers_need_is_done_once(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    cut = segmentation._segments
    cuts = []

    def counted(frame: Bytes, head: FrameHead) -> list[Bytes]:
        cuts.append(frame)
        return cut(frame, head)

    monkeypatch.setattr(segmentation, "_segments", counted)
    header, frame = tcp_frame(bytes(2500))
    net.hands[0].send(BROADCAST + frame[6:], header=header)
    _, second, third = net.got()
    assert len(second) == 3
    assert second == third
    assert len(cuts) == 1


def test_frames_for_a_driver_that_took_more_are_not_left_for_one_that_takes_less(net: Net) -> None:
    receiver = net.hands[1]
    receiver.port.configure(GUEST_CSUM | GUEST_TSO4, wants(mac(2)))
    header, frame = tcp_frame(bytes(2500))
    net.hands[0].send(frame, header=header)
    receiver.port.configure(GUEST_CSUM, wants(mac(2)))
    assert receiver.receive() is None
    assert receiver.port.counters()["dropped-receiving"] == 1


def test_a_full_inbox_loses_what_comes_and_holds_up_nobody(net: Net) -> None:
    for number in range(1500):
        assert net.hands[0].send(ethernet(mac(2), mac(1), number.to_bytes(4)))
    # 1024 frames fit.
    assert net.hands[1].port.counters()["dropped-receiving"] == 476
    got = net.hands[1].drain()
    assert [int.from_bytes(frame[14:18]) for frame in got] == list(range(1024))
    assert net.hands[1].port.counters() == {
        "frames-sent": 0,
        "bytes-sent": 0,
        "frames-received": 1024,
        "bytes-received": 1024 * 60,
        "dropped-sending": 0,
        "dropped-receiving": 476,
    }
    assert net.hands[0].port.counters()["frames-sent"] == 1500


def test_an_inbox_is_bounded_in_bytes(net: Net) -> None:
    for _ in range(100):
        net.hands[0].send(ethernet(mac(2), mac(1), bytes(60000)))
    # 4 MiB of frames of 60014 bytes with their header.
    assert len(net.hands[1].drain()) == 69


def test_an_inbox_takes_the_memory_that_it_uses() -> None:
    net = Net(100)
    before = resident()
    for number in range(1, 101):
        net.hands[0].send(ethernet(mac(number), mac(1)))
    net.hands[1].send(ethernet(mac(1), mac(2)))
    assert resident() - before < 100 * 64 << 10


def resident() -> int:
    """Bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


def test_a_receiver_is_told_until_it_found_nothing(net: Net) -> None:
    hand = net.hands[1]
    assert hand.quiet()
    for _ in range(5):
        net.hands[0].send(ethernet(mac(2), mac(1)))
    assert hand.wait()
    assert len(hand.drain()) == 5
    assert hand.quiet()
    net.hands[0].send(ethernet(mac(2), mac(1)))
    assert hand.wait()
    # Once it knows, it is not told again until it has looked at all.
    assert hand.receive() is not None
    assert hand.port.waits == ()


def test_functions_on_threads_of_their_own_lose_nothing_but_order_between_senders() -> None:
    net = Net(4)
    receiver = net.hands[0]
    senders = range(2, 5)

    def send(number: int) -> None:
        for index in range(300):
            net.hands[number - 1].send(ethernet(mac(1), mac(number), index.to_bytes(4)))

    threads = [threading.Thread(target=send, args=(number,)) for number in senders]
    for thread in threads:
        thread.start()
    got = [receiver.next() for _ in range(900)]
    for thread in threads:
        thread.join(DEADLINE)
    for number in senders:
        own = [int.from_bytes(frame[14:18]) for frame in got if frame[6:12] == mac(number)]
        assert own == list(range(300))


class Outside(NoPort):
    """An uplink's port whose far end is the test. It takes frames while it has `room`."""

    link_up = True

    def __init__(self, offloads: int) -> None:
        super().__init__()
        self.offloads = offloads
        self.sent: list[bytes] = []
        self.came = threading.Condition()
        self.room = True
        self.refused = 0
        self.incoming: list[Bytes] = []

    def send(self, frame: Sequence[Bytes]) -> bool:
        with self.came:
            if self.room:
                self.sent.append(b"".join(part.tobytes() for part in frame))
            self.refused += not self.room
            self.came.notify_all()
            return self.room

    def configure(self, features: int, receive: Filter | None) -> None:
        self.features = features
        super().configure(features, receive)

    def _read(self) -> Bytes | None:
        return self.incoming.pop(0) if self.incoming else None

    def tell(self) -> None:
        self._wake()

    def wait(self, count: int) -> list[bytes]:
        with self.came:
            assert self.came.wait_for(lambda: len(self.sent) >= count, DEADLINE)
            return self.sent


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


def uplink(net: Net, opened: ExitStack, offloads: int = 0) -> tuple[Outside, Uplink]:
    port = Outside(offloads)
    link = Uplink(port, net.switch)
    opened.callback(link.close)
    return port, link


def test_what_is_for_nobody_inside_goes_out(net: Net, opened: ExitStack) -> None:
    outside, _ = uplink(net, opened)
    inside, out = ethernet(mac(2), mac(1)), ethernet(mac(99), mac(1))
    net.hands[0].send(inside)
    net.hands[0].send(out)
    assert outside.wait(1) == [bytes(12) + out]
    assert net.got() == [[], [inside], []]


def test_what_comes_in_is_for_its_receiver_and_teaches_where_the_sender_is(
    net: Net, opened: ExitStack
) -> None:
    outside, _ = uplink(net, opened)
    net.hands[2].port.configure(0, ALL)
    frame = ethernet(mac(1), mac(99))
    outside.incoming.append(np.frombuffer(bytearray(bytes(12) + frame), np.uint8))
    outside.tell()
    assert net.hands[0].next() == frame
    answer = ethernet(mac(99), mac(1))
    net.hands[0].send(answer)
    assert outside.wait(1) == [bytes(12) + answer]
    assert net.got() == [[], [], []]


def test_what_comes_in_and_is_no_frame_is_counted(net: Net, opened: ExitStack) -> None:
    outside, link = uplink(net, opened)
    group = ethernet(mac(1), b"\x01" + mac(99)[1:])
    outside.incoming.append(np.frombuffer(bytearray(bytes(12) + group), np.uint8))
    outside.incoming.append(np.frombuffer(bytearray(bytes(12) + ethernet(mac(1), mac(99))), np.uint8))
    outside.tell()
    assert net.hands[0].next() == ethernet(mac(1), mac(99))
    assert link.counters()["dropped-malformed"] == 1


def test_an_uplink_without_offloads_has_segments(net: Net, opened: ExitStack) -> None:
    outside, _ = uplink(net, opened)
    header, frame = tcp_frame(bytes(2500))
    net.hands[0].send(mac(99) + frame[6:], header=header)
    sent = outside.wait(3)
    assert [len(part) - 12 - 54 for part in sent] == [1000, 1000, 500]
    assert all(part[:12] == bytes(12) for part in sent)


def test_an_uplink_with_offloads_is_asked_for_them(net: Net, opened: ExitStack) -> None:
    outside, _ = uplink(net, opened, offloads=GUEST_CSUM | GUEST_TSO4)
    assert outside.features == GUEST_CSUM | GUEST_TSO4
    header, frame = tcp_frame(bytes(2500))
    net.hands[0].send(mac(99) + frame[6:], header=header)
    assert outside.wait(1) == [header + mac(99) + frame[6:]]


def test_an_uplink_that_takes_nothing_holds_up_nobody(net: Net, opened: ExitStack) -> None:
    outside, link = uplink(net, opened)
    outside.room = False
    frames = [ethernet(mac(99), mac(1), number.to_bytes(4)) for number in range(1200)]
    assert net.hands[0].send(frames[0])
    with outside.came:
        assert outside.came.wait_for(lambda: outside.refused > 0, DEADLINE)
    for frame in frames[1:]:
        assert net.hands[0].send(frame)
    # One is held, 1024 are in the inbox.
    assert link.counters()["dropped-queueing"] == 175
    inside = ethernet(mac(2), mac(1))
    net.hands[0].send(inside)
    assert net.hands[1].next() == inside
    outside.room = True
    outside.tell()
    assert [part[12:] for part in outside.wait(1025)] == frames[:1025]


def test_a_receiver_that_there_is_no_memory_for_loses_the_frame_alone(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    carried, failures = Checked.carried, [MemoryError()]

    def once(frame: Checked, features: int) -> list[Bytes]:
        if failures:
            raise failures.pop()
        return carried(frame, features)

    monkeypatch.setattr(Checked, "carried", once)
    header, frame = tcp_frame(bytes(2500))
    frame = BROADCAST + frame[6:]
    assert net.hands[0].send(frame, header=header)
    assert [len(got) for got in net.got()] == [0, 0, 3]
    assert [hand.port.counters()["dropped-receiving"] for hand in net.hands] == [0, 1, 0]
    assert net.hands[0].port.counters()["dropped-sending"] == 0
    assert net.hands[0].send(frame, header=header)
    assert [len(got) for got in net.got()] == [0, 3, 3]
