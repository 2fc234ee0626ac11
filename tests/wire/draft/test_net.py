"""The draft's requirements for virtio-net, where the type of device matters; those beside are for virtio-blk.

VF 1 is the member, VF 2 its peer at the switch.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    CTX_DISCARD,
    CTX_READ,
    DEVICE_CFG,
    EACH,
    FIELDS_QUERY,
    FREEZE,
    MODE_SET,
    NEEDS_RESET,
    OK,
    PENDING,
    RING_PACKED,
    SILENT,
    STOP,
    TIMEOUT,
    VQ_CFG,
    WRONG_CONTENT,
    WRONG_STATE,
    Rig,
    context,
    field,
    outstanding,
    parse,
    until_done,
    value,
    whole,
)
from tests.wire.frames import BROADCAST, ethernet, mac, received
from tests.wire.running import running, until
from vfu_client.drivers.net import FEATURES, NetDriver
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

RX_MODE, MAC_TABLE, VLAN_TABLE, QUEUE_PAIRS, HASH, RSS, OFFLOADS = range(0x100, 0x107)
FIXED = {RX_MODE: 8, VLAN_TABLE: 512, QUEUE_PAIRS: 8, HASH: 48, OFFLOADS: 8}
VARYING = (MAC_TABLE, RSS)
LINK_UP = 1
ONE, TWO = mac(1), mac(2)

OPTIONS = ("--device", "net", "--vfs", "2", "--queues", "2", "--mac", "02:00:00:00:00:00")


class NetRig(Rig):
    """VF 1 under a network driver that is not promiscuous, and a peer."""

    def _drive(self, socket: Path) -> None:
        features = KNOWN_FEATURES | FEATURES
        if not self.packed:
            features -= {RING_PACKED}
        self.net = NetDriver.open(
            socket, memory=self._memory, queue_size=16, features=features, timeout=TIMEOUT
        )
        self.peer = NetDriver.open(self.server.socket("vf2"), queue_size=64, timeout=TIMEOUT)

    def __exit__(self, *raised: object) -> None:
        self.peer.close()
        super().__exit__(None, None, None)

    @property
    def device(self) -> VirtioPci:
        return self.net.device

    @property
    def queue(self) -> DriverQueue:
        return self.net.transmitters[0]

    def heard(self, count: int = 1) -> list[bytes]:
        """The next frames that the peer gets."""
        return received(self.peer, count)

    def got(self, count: int = 1) -> list[bytes]:
        """The next frames that the member gets."""
        return received(self.net, count)


def out(data: bytes) -> bytes:
    """A frame of the member to its peer."""
    return ethernet(TWO, ONE, data)


def back(data: bytes, *, vlan: int | None = None) -> bytes:
    """A frame of the peer to the member."""
    return ethernet(ONE, TWO, data, vlan=vlan)


def vlans(*numbers: int) -> bytes:
    """A NET_VLAN_TABLE."""
    return field(VLAN_TABLE, sum(1 << number for number in numbers).to_bytes(512, "little"))


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start(*OPTIONS)


@pytest.fixture(scope="module")
def slow() -> Iterator[ServerProcess]:
    """Frames that are sent, and resets, take a while."""
    with running() as start:
        yield start(*OPTIONS, "--io-delay-ms", "400", "--flr-delay-ms", "400", "--reset-delay-ms", "400")


@pytest.fixture
def rig(server: ServerProcess) -> Iterator[NetRig]:
    with NetRig(server) as made:
        made.net.set_mode(0, False)
        made.drain()
        yield made


# DMA and notifications.


@SILENT
@pytest.mark.spec("DEV-13", "DEV-15", "DEV-22")
def test_no_frame_moves(rig: NetRig, mode: int) -> None:
    """Frames both ways while it is not Active: rings, buffers and eventfds stay; all pass once it is."""
    rig.go(mode)
    rig.net.send(out(b"waits"), kick=False)
    with rig.silence():
        rig.queue.kick(force=True)
        for number in range(5):
            rig.peer.send(back(bytes([number])))
        rig.peer.flush()
    assert rig.queue.device_used_idx == 0
    assert rig.peer.poll() == []
    rig.go(ACTIVE)
    assert rig.heard() == [out(b"waits")]
    assert rig.got(5) == [back(bytes([number])) for number in range(5)]


@SILENT
@pytest.mark.spec("DEV-13", "DEV-22")
def test_rings_may_hold_nonsense(rig: NetRig, mode: int) -> None:
    """Receive, transmit and control rings are not looked at, though they are kicked and frames come."""
    rig.go(mode)
    assert rig.net.control is not None
    queues = (rig.net.receivers[0], rig.queue, rig.net.control)
    rings = [ring for queue in queues for ring in queue.parts]
    saved = [ring.view.copy() for ring in rings]
    for ring in rings:
        ring.view[:] = 0xEE
    with rig.silence():
        rig.peer.send(back(b"comes"))
        for queue in queues:
            rig.device.notify(queue.index)
    for ring, content in zip(rings, saved, strict=True):
        ring.view[:] = content
    rig.go(ACTIVE)
    assert rig.got() == [back(b"comes")]
    assert rig.device.status == 0x0F


@SILENT
@pytest.mark.spec("DEV-15")
def test_a_control_command_waits(rig: NetRig, mode: int) -> None:
    """Kicked while not Active: it changes nothing until then, and is then carried out without a kick."""
    control = rig.net.control
    assert control is not None
    command = rig.placed(b"\2\0\7\0\xee")  # add VLAN 7
    rig.go(mode)
    before = rig.context()
    with rig.silence():
        pass
    control.add([(command.address, 4)], [(command.address + 4, 1)])
    control.kick(force=True)
    assert rig.context() == before
    assert command.view[4] == 0xEE
    rig.go(ACTIVE)
    control.wait(TIMEOUT)
    assert command.view[4] == 0
    assert value(rig.context(), VLAN_TABLE)[0] == 0x80


@pytest.mark.spec("DEV-14", "DEV-13")
def test_what_is_being_sent_ends_before_the_answer(slow: ServerProcess) -> None:
    """Frames between fetch and completion hold Stop up; buffers that wait for frames do not."""
    with NetRig(slow) as rig:
        for number in range(4):
            rig.net.send(out(bytes([number])), kick=False)
        rig.queue.kick(force=True)
        until(lambda: outstanding(slow, "vf1") == 4, "fetched")
        mark = slow.mark()
        pending = rig.send(MODE_SET, bytes([STOP, 0, 0, 0, 0, 0, 0, 0]))
        slow.wait_log("DEV_MODE_SET vf1: waits", since=mark)
        assert until_done(rig, pending, lambda: rig.queue.device_used_idx < 4).code == OK
        with rig.silence():
            rig.peer.send(back(b"later"))
            rig.device.notify(0)
        assert rig.heard(4) == [out(bytes([number])) for number in range(4)]
        rig.go(ACTIVE)
        assert rig.got() == [back(b"later")]


# Configuration changes.


@SILENT
@pytest.mark.spec("DEV-23", "DEV-16", "DEV-20")
def test_a_link_that_goes_down(rig: NetRig, mode: int) -> None:
    """In Stop the context changes, in Freeze it does not; the driver is told after Active, once."""
    assert rig.net.status == LINK_UP
    rig.go(mode)
    before = rig.context()
    with rig.silence():
        rig.server.ask("set-link", function="vf1", up=False)
        during = rig.context()
    assert (during == before) is (mode == FREEZE)
    assert value(during, DEVICE_CFG)[6] == (LINK_UP if mode == FREEZE else 0)
    rig.go(ACTIVE)
    assert rig.signalled(10) == [0]
    assert rig.signalled() == []
    assert rig.net.status == 0
    rig.server.ask("set-link", function="vf1", up=True)


@SILENT
@pytest.mark.spec("DEV-23")
def test_a_configuration_change_is_held(rig: NetRig, mode: int) -> None:
    rig.go(STOP)
    with rig.silence():
        rig.break_device(3)
        rig.go(mode)
    assert value(rig.context(), PENDING)[0] == 1
    rig.go(ACTIVE)
    assert rig.signalled(10) == [0]
    assert rig.device.status & NEEDS_RESET


# Freeze.


@pytest.mark.spec("DEV-20", "DEV-25", "DEV-26")
def test_nothing_changes_the_context_in_freeze(rig: NetRig) -> None:
    """Frames, commands, the link, writes to device configuration and status; reads tell the truth."""
    config = rig.device.config_bytes()
    rig.go(FREEZE)
    before = rig.context()
    rig.peer.send(back(b"comes"))
    rig.peer.flush()
    rig.net.send(out(b"goes"))
    rig.server.ask("set-link", function="vf1", up=False)
    rig.server.ask("set-link", function="vf1", up=True)
    rig.server.ask("announce-self", function="vf1")
    for offset in range(24):
        rig.device.config_write(offset, 1, 0xA5)
    rig.device.common.write("device_status", 0)
    assert rig.device.config_bytes() == config
    assert rig.context() == before
    rig.go(ACTIVE)
    heard = rig.heard(2)
    assert out(b"goes") in heard
    assert any(frame[:12] == BROADCAST + ONE for frame in heard), "the announcement waited too"


@pytest.mark.spec("DEV-17", "DEV-28")
def test_reads_are_alike_in_every_mode(rig: NetRig) -> None:
    """Device configuration by its BAR and by the PCI_CFG window."""
    expected = rig.device.config_bytes()
    assert expected[:10] == ONE + struct.pack("<HH", LINK_UP, 2)
    rig.device.window_read(0, rig.device.structures[4].offset, 4)
    data = rig.device.structures[5].capability + 16
    for mode in (ACTIVE, STOP, FREEZE):
        rig.go(mode)
        assert rig.device.config_bytes() == expected
        assert rig.device.function.config_read(data, 4) == int.from_bytes(ONE[:4], "little")


# Contexts.


@EACH
@pytest.mark.spec("DEV-07", "DEV-33", "DEV-34", "DEV-35", "DEV-36", "DEV-06")
def test_a_context_is_read_in_each_mode(rig: NetRig, mode: int) -> None:
    """All of it at once, and in small pieces while frames pass; then two zeros."""
    rig.go(mode)
    stream = rig.context()
    assert rig.read(64) == (0, b"")
    assert rig.adm(CTX_DISCARD).code == OK
    pieces = b""
    left = 1
    while left:
        rig.peer.send(back(b"x"))
        left, piece = rig.read(50)
        pieces += piece
    assert whole(stream)
    assert whole(pieces)
    kinds = [kind for kind, _ in parse(pieces)]
    assert [kind for kind in kinds if kind >= 0x100] == list(range(0x100, 0x107))
    assert kinds.count(VQ_CFG) == 5


@pytest.mark.spec("DEV-10")
def test_fields_query(rig: NetRig) -> None:
    """The fields of a network device with their lengths, and none of a disk's."""
    answer = rig.adm(FIELDS_QUERY, room=4096)
    assert answer.code == OK
    found = dict(struct.iter_unpack("<HxxI", answer.result))
    assert {0, 1, 2} <= set(found)
    assert found[DEVICE_CFG] == 24
    assert {kind: length for kind, length in found.items() if kind >= 0x100} == FIXED | dict.fromkeys(
        VARYING, 0xFFFFFFFF
    )


