"""The network device between its rings and a port: frames both ways, link, announcing, resets."""

from __future__ import annotations

import struct

import pytest

from pymodel.devices.net.device import NetDevice
from pymodel.devices.net.port import NetBackend
from tests.model.devices.net.rig import BROADCAST, MAC, PEER, FakePort, NetRig, ethernet, udp
from vfu_client.drivers.net import FEATURES, Header
from vfu_client.virtio.function import KNOWN_FEATURES, NegotiationError

CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, GUEST_ECN, MRG_RXBUF = 0, 1, 7, 11, 9, 15
CTRL_VQ, CTRL_RX, GUEST_ANNOUNCE, MQ, HASH_REPORT, RSS = 17, 18, 21, 22, 57, 60
CTRL_GUEST_OFFLOADS, MTU, CTRL_VLAN = 2, 3, 19
NEEDS_CSUM, TCPV4 = 1, 1
SEGMENTED = struct.pack("<BBHHHHH", NEEDS_CSUM, TCPV4, 54, 100, 34, 16, 0)
LINK_UP, ANNOUNCE = 1, 2
KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


# -- what is offered -----------------------------------------------------------------------------------


def test_identity() -> None:
    """Class 0x020000, device type 1; queues: pairs of 256, then the control queue of 64."""
    with NetRig(queues=3) as rig:
        assert rig.pci.device_type == 1
        assert rig.pci.function.config_read(0x8, 4) >> 8 == 0x020000
        assert rig.device.queue_sizes == (256,) * 6 + (64,)
        raw = rig.pci.config_bytes()
    fields = struct.unpack("<6sHHHIBBHI", raw)
    # MAC, status, pairs, MTU, speed, duplex, RSS: key, table, hash types.
    assert fields == (MAC, LINK_UP, 3, 0, 10_000, 1, 40, 128, 0x3F)


def test_no_indirection_table_without_rss() -> None:
    """Linux up to 6.8 goes by the table's length for HASH_REPORT alone, too."""
    with NetRig(queues=1) as rig:
        assert rig.pci.config_bytes()[18:20] == bytes(2)


def test_default_address() -> None:
    """Locally administered, each function's own, and the same wherever a function of that name runs."""

    def mac(name: str) -> bytes:
        return NetDevice(NetBackend(FakePort()), name=name, queues=1).read_config(0, 6)

    assert mac("vf1") == mac("vf1")
    assert len({mac(name) for name in ("pf", "vf1", "vf2", "vf11")}) == 4
    assert mac("vf1")[0] == 2


@pytest.mark.parametrize("backend", [{"mac": BROADCAST}, {"mac": bytes(6)}, {"mac": b"\2"}, {"mtu": 67}])
def test_impossible_backends(backend: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"address|MTU"):
        NetDevice(NetBackend(FakePort(), **backend), name="vf1", queues=1)  # type: ignore[arg-type]


def test_offered_features() -> None:
    """Offloads as the port has them, MTU if there is one, MQ and RSS for more than one pair."""
    always = {5, 15, 16, 17, 18, 19, 20, 21, 23, 57, 63}
    for port, queues, mtu, more in (
        (0, 1, None, set()),
        (1 << CSUM, 2, None, {CSUM, MQ, RSS}),
        (1 << GUEST_CSUM | 1 << 17 | 1 << 40, 1, 1500, {GUEST_CSUM, CTRL_GUEST_OFFLOADS, MTU}),
    ):
        device = NetDevice(NetBackend(FakePort(port), MAC, mtu), name="vf1", queues=queues)
        assert device.features == sum(1 << bit for bit in always | more)


@pytest.mark.parametrize(
    ("taken", "good"),
    [
        ({GUEST_TSO4}, False),
        ({GUEST_TSO4, GUEST_CSUM}, True),
        ({HOST_TSO4}, False),
        ({HOST_TSO4, CSUM}, True),
        ({GUEST_CSUM, GUEST_ECN}, False),
        ({GUEST_CSUM, GUEST_ECN, GUEST_TSO4}, True),
        ({CTRL_RX}, False),
        ({CTRL_RX, CTRL_VQ}, True),
        ({CTRL_VLAN}, False),
        ({GUEST_ANNOUNCE}, False),
        ({MQ}, False),
        ({RSS}, False),
        ({56}, False),
        ({54}, False),
        (set(), True),
    ],
)
def test_features_that_need_others(taken: set[int], good: bool) -> None:
    """FEATURES_OK does not hold for features without those that they require."""
    with NetRig(queues=2) as rig:
        if good:
            rig.restart(features=taken)
        else:
            with pytest.raises(NegotiationError):
                rig.restart(features=taken)


