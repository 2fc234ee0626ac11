"""virtio-net at a real server: VFs at its switch, filters, queues, broken drivers, and a VF that moves."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import outstanding
from tests.wire.frames import BROADCAST, ethernet, mac, received
from tests.wire.raw_client import HEADER, NO_REPLY, REGION_WRITE
from tests.wire.running import running, until
from vfu_client.drivers.net import FEATURES, NetDriver
from vfu_client.owner.context import decode
from vfu_client.owner.context_parts import as_reset
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.connection import Connection
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

SERVER = ("--device", "net", "--vfs", "3", "--queues", "4", "--mac", "02:00:00:00:00:00")
# The PF's address is given, and the VFs' count on from it.
MRG_RXBUF = 15
ONE, TWO, THREE, NOBODY = mac(1), mac(2), mac(3), mac(99)
GROUP = b"\x01\0\x5e\0\0\x07"
GUEST_ANNOUNCE, RSS, HASH_REPORT, CTRL_VQ, CTRL_RX = 21, 60, 57, 17, 18
STOP, FREEZE, ACTIVE = 1, 2, 0
LINK_UP, ANNOUNCE = 1, 2
TIMEOUT = 20.0


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start(*SERVER)


@contextlib.contextmanager
def drivers(server: ServerProcess, *options: dict[str, object]) -> Iterator[list[NetDriver]]:
    """VF 1, VF 2 ... driven, each with its options."""
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                NetDriver.open(server.socket(f"vf{number}"), timeout=TIMEOUT, **given)  # type: ignore[arg-type]
            )
            for number, given in enumerate(options, 1)
        ]


def strict(driver: NetDriver) -> NetDriver:
    """Promiscuous no more."""
    driver.set_mode(0, False)
    return driver


def counters(server: ServerProcess, function: str) -> dict[str, int]:
    (found,) = server.ask("query-functions", function=function)
    counts: dict[str, int] = found["counters"]
    return counts


def port_of(server: ServerProcess, function: str) -> dict[str, int]:
    """What passed between a function and the switch."""
    (found,) = server.ask("query-functions", function=function)
    counts: dict[str, int] = found["port"]
    return counts


def test_frames_between_two_vfs(server: ServerProcess) -> None:
    """Both ways, in order, of all sizes; the monitor counts them."""
    with drivers(server, {}, {}) as (one, two):
        before = counters(server, "vf2")
        assert (one.mac, two.mac) == (ONE, TWO)
        assert one.status == two.status == LINK_UP
        sent = [ethernet(TWO, ONE, bytes([size & 0xFF]) * size) for size in (0, 46, 1500, 2034, 2035, 9000)]
        for frame in sent:
            one.send(frame)
        assert received(two, len(sent)) == sent
        back = [ethernet(ONE, TWO, number.to_bytes(4)) for number in range(200)]
        for frame in back:
            two.send(frame)
        assert received(one, len(back)) == back
        after = counters(server, "vf2")
        assert after["rx-frames"] - before["rx-frames"] == len(sent)
        assert after["rx-bytes"] - before["rx-bytes"] == sum(map(len, sent))
        assert after["tx-frames"] - before["tx-frames"] == len(back)


def test_receive_filter(server: ServerProcess) -> None:
    """What each mode and table lets in of the same frames; the last one tells that all were seen."""
    with drivers(server, {}, {}) as (one, two):
        strict(two)
        marker = ethernet(TWO, ONE, b"marker")
        frames = {
            "nobody": ethernet(NOBODY, ONE, b"nobody"),
            "group": ethernet(GROUP, ONE, b"group"),
            "broadcast": ethernet(BROADCAST, ONE, b"broadcast"),
            "vlan 5": ethernet(TWO, ONE, b"vlan 5", vlan=5),
        }

        def let_in() -> set[str]:
            for frame in (*frames.values(), marker):
                one.send(frame)
            found: list[bytes] = []
            while marker not in found:
                found += [frame.data for frame in two.receive()]
            assert found.count(marker) == 1
            return {name for name, frame in frames.items() if frame in found}

        assert let_in() == {"broadcast"}
        two.set_mode(1, True)  # all multicast
        assert let_in() == {"broadcast", "group"}
        two.set_mode(5, True)  # no broadcast
        two.set_mode(1, False)
        assert let_in() == set()
        two.set_mac_table([NOBODY], [GROUP])
        assert let_in() == {"nobody", "group"}
        two.set_mac_table([], [])
        two.set_vlan(5)
        assert let_in() == {"vlan 5"}
        two.set_vlan(5, False)
        two.set_mode(0, True)
        assert let_in() == set(frames)


def test_without_control_queue_all_comes(server: ServerProcess) -> None:
    """A driver that cannot set filters gets multicast and tagged frames."""
    with drivers(server, {}, {"features": frozenset({5, 16})}) as (one, two):
        assert two.control is None
        sent = [ethernet(GROUP, ONE), ethernet(TWO, ONE, vlan=7)]
        for frame in sent:
            one.send(frame)
        assert received(two, 2) == sent


def test_address_of_its_own(server: ServerProcess) -> None:
    """A new address is the one that frames come to, until a reset."""
    with drivers(server, {}, {}) as (one, two):
        strict(two).set_mac(NOBODY)
        assert two.mac == NOBODY
        one.send(ethernet(TWO, ONE))
        one.send(ethernet(NOBODY, ONE))
        assert received(two) == [ethernet(NOBODY, ONE)]
    with drivers(server, {}, {}) as (_, two):
        assert two.mac == TWO


def test_malformed_commands(server: ServerProcess) -> None:
    """VIRTIO_NET_ERR, nothing changed, and frames go on."""
    with drivers(server, {}, {"pairs": 4}) as (one, two):
        strict(two)
        for kind, raw in (
            ((0, 0), b""),
            ((0, 0), b"\7"),
            ((1, 0), b"\xff\xff\xff\xff" + bytes(60)),
            ((1, 1), GROUP),
            ((2, 0), b"\xff\xff"),
            ((4, 0), b"\0\0"),
            ((4, 0), b"\5\0"),
            ((4, 1), bytes(51)),
            ((9, 9), bytes(5000)),
        ):
            assert two.answer(kind, raw) == 1
        assert two.mac == TWO
        one.send(ethernet(NOBODY, ONE))
        one.send(ethernet(TWO, ONE))
        assert received(two) == [ethernet(TWO, ONE)]


def udp(port: int, to: bytes, origin: bytes) -> bytes:
    """UDP over IPv4 from 10.0.0.1 to 10.0.0.2, from a port to port 9."""
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 36, 0, 0, 64, 17, 0, b"\x0a\0\0\1", b"\x0a\0\0\2")
    return to + origin + b"\x08\0" + ip + struct.pack(">HHHH", port, 9, 16, 0) + bytes(18)


@pytest.mark.parametrize("rss", [False, True], ids=["automatic", "rss"])
def test_flows_spread_over_queues(server: ServerProcess, rss: bool) -> None:
    """Each flow stays on one queue, in order; all queues get some. After MQ is off the first gets all."""
    features = FEATURES | ({RSS, HASH_REPORT} if rss else set())
    with drivers(server, {}, {"pairs": 4, "features": features}) as (one, two):
        if rss:
            two.set_rss([0, 1, 2, 3] * 32, types=0x3F, key=bytes(range(3, 43)))
        frames = [udp(port, TWO, ONE) for port in range(64)] * 2
        for frame in frames:
            one.send(frame, kick=False)
        one.transmitters[0].kick()
        found: list[list[bytes]] = [[], [], [], []]

        def all_there() -> bool:
            for pair in range(4):
                found[pair] += [frame.data for frame in two.poll(pair=pair)]
            return sum(map(len, found)) == len(frames)

        until(all_there, "all frames came")
        assert sorted(frame for part in found for frame in part) == sorted(frames)
        assert all(part and part == part[: len(part) // 2] * 2 for part in found)
        two.set_pairs(1)
        for frame in frames[:64]:
            one.send(frame)
        assert received(two, 64) == frames[:64]


def test_replies_come_by_the_queue_of_the_request(server: ServerProcess) -> None:
    with drivers(server, {}, {"pairs": 4}) as (one, two):
        request = udp(77, ONE, TWO)
        reply = (
            TWO + ONE + request[12:26] + b"\x0a\0\0\2\x0a\0\0\1" + struct.pack(">HH", 9, 77) + request[38:]
        )
        for pair in (3, 1, 2, 0):
            two.send(request, pair=pair)
            assert received(one) == [request]
            one.send(reply)
            assert received(two, pair=pair) == [reply]


def test_dry_ring_stalls_nobody(server: ServerProcess) -> None:
    """What finds no buffers is dropped and counted; the sender, a third VF and other queues go on."""
    with drivers(server, {}, {"fill": False, "pairs": 2}, {}) as (one, two, three):
        strict(three)
        before = counters(server, "vf2")["rx-dropped-no-buffers"]
        for number in range(2000):
            one.send(ethernet(TWO, ONE, number.to_bytes(4)))
        one.flush(timeout=TIMEOUT)
        one.send(ethernet(THREE, ONE))
        assert received(three) == [ethernet(THREE, ONE)]
        two.send(ethernet(THREE, TWO))
        assert received(three) == [ethernet(THREE, TWO)]
        until(
            lambda: counters(server, "vf2")["rx-dropped-no-buffers"] - before == 2000 - 256, "all are dropped"
        )
        two.refill()
        assert received(two, 256) == [ethernet(TWO, ONE, number.to_bytes(4)) for number in range(256)]
        one.send(ethernet(TWO, ONE, b"after"))
        assert received(two) == [ethernet(TWO, ONE, b"after")]


@pytest.mark.parametrize(
    "ring", [{34, 35}, {34}, {35}, set()], ids=["split", "split-order", "packed", "packed-order"]
)
@pytest.mark.parametrize(
    ("features", "size", "buffers", "length"),
    [(FEATURES - {MRG_RXBUF}, 256, 1526, 1515), (FEATURES, 4, 2048, 9014)],
    ids=["too long for a buffer", "too long for the ring"],
)
def test_frames_that_do_not_fit(
    server: ServerProcess, ring: set[int], features: frozenset[int], size: int, buffers: int, length: int
) -> None:
    """Dropped and counted. The next ones arrive; the driver has nothing to add, so it does not kick."""
    options = {
        "features": features,
        "queue_size": size,
        "buffer_size": buffers,
        "ring_features": KNOWN_FEATURES - ring,
    }
    with drivers(server, {}, options) as (one, two):
        before = counters(server, "vf2")["rx-dropped-buffer-too-small"]
        dropped = 0
        for burst in (1, 2, 2, 300):
            for _ in range(burst):
                one.send(ethernet(TWO, ONE, bytes(length - 14)))
            one.send(ethernet(TWO, ONE, b"small"))
            assert received(two) == [ethernet(TWO, ONE, b"small")]
            dropped += burst
            assert counters(server, "vf2")["rx-dropped-buffer-too-small"] - before == dropped


def test_a_frame_for_which_nothing_is_added(server: ServerProcess) -> None:
    """The driver has room in its ring and adds no buffers: after a moment those behind the frame arrive."""
    with drivers(server, {}, {"queue_size": 16, "buffer_size": 2048, "fill": False}) as (one, two):
        two.refill(count=3)
        one.send(ethernet(TWO, ONE, bytes(9000)))
        one.send(ethernet(TWO, ONE, b"small"))
        assert received(two) == [ethernet(TWO, ONE, b"small")]


def test_driver_that_breaks_its_ring(server: ServerProcess) -> None:
    """A transmit descriptor outside memory: DEVICE_NEEDS_RESET for it, nothing for its neighbours."""
    with drivers(server, {}, {}, {}) as (one, two, three):
        strict(three)
        two.transmitters[0].add([(0xDEAD_0000, 100)])
        two.transmitters[0].kick(force=True)
        until(lambda: bool(two.device.status & 0x40), "it needs a reset")
        one.send(ethernet(TWO, ONE))
        one.send(ethernet(THREE, ONE))
        assert received(three) == [ethernet(THREE, ONE)]
    with drivers(server, {}, {}) as (one, two):
        one.send(ethernet(TWO, ONE, b"again"))
        assert received(two) == [ethernet(TWO, ONE, b"again")]


def test_receive_buffer_outside_memory(server: ServerProcess) -> None:
    with drivers(server, {}, {"fill": False}, {}) as (one, two, three):
        strict(three)
        two.receivers[0].add((), [(0xDEAD_0000, 2048)])
        two.receivers[0].kick(force=True)
        one.send(ethernet(TWO, ONE))
        until(lambda: bool(two.device.status & 0x40), "it needs a reset")
        one.send(ethernet(THREE, ONE))
        assert received(three) == [ethernet(THREE, ONE)]


def test_reset_under_traffic(server: ServerProcess) -> None:
    """A device that is reset while frames come gets those of its new life only."""
    with drivers(server, {}, {}) as (one, two):
        for number in range(100):
            one.send(ethernet(TWO, ONE, bytes([number])))
        pci = two.device
        pci.reset()
        assert two.receivers[0].device_used_idx <= 100
        one.flush()
        again = NetDriver(pci)
        one.send(ethernet(TWO, ONE, b"new"))
        assert received(again) == [ethernet(TWO, ONE, b"new")]


def test_link(server: ServerProcess) -> None:
    """set-link: the configuration changes with a notification; without a link nothing passes."""
    with drivers(server, {}, {}) as (one, two):
        assert two.device.msix is not None
        changed = two.device.msix.interrupts[0]
        server.ask("set-link", function="vf2", up=False)
        changed.wait(TIMEOUT)
        assert two.status == 0
        one.send(ethernet(TWO, ONE, b"lost"))
        two.send(ethernet(ONE, TWO, b"lost too"))
        two.flush()
        server.ask("set-link", function="vf2", up=True)
        changed.wait(TIMEOUT)
        assert two.status == LINK_UP
        one.send(ethernet(TWO, ONE, b"found"))
        two.send(ethernet(ONE, TWO, b"found"))
        assert received(two) == [ethernet(TWO, ONE, b"found")]
        assert received(one) == [ethernet(ONE, TWO, b"found")]


def rarp(address: bytes, vlan: int | None = None) -> bytes:
    """What an announcement is on the wire."""
    body = bytes.fromhex("8035 0001 0800 06 04 0003") + address + bytes(4) + address + bytes(4)
    tag = b"" if vlan is None else b"\x81\0" + vlan.to_bytes(2)
    return (BROADCAST + address + tag + body).ljust(60, b"\0")


def test_announce_self(server: ServerProcess) -> None:
    """By the monitor: the others see it, the driver is asked, and is done when it acknowledges."""
    with drivers(server, {}, {"features": FEATURES | {GUEST_ANNOUNCE}}) as (one, two):
        two.set_vlan(8)
        server.ask("announce-self", function="vf2")
        assert received(one, 2) == [rarp(TWO), rarp(TWO, 8)]
        assert two.device.msix is not None
        two.device.msix.interrupts[0].wait(TIMEOUT)
        assert two.status == LINK_UP | ANNOUNCE
        two.acknowledge_announce()
        assert two.status == LINK_UP


def test_stop_waits_for_what_is_being_sent() -> None:
    """A frame held by --io-delay-ms: Stop is answered when it is used. Receive buffers hold nothing up."""
    with running() as start:
        server = start(*SERVER, "--io-delay-ms", "1000")
        with (
            OwnerDriver.open(server.socket("pf"), timeout=TIMEOUT) as owner,
            drivers(server, {}, {}) as (one, two),
        ):
            one.send(ethernet(TWO, ONE))
            until(lambda: outstanding(server, "vf1") == 1, "fetched")
            assert one.transmitters[0].device_used_idx == 0
            owner.mode_set(1, STOP)
            assert one.transmitters[0].device_used_idx == 1
            begin = time.monotonic()
            owner.mode_set(2, STOP)
            assert time.monotonic() - begin < 5
            owner.mode_set(2, ACTIVE)
            assert received(two) == [ethernet(TWO, ONE)]


def test_frames_right_after_mode_set(server: ServerProcess) -> None:
    """A context was written, the VF made Active: what is sent after the answer arrives.

    The VF's thread stands in the middle of a message all the while.
    """
    with (
        OwnerDriver.open(server.socket("pf"), timeout=TIMEOUT) as owner,
        drivers(server, {}, {}) as (one, two),
    ):
        connection = one.device.function.connection
        # A write of nothing, which is not answered, to the read-only start of configuration space.
        message = HEADER.pack(0x7777, REGION_WRITE, 36, NO_REPLY, 0) + struct.pack("<QIII", 0, 7, 4, 0)
        for turn in range(3):
            owner.mode_set(1, FREEZE)
            owner.context_write(1, [piece.copy() for piece in owner.context_read(1)])
            connection.send_raw(message[:20])
            owner.mode_set(1, ACTIVE)
            sent = [ethernet(ONE, TWO, bytes([turn, number])) for number in range(50)]
            for frame in sent:
                two.send(frame)
            two.flush(timeout=TIMEOUT)
            connection.send_raw(message[20:])
            assert received(one, len(sent)) == sent


# -- a VF that moves -----------------------------------------------------------------------------------


def rehome(driver: NetDriver, device: VirtioPci) -> None:
    """The guest's rings at another server's VF, as after a migration: only PCI is set up anew."""
    old, driver.device = driver.device, device
    device.function.set_command(6)
    device.enable_interrupts()
    device.features = old.features
    device._notify_offsets.update(old._notify_offsets)
    device._notify_values.update(old._notify_values)
    assert device.msix is not None
    for queue in (*driver.receivers, *driver.transmitters, driver.control):
        assert queue is not None
        queue._notify = device.notify
        queue.interrupt = device.msix.interrupts[queue.index + 1]


def all_frames(driver: NetDriver) -> Iterator[bytes]:
    """The frames of all queue pairs, waited for."""
    deadline = time.monotonic() + TIMEOUT
    while True:
        for pair in range(driver.pairs):
            for frame in driver.poll(pair=pair):
                deadline = time.monotonic() + TIMEOUT
                yield frame.data
        assert time.monotonic() < deadline, "no frame came"


def test_move_with_traffic(server: ServerProcess, serve: Callable[..., ServerProcess]) -> None:
    """VF 1 goes to another server in the middle: its rings, filter and address; others there hear of it."""
    there = serve(*SERVER[:-1], "02:00:00:00:11:00")
    memory = GuestMemory()
    memory.add_region(64 << 20)
    moved_features = FEATURES | {GUEST_ANNOUNCE, RSS}
    with contextlib.ExitStack() as stack:
        stack.callback(memory.close)
        source_owner = stack.enter_context(OwnerDriver.open(server.socket("pf"), timeout=TIMEOUT))
        target_owner = stack.enter_context(OwnerDriver.open(there.socket("pf"), timeout=TIMEOUT))
        near = stack.enter_context(NetDriver.open(server.socket("vf2"), timeout=TIMEOUT))
        far = stack.enter_context(NetDriver.open(there.socket("vf2"), timeout=TIMEOUT))
        connection = stack.enter_context(Connection(server.socket("vf1"), timeout=TIMEOUT))
        memory.attach(connection)
        guest = NetDriver(VirtioPci(connection, memory), pairs=2, features=moved_features, timeout=TIMEOUT)
        # Frames that did not get out before the move are no business of `far`.
        strict(far).set_vlan(6)
        strict(guest)
        guest.set_mac(NOBODY)
        guest.set_vlan(6)
        guest.set_mac_table([THREE], [GROUP])
        # Traffic before, with frames left on their way in both directions.
        near.send(ethernet(NOBODY, TWO, b"first"))
        assert received(guest) == [ethernet(NOBODY, TWO, b"first")]
        for number in range(20):
            near.send(ethernet(NOBODY, TWO, bytes([number])))
            guest.send(ethernet(TWO, NOBODY, bytes([number])))
        source_owner.mode_set(1, STOP)
        guest.send(ethernet(mac(0x1102), NOBODY, b"sent in stop"))
        source_owner.mode_set(1, FREEZE)
        context = [piece.copy() for piece in source_owner.context_read(1)]

        target = stack.enter_context(Connection(there.socket("vf1"), timeout=TIMEOUT))
        memory.attach(target)
        rehome(guest, VirtioPci(target, memory))
        target_owner.mode_set(1, FREEZE)
        target_owner.context_write(1, context)
        target_owner.mode_set(1, ACTIVE)

        first = received(far, 2 + 1)
        assert first[:2] == [rarp(NOBODY), rarp(NOBODY, 6)]
        assert first[2] == ethernet(mac(0x1102), NOBODY, b"sent in stop")
        assert guest.device.msix is not None
        guest.device.msix.interrupts[0].wait(TIMEOUT)
        assert guest.status == LINK_UP | ANNOUNCE
        assert guest.mac == NOBODY
        guest.acknowledge_announce()
        assert guest.status == LINK_UP

        frames = all_frames(guest)
        for frame, wanted in (
            (ethernet(ONE, mac(0x1102), b"not its address"), False),
            (ethernet(THREE, mac(0x1102), b"its table"), True),
            (ethernet(GROUP, mac(0x1102), b"its group"), True),
            (ethernet(NOBODY, mac(0x1102), b"its vlan", vlan=6), True),
            (ethernet(NOBODY, mac(0x1102), b"no vlan of its", vlan=7), False),
            (ethernet(NOBODY, mac(0x1102), b"its address"), True),
        ):
            far.send(frame)
            if wanted:
                # What came to its rings before the move is still there to be collected.
                while (found := next(frames)) != frame:
                    assert found == ethernet(NOBODY, TWO, found[14:15])
        guest.send(ethernet(mac(0x1102), NOBODY, b"after"))
        guest.flush()
        assert received(far) == [ethernet(mac(0x1102), NOBODY, b"after")]
        memory.detach(target)


def test_what_is_lost_between_activate_and_release(serve: Callable[..., ServerProcess]) -> None:
    """Of 1500 frames for a guest that does not run yet 256 have buffers, others wait; losses are counted.

    Until it is reset the VF where it was has them too, and counts them then (docs/migrate.md).
    """
    server = serve(*SERVER)
    memory = GuestMemory()
    memory.add_region(64 << 20)
    with contextlib.ExitStack() as stack:
        stack.callback(memory.close)
        owner = stack.enter_context(OwnerDriver.open(server.socket("pf"), timeout=TIMEOUT))
        peer = stack.enter_context(NetDriver.open(server.socket("vf3"), timeout=TIMEOUT))
        source = stack.enter_context(Connection(server.socket("vf1"), timeout=TIMEOUT))
        memory.attach(source)
        guest = strict(NetDriver(VirtioPci(source, memory), timeout=TIMEOUT))
        guest.set_mac(NOBODY)
        owner.mode_set(1, FREEZE)
        context = [piece.tobytes() for piece in owner.context_read(1)]
        target = stack.enter_context(Connection(server.socket("vf2"), timeout=TIMEOUT))
        memory.attach(target)
        rehome(guest, VirtioPci(target, memory))
        owner.mode_set(2, FREEZE)
        owner.context_write(2, context)

        def lost() -> int:
            at_the_switch = port_of(server, "vf2")["dropped-receiving"]
            return at_the_switch + counters(server, "vf2")["rx-dropped-no-buffers"]

        before = lost()
        port = port_of(server, "vf1")["dropped-receiving"]
        owner.mode_set(2, ACTIVE)
        assert received(peer) == [rarp(NOBODY)]
        frames = [ethernet(NOBODY, THREE, number.to_bytes(4)) for number in range(1500)]
        for frame in frames:
            peer.send(frame)
        peer.flush()
        # 1024 wait at the switch.
        until(lambda: lost() - before >= 1500 - 256 - 1024, "the inbox is full")
        found: list[bytes] = []

        def all_there() -> bool:
            found.extend(frame.data for frame in guest.poll())
            return len(found) + lost() - before == len(frames)

        until(all_there, "all frames came, or are counted")
        assert found[:256] == frames[:256]
        assert set(found) <= set(frames)
        assert found == sorted(found)
        owner.context_write(1, as_reset(decode(b"".join(context))))
        owner.mode_set(1, ACTIVE)
        assert port_of(server, "vf1")["dropped-receiving"] - port >= len(frames)
        memory.detach(target)