@pytest.mark.spec("DEV-11", "DEV-37", "DEV-38")
def test_later_contexts_and_fields_win(rig: NetRig) -> None:
    """Several contexts, in one command and in several, and a field twice in one: the last value runs."""
    rig.net.set_vlan(1)
    rig.go(FREEZE)
    base = rig.context()
    assert rig.write(base) == OK
    assert rig.write(context(vlans(2)) + context(vlans(3), vlans(4))) == OK
    assert rig.write(context(vlans(5), vlans(6))) == OK
    assert value(rig.context(), VLAN_TABLE) == vlans(6)[16:]
    rig.go(ACTIVE)
    assert [frame[:16] for frame in rig.heard(2)] == [  # it announces itself
        BROADCAST + ONE + b"\x80\x35\0\1",
        BROADCAST + ONE + b"\x81\0\0\6",
    ]
    for vlan in (1, 2, 3, 4, 5, 6):
        rig.peer.send(back(bytes([vlan]), vlan=vlan))
    assert rig.got() == [back(b"\6", vlan=6)]


@pytest.mark.spec("DEV-11", "DEV-38")
def test_a_forgotten_field_is_not_applied(rig: NetRig) -> None:
    """DISCARD in the stream: what stands behind it counts."""
    rig.go(FREEZE)
    assert rig.write(context(vlans(2), field(2), field(RX_MODE, b"\0\1" + bytes(6)))) == OK
    after = rig.context()
    assert value(after, VLAN_TABLE) == bytes(512)
    assert value(after, RX_MODE) == b"\0\1" + bytes(6)