# -- sending -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("features", [FEATURES, FEATURES | {HASH_REPORT}])
def test_sends_header_and_frame(features: frozenset[int]) -> None:
    """The port gets 12 bytes of header, whatever the driver's has."""
    with NetRig(features=features) as rig:
        rig.driver.send(ethernet(b"one"))
        rig.driver.send(ethernet(b"large" * 2000))
        rig.driver.flush()
        assert rig.port.sent == [bytes(12) + ethernet(b"one"), bytes(12) + ethernet(b"large" * 2000)]
        assert rig.counters["tx-frames"] == 2
        assert rig.counters["tx-bytes"] == 60 + len(ethernet(b"large" * 2000))
        assert rig.device.counters(1) == {"frames": 2, "bytes": rig.counters["tx-bytes"], "dropped": 0}


def test_offload_header_is_passed_on() -> None:
    with NetRig(features=FEATURES | {CSUM, HOST_TSO4}) as rig:
        rig.driver.send(ethernet(bytes(500)), header=Header(NEEDS_CSUM, TCPV4, 54, 100, 34, 16))
        rig.driver.flush()
        assert rig.port.sent[0][:12] == SEGMENTED


@pytest.mark.parametrize(
    ("frame", "header", "reason"),
    [
        (bytes(13), None, "tx-dropped-length"),
        (b"", None, "tx-dropped-length"),
        (bytes(12 + 14 + 8 + 65535), None, "tx-dropped-length"),
        (ethernet(), Header(NEEDS_CSUM, 0, 0, 0, 59, 0), "tx-dropped-header"),
        (ethernet(), Header(0, TCPV4, 54, 100), "tx-dropped-header"),
    ],
)
def test_bad_frames_are_dropped(frame: bytes, header: Header | None, reason: str) -> None:
    """Used and counted, never sent; the next one is."""
    with NetRig(features=FEATURES | {CSUM, HOST_TSO4}) as rig:
        rig.driver.send(frame, header=header)
        rig.driver.send(ethernet())
        rig.driver.flush()
        assert len(rig.port.sent) == 1
        assert rig.counters[reason] == 1
        assert rig.device.counters(1)["dropped"] == 1


def test_no_header_at_all() -> None:
    with NetRig() as rig:
        queue = rig.driver.transmitters[0]
        queue.add([(rig.pci.memory.allocate(8).address, 8)])
        queue.kick()
        assert len(queue.collect()) == 1
        assert rig.counters == {"tx-dropped-length": 1}


def test_port_without_room() -> None:
    """What it refuses waits, in order, stalls no other queue, and goes out when there is room."""
    with NetRig(queues=2, pairs=2) as rig:
        rig.port.room = 1
        for number in range(3):
            rig.driver.send(ethernet(bytes([number])))
        rig.driver.send(ethernet(b"other"), pair=1)
        rig.work()
        assert rig.driver.transmitters[0].in_flight == 3
        assert len(rig.driver.transmitters[0].collect()) == 1
        rig.put(ethernet())  # it still receives
        assert rig.got() + rig.got(1) == [ethernet()]
        assert rig.function.outstanding == 0, "nothing that a change of mode would wait for"
        rig.port.room = 100
        rig.work()
        assert sorted(rig.port.sent) == sorted(
            bytes(12) + ethernet(data) for data in (b"\0", b"\1", b"\2", b"other")
        )
        sent = [frame[26] for frame in rig.port.sent if frame[26] < 3]
        assert sent == [0, 1, 2]
        rig.driver.flush()


# -- receiving -----------------------------------------------------------------------------------------


def test_receives() -> None:
    with NetRig() as rig:
        rig.put(ethernet(b"one"), ethernet(b"two"))
        frames = rig.driver.receive(5)
        assert [frame.data for frame in frames] == [ethernet(b"one"), ethernet(b"two")]
        assert [frame.num_buffers for frame in frames] == [1, 1]
        assert rig.counters["rx-frames"] == 2
        assert rig.counters["rx-bytes"] == 120
        rig.put(*[ethernet(struct.pack("<I", number)) for number in range(500)])
        got = rig.got()
        while len(got) < 500:
            assert rig.world.pump()
            more = rig.got()
            assert more
            got += more
        assert got == [ethernet(struct.pack("<I", number)) for number in range(500)]