@pytest.mark.spec("DEV-12")
@pytest.mark.parametrize("mode", [ACTIVE, STOP], ids=["active", "stop"])
def test_write_only_in_freeze(rig: NetRig, mode: int) -> None:
    rig.go(mode)
    before = rig.context()
    assert rig.write(context(vlans(9))) == WRONG_STATE
    assert rig.context() == before


@pytest.mark.spec("DEV-24", "DEV-05", "DEV-08", "DEV-09")
def test_partial_contexts(rig: NetRig) -> None:
    """A table that was begun keeps it in Freeze; DISCARD drops it, and begins the read anew."""
    rig.go(FREEZE)
    before = rig.context()
    assert rig.write(context(vlans(9))[:300]) == OK
    assert rig.set_mode(ACTIVE) == WRONG_STATE
    assert rig.set_mode(STOP) == WRONG_STATE
    rig.read(100)
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.size() == len(before)
    assert rig.read_rest() == before
    rig.go(STOP)


@pytest.mark.spec("DEV-32")
def test_fields_of_another_length(rig: NetRig) -> None:
    """Refused for every field of a fixed length, and nothing changed; a disk's field is unknown."""
    rig.go(FREEZE)
    before = rig.context()
    for kind, length in FIXED.items():
        for wrong in (0, length - 1, length + 1, 4096):
            assert rig.write(context(field(kind, bytes(wrong)))) == WRONG_CONTENT
    assert rig.write(context(field(DEVICE_CFG, bytes(25)))) == WRONG_CONTENT
    assert rig.write(context(field(0x200, bytes(8)))) == WRONG_CONTENT
    assert rig.context() == before