def test_header_of_a_received_frame() -> None:
    """The port's header where the offloads are on; not one byte behind the frame is written."""
    with NetRig(features=FEATURES | {GUEST_CSUM, GUEST_TSO4}, fill=False) as rig:
        memory = rig.pci.memory.allocate(4096)
        memory.view[:] = 0xEE
        queue = rig.driver.receivers[0]
        queue.add((), [(memory.address, 100), (memory.address + 200, 3000)])
        queue.kick()
        rig.put(ethernet(bytes(range(200))), header=SEGMENTED)
        (used,) = queue.collect()
        frame = ethernet(bytes(range(200)))
        assert used.length == 12 + len(frame)
        written = memory.view[:100].tobytes() + memory.view[200:3200].tobytes()
        assert written[: used.length] == SEGMENTED[:10] + b"\1\0" + frame
        assert set(written[used.length :]) == {0xEE}


def test_mergeable_buffers() -> None:
    """A frame over several buffers: all but the last full, and all used at once."""
    with NetRig(buffer_size=512, queue_size=16) as rig:
        frame = ethernet(bytes(range(256)) * 8)
        rig.put(ethernet(b"small"), frame, ethernet(b"small"))
        frames = rig.driver.poll()
        assert [found.data for found in frames] == [ethernet(b"small"), frame, ethernet(b"small")]
        assert [found.num_buffers for found in frames] == [1, 5, 1]


@pytest.mark.parametrize("without", [frozenset(), frozenset({29})], ids=["event_idx", "flags"])
def test_mergeable_frame_waits_for_buffers(without: frozenset[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """Too few buffers: none is used, and the frame comes when the driver adds to them. Never in pieces."""
    with NetRig(buffer_size=512, queue_size=16, fill=False, ring_features=KNOWN_FEATURES - without) as rig:
        monkeypatch.setattr(rig.world.hosts["vf1"], "after", lambda *_: None)
        frame = ethernet(bytes(2000))
        for count in (2, 1):
            rig.driver.refill(count=count)
            rig.put(*[frame] * (count - 1))
            assert rig.driver.poll(refill=False) == []
            assert rig.function.outstanding == 0
        rig.driver.refill(count=1)
        assert [found.data for found in rig.driver.poll(refill=False)] == [frame]


def test_buffer_too_small() -> None:
    """Without MRG_RXBUF a frame that does not fit is dropped, and the buffer is the next one's."""
    with NetRig(features=FEATURES - {MRG_RXBUF}, buffer_size=200) as rig:
        rig.put(ethernet(bytes(500)), ethernet(b"fits"), ethernet(bytes(189 - 14)))
        assert rig.got() == [ethernet(b"fits")]
        assert rig.counters["rx-dropped-buffer-too-small"] == 2
        assert rig.device.counters(0) == {"frames": 1, "bytes": 60, "dropped": 2}
        rig.put(ethernet(bytes(188 - 14)))
        assert len(rig.got()) == 1


def test_dry_ring() -> None:
    """256 frames wait for a queue without buffers, the rest is dropped; other queues go on."""
    with NetRig(queues=2, pairs=2, fill=False, features=FEATURES | {RSS}) as rig:
        rig.driver.set_rss([0], types=0x3F, key=KEY, unclassified=1, pairs=2)
        for number in range(300):
            rig.put(udp(number))
        rig.driver.refill(1)
        rig.put(ethernet())
        assert rig.got(1) == [ethernet()]
        assert rig.counters["rx-dropped-no-buffers"] == 44
        assert rig.device.counters(0)["dropped"] == 44
        rig.driver.refill(0)
        assert rig.got(0) == [udp(number) for number in range(256)]


def test_bytes_that_wait_are_bounded() -> None:
    """16 MiB, each queue its share, so that a queue without buffers leaves the others theirs."""
    with NetRig(queues=2, pairs=2, fill=False, features=FEATURES | {RSS}) as rig:
        rig.driver.set_rss([0], types=0x3F, key=KEY, unclassified=1, pairs=2)
        for _ in range(256):
            rig.put(udp(1) + bytes(65000))
        room = (8 << 20) // (12 + len(udp(1)) + 65000)
        assert rig.counters["rx-dropped-no-buffers"] == 256 - room
        rig.driver.refill(1)
        rig.put(ethernet())
        assert rig.got(1) == [ethernet()]


def test_a_share_has_room_for_one_frame() -> None:
    with NetRig(queues=300, fill=False, features=FEATURES) as rig:
        rig.put(ethernet(bytes(65535)), ethernet())
        assert rig.counters["rx-dropped-no-buffers"] == 1


def test_malformed_from_the_port() -> None:
    with NetRig(features=FEATURES | {MTU}, mtu=1500) as rig:
        rig.put(b"", bytes(13))
        rig.put(ethernet(bytes(1501)), ethernet(bytes(1500)), ethernet(bytes(1500), vlan=5))
        assert [len(frame) for frame in rig.got()] == [1514, 1518]
        rig.put(ethernet(), header=SEGMENTED)
        assert rig.counters["rx-dropped-malformed"] == 2
        assert rig.counters["rx-dropped-too-long"] == 1
        assert rig.counters["rx-dropped-offload"] == 1


def test_offloads_switched_off() -> None:
    """CTRL_GUEST_OFFLOADS: the port is told at once, and what still comes is dropped."""
    features = FEATURES | {GUEST_CSUM, GUEST_TSO4, CTRL_GUEST_OFFLOADS}
    with NetRig(features=features) as rig:
        rig.put(ethernet(bytes(500)), header=SEGMENTED)
        assert len(rig.got()) == 1
        rig.driver.set_offloads(1 << GUEST_CSUM)
        assert rig.port.features >> GUEST_CSUM & 1
        assert not rig.port.features >> GUEST_TSO4 & 1
        rig.put(ethernet(bytes(500)), header=SEGMENTED)
        assert rig.counters["rx-dropped-offload"] == 1
        rig.driver.set_offloads(1 << GUEST_CSUM | 1 << GUEST_TSO4)
        rig.put(ethernet(bytes(500)), header=SEGMENTED)
        assert len(rig.got()) == 1


def test_what_waits_goes_by_the_offloads_and_queues_of_now() -> None:
    """After a command is answered nothing comes by a queue, or with an offload, that it took away."""
    features = FEATURES | {RSS, GUEST_CSUM, GUEST_TSO4, CTRL_GUEST_OFFLOADS}
    with NetRig(queues=2, pairs=2, fill=False, features=features) as rig:
        rig.driver.set_rss([1], types=0x3F, key=KEY, unclassified=1, pairs=2)
        rig.put(ethernet(bytes(500)), header=SEGMENTED)
        rig.put(ethernet(b"plain"))
        rig.driver.refill(0)
        rig.driver.set_offloads(1 << GUEST_CSUM)
        assert rig.counters["rx-dropped-offload"] == 1
        rig.driver.set_pairs(1)
        rig.driver.refill(1)
        assert rig.world.pump()
        assert rig.got(1) == []
        assert rig.got(0) == [ethernet(b"plain")]


# -- several queues ------------------------------------------------------------------------------------


def test_one_queue_until_told() -> None:
    with NetRig(queues=4) as rig:
        rig.put(*[udp(number) for number in range(20)])
        assert len(rig.got()) == 20


def test_automatic_steering() -> None:
    """What comes back to a flow goes to the queue that it was sent by; after MQ is off, to the first."""
    with NetRig(queues=4, pairs=4) as rig:
        for pair in range(4):
            # Sent from port 7 to port 100 + pair.
            rig.driver.send(udp(7, 100 + pair, source=b"\x0a\0\0\1", to=b"\x0a\0\0\2"), pair=pair)
        rig.put(*[udp(100 + pair) for pair in range(4)])
        assert [rig.got(pair) for pair in range(4)] == [[udp(100 + pair)] for pair in range(4)]
        rig.put(*[udp(number) for number in range(1000, 1200)])
        spread = [len(rig.got(pair)) for pair in range(4)]
        assert sum(spread) == 200
        assert min(spread) > 20
        rig.driver.set_pairs(2)
        rig.put(*[udp(number) for number in range(1000, 1200)], udp(103))
        assert len(rig.got(0)) + len(rig.got(1)) == 201
        rig.driver.set_pairs(1)
        rig.put(*[udp(100 + pair) for pair in range(4)])
        assert len(rig.got(0)) == 4


def test_rss() -> None:
    """The published hash of 66.9.149.187:2794 to 161.142.100.80:1766 by UDP is 0x51ccc178."""
    frame = udp(2794, 1766, source=bytes([66, 9, 149, 187]), to=bytes([161, 142, 100, 80]))
    with NetRig(queues=4, pairs=4, features=FEATURES | {RSS, HASH_REPORT}) as rig:
        table = [0] * 128
        table[0x51CCC178 & 127] = 3
        rig.driver.set_rss(table, types=4, key=KEY, unclassified=2)
        rig.put(frame, ethernet(b"unclassified"))
        (found,) = rig.driver.poll(pair=3)
        assert (found.data, found.hash_value, found.hash_report) == (frame, 0x51CCC178, 3)
        (found,) = rig.driver.poll(pair=2)
        assert (found.hash_value, found.hash_report) == (0, 0)
        # By address only.
        table = [0] * 128
        table[0x323E8FC2 & 127] = 1
        rig.driver.set_rss(table, types=1, key=KEY, unclassified=2)
        rig.put(frame)
        (found,) = rig.driver.poll(pair=1)
        assert (found.hash_value, found.hash_report) == (0x323E8FC2, 1)


def test_hash_report_without_rss() -> None:
    frame = udp(2794, 1766, source=bytes([66, 9, 149, 187]), to=bytes([161, 142, 100, 80]))
    with NetRig(features=FEATURES | {HASH_REPORT}) as rig:
        rig.put(frame)
        rig.driver.set_hash(0x3F, KEY)
        rig.put(frame)
        found = rig.driver.poll()
        assert [(one.hash_value, one.hash_report) for one in found] == [(0, 0), (0x51CCC178, 3)]
        assert [one.data for one in found] == [frame, frame]


def test_queue_that_is_not_enabled() -> None:
    """RSS drops; automatic steering takes another queue that is in use, and drops where there is none."""
    with NetRig(queues=2, pairs=2, features=FEATURES | {RSS}) as rig:
        rig.driver.set_rss([1], types=0x3F, key=KEY, unclassified=1, pairs=2)
        rig.pci.reset_queue(0)
        rig.driver.set_pairs(2)
        rig.put(*[udp(number) for number in range(20)])
        assert len(rig.got(1)) == 20
        rig.driver.set_rss([0], types=0x3F, key=KEY, unclassified=0, pairs=2)
        rig.put(udp(1))
        assert rig.counters["rx-dropped-no-queue"] == 1
        rig.driver.set_pairs(1)
        rig.put(udp(1))
        assert rig.counters["rx-dropped-no-queue"] == 2
        rig.driver.set_pairs(2)
        rig.pci.reset_queue(2)
        rig.put(udp(1))
        assert rig.counters["rx-dropped-no-queue"] == 3


def test_control_queue_without_mq() -> None:
    """It comes behind the queues that the driver knows of: third, without MQ and RSS."""
    with NetRig(queues=4, features=FEATURES - {MQ}) as rig:
        assert rig.driver.control is not None
        assert rig.driver.control.index == 2
        rig.driver.set_vlan(5)
        rig.restart(features=FEATURES)
        assert rig.driver.control.index == 8
        rig.driver.set_vlan(5)


# -- the port, the link, a reset -----------------------------------------------------------------------


def test_nothing_comes_in_before_the_driver_runs_it() -> None:
    with NetRig() as rig:
        assert rig.wanted(ethernet())
        rig.pci.reset()
        assert rig.port.features == 0
        assert not rig.wanted(ethernet())
        rig.pci.initialize(wanted=FEATURES | {32})
        rig.work()
        assert not rig.wanted(ethernet())


def test_reset_forgets_what_the_driver_set() -> None:
    with NetRig(queues=2, features=FEATURES | {RSS, HASH_REPORT, CTRL_GUEST_OFFLOADS, GUEST_CSUM}) as rig:
        fresh = [bytes(field.value[0].tobytes()) for field in rig.device.capture_fields(None)]
        driver = rig.driver
        driver.set_mode(0, False)
        driver.set_mac(b"\x02\0\0\0\0\x77")
        driver.set_mac_table([PEER], [])
        driver.set_vlan(9)
        driver.set_rss([0, 1], types=2, key=KEY, pairs=2)
        driver.set_offloads(0)
        assert driver.mac == b"\x02\0\0\0\0\x77"
        changed = [bytes(field.value[0].tobytes()) for field in rig.device.capture_fields(None)]
        assert sum(before != after for before, after in zip(fresh, changed, strict=True)) == 7
        rig.restart(queue_size=8)
        assert rig.driver.mac == MAC
        again = [bytes(field.value[0].tobytes()) for field in rig.device.capture_fields(None)]
        assert [one for one, other in zip(again, fresh, strict=True) if one != other] == []


def test_settings_reach_the_port() -> None:
    with NetRig() as rig:
        assert rig.wanted(ethernet(to=PEER))  # promiscuous until told
        rig.driver.set_mode(0, False)
        assert not rig.wanted(ethernet(to=PEER))
        assert rig.wanted(ethernet(to=MAC))
        rig.driver.set_mac(PEER)
        assert rig.wanted(ethernet(to=PEER))
        assert not rig.wanted(ethernet(to=MAC))
        assert not rig.wanted(ethernet(to=PEER, vlan=3))
        rig.driver.set_vlan(3)
        assert rig.wanted(ethernet(to=PEER, vlan=3))


def test_carrier() -> None:
    """STATUS follows the port's carrier, and the driver is told."""
    with NetRig() as rig:
        assert rig.driver.status == LINK_UP
        interrupts = rig.pci.msix
        assert interrupts is not None
        rig.port.link_up = False
        rig.port.wake()
        assert rig.world.pump()
        interrupts.interrupts[0].wait(5)
        assert rig.driver.status == 0
        rig.port.link_up = True
        rig.put(ethernet())
        interrupts.interrupts[0].wait(5)
        assert rig.driver.status == LINK_UP


def test_cable() -> None:
    """set_link: without it nothing goes in or out, until it is back; a reset does not plug it in."""
    with NetRig() as rig:
        rig.device.set_link(False)
        assert rig.driver.status == 0
        assert rig.port.filter is None
        rig.driver.send(ethernet())
        rig.driver.flush()
        assert rig.counters["tx-dropped-link-down"] == 1
        rig.restart(queue_size=8)
        assert rig.driver.status == 0
        assert rig.port.filter is None
        rig.device.set_link(True)
        assert rig.driver.status == LINK_UP
        rig.driver.send(ethernet())
        rig.driver.flush()
        assert len(rig.port.sent) == 1


def rarp(mac: bytes, vlan: int | None = None) -> bytes:
    """RFC 903: a request of `mac` for itself."""
    body = bytes.fromhex("8035 0001 0800 06 04 0003") + mac + bytes(4) + mac + bytes(4)
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return bytes(12) + (BROADCAST + mac + tag + body).ljust(60, b"\0")


def test_announce() -> None:
    """By itself for each network, and by the driver, which is asked until it acknowledges."""
    with NetRig(features=FEATURES | {GUEST_ANNOUNCE}) as rig:
        rig.driver.set_vlan(4)
        rig.driver.set_vlan(0)
        rig.device.announce()
        rig.work()
        assert rig.port.sent == [rarp(MAC), rarp(MAC, 4)]
        assert rig.driver.status == LINK_UP | ANNOUNCE
        assert rig.pci.msix is not None
        rig.pci.msix.interrupts[0].wait(5)
        rig.driver.acknowledge_announce()
        assert rig.driver.status == LINK_UP
        assert rig.counters["announcements"] == 2


@pytest.mark.parametrize("without", ["cable", "carrier"])
def test_announcing_waits_for_a_link(without: str) -> None:
    with NetRig() as rig:

        def plug(on: bool) -> None:
            if without == "cable":
                rig.device.set_link(on)
            else:
                rig.port.link_up = on

        plug(False)
        rig.device.announce()
        rig.work()
        assert rig.port.sent == []
        plug(True)
        rig.work()
        assert rig.port.sent == [rarp(MAC)]


def test_announce_to_a_driver_that_knows_nothing_of_it() -> None:
    with NetRig() as rig:
        rig.port.room = 0
        rig.device.announce()
        rig.work()
        assert rig.driver.status == LINK_UP
        rig.port.room = 9
        rig.work()
        rig.work()
        assert rig.port.sent == [rarp(MAC)]