# Resets.


@pytest.mark.spec("DEV-29", "DEV-18")
def test_commands_wait_for_a_function_reset(slow: ServerProcess) -> None:
    """FLR in Freeze: READ is answered after it, with the settings of a new function."""
    with NetRig(slow) as rig:
        rig.net.set_vlan(3)
        rig.net.set_mac(mac(77))
        rig.go(FREEZE)
        function = rig.device.function
        function.config_write(0x3C, 1, 9)
        function.flr()
        pending = rig.send(CTX_READ, room=1 << 16)
        answer = until_done(rig, pending, lambda: function.config_read(0x3C, 1) == 9)
        assert answer.code == OK
        stream = rig.context()
        assert value(stream, VLAN_TABLE) == bytes(512)
        assert value(stream, DEVICE_CFG)[:6] == ONE
        rig.go(ACTIVE)
        rig.net = NetDriver(rig.device, queue_size=16, timeout=TIMEOUT)
        rig.peer.send(back(b"new"))
        assert rig.got() == [back(b"new")]


@pytest.mark.spec("DEV-30")
def test_commands_wait_for_a_device_reset(slow: ServerProcess) -> None:
    """A status of 0, frames on their way: MODE_SET is answered when the status reads 0, then all is quiet."""
    with NetRig(slow) as rig:
        rig.net.send(out(b"on its way"))
        rig.device.common.write("device_status", 0)
        pending = rig.send(MODE_SET, bytes([STOP, 0, 0, 0, 0, 0, 0, 0]))
        assert until_done(rig, pending, lambda: rig.device.status != 0).code == OK
        with rig.silence():
            rig.peer.send(back(b"to nobody"))
        until(lambda: rig.peer.transmitters[0].device_used_idx == 1, "the peer has sent it")


@pytest.mark.spec("DEV-13", "DEV-14", "DEV-22")
def test_silence_under_load(rig: NetRig) -> None:
    """The mode changes again and again while frames pass both ways; none is lost or comes twice."""
    sent, came = 0, []
    for turn in range(6):
        for number in range(10):
            rig.net.send(out(bytes([turn, number])), kick=number == 9)
            rig.peer.send(back(bytes([turn, number])))
        rig.go((STOP, FREEZE)[turn % 2])
        with rig.silence(0.03):
            rig.device.notify(1)
        rig.go(ACTIVE)
        sent += 10
        came += rig.heard(10)
        assert [frame[14:16] for frame in rig.got(10)] == [bytes([turn, number]) for number in range(10)]
    assert [frame[14:16] for frame in came] == [bytes([n // 10, n % 10]) for n in range(sent)]
