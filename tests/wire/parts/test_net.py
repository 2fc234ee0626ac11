"""The parts of a network device: what its control queue was told, read, set, and taken along.

VF 1 is the member, VF 2 its peer at the switch.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.arrival import arrive, gone
from tests.wire.draft_rig import OK, RING_PACKED, TIMEOUT, outstanding
from tests.wire.frames import ethernet, mac, received
from tests.wire.parts.rig import (
    COUNT,
    LIST,
    METADATA_GET,
    MODE_SET,
    NET_CVQ_CFG,
    OURS,
    SELECTED,
    SIZE,
    STOPPED,
    WRONG_CONTENT,
    Part,
    PartsRig,
    build,
    changed,
    find,
    headers,
    named,
    ours,
    without_ours,
)
from tests.wire.running import running, until
from vfu_client.drivers.net import FEATURES, NetDriver
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

GUEST_ANNOUNCE, HASH_REPORT, RSS = 21, 57, 60
ONE, TWO = mac(1), mac(2)
KEY = bytes(range(40))
OPTIONS = ("--device", "net", "--vfs", "2", "--queues", "2", "--mac", "02:00:00:00:00:00")

# Class and command of each part, in the standard's order.
MODES = [(0, command) for command in range(6)]
PROMISC = (0, 0)
MAC_TABLE, MAC_ADDRESS, VLANS, PAIRS, RSS_CONFIG, HASH_CONFIG = (1, 0), (1, 1), (2, 0), (4, 0), (4, 1), (4, 2)


def told(command: tuple[int, int], value: bytes = b"") -> Part:
    """The part for a command of the control queue."""
    return Part(NET_CVQ_CFG, bytes(command) + bytes(6), value)


def vlans(*numbers: int) -> Part:
    """The whole VLAN table."""
    return told(VLANS, struct.pack(f"<{len(numbers)}H", *numbers))


def table(unicast: list[bytes], multicast: list[bytes]) -> Part:
    """Both tables of addresses."""
    return told(
        MAC_TABLE, b"".join(struct.pack("<I", len(one)) + b"".join(one) for one in (unicast, multicast))
    )


class NetPartsRig(PartsRig):
    """VF 1 under a network driver on two queue pairs that is not promiscuous, and a peer."""

    def __init__(
        self, server: ServerProcess, *, packed: bool = False, features: frozenset[int] = FEATURES
    ) -> None:
        self.features = features
        super().__init__(server, packed=packed)
        if self.net.control is not None:
            self.net.set_mode(0, False)

    def _drive(self, socket: Path) -> None:
        self.net = NetDriver.open(
            socket,
            memory=self._memory,
            pairs=2,
            queue_size=16,
            buffer_size=256,
            features=self.features,
            ring_features=KNOWN_FEATURES - (set() if self.packed else {RING_PACKED}),
            timeout=TIMEOUT,
        )
        self.peer = NetDriver.open(self.server.socket("vf2"), queue_size=64, timeout=TIMEOUT)

    def __exit__(self, *raised: object) -> None:
        self.peer.close()
        super().__exit__(*raised)

    @property
    def device(self) -> VirtioPci:
        return self.net.device

    @property
    def queue(self) -> DriverQueue:
        return self.net.transmitters[0]

    @property
    def queues(self) -> list[DriverQueue]:
        """All of them."""
        assert self.net.control is not None
        return [*self.net.receivers, *self.net.transmitters, self.net.control]

    def value(self, command: tuple[int, int]) -> bytes:
        """What the part for a command says."""
        return find(self.parts(), *told(command)[:2]).value

    def commands(self) -> list[tuple[int, int]]:
        """Class and command of the parts that there are, in their order."""
        return [(part.selector[0], part.selector[1]) for part in self.parts() if part.kind == NET_CVQ_CFG]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start(*OPTIONS)


@pytest.fixture
def rig(server: ServerProcess) -> Iterator[NetPartsRig]:
    with NetPartsRig(server) as made:
        yield made


def out(data: bytes) -> bytes:
    """A frame of the member to its peer."""
    return ethernet(TWO, ONE, data)


def back(data: bytes, *, to: bytes = ONE, vlan: int | None = None) -> bytes:
    """A frame of the peer to the member."""
    return ethernet(to, TWO, data, vlan=vlan)


# Which parts there are.


@pytest.mark.spec("P-DEV-43", "P-DEV-61")
def test_the_order_of_parts(rig: NetPartsRig) -> None:
    """The control queue's stand behind the common ones, by class and command; then ours."""
    assert [part.kind for part in rig.parts()][:18] == [
        0x100,
        0x101,
        *[0x102] * 5,
        0x103,
        *[0x104] * 5,
        *[0x105] * 5,
    ]
    kinds = [part.kind for part in rig.parts()][18:]
    assert kinds == [*[NET_CVQ_CFG] * 10, *[OURS] * kinds.count(OURS)]
    assert rig.commands() == [*MODES, MAC_TABLE, MAC_ADDRESS, VLANS, PAIRS]
    backwards = headers(rig.parts()[::-1])
    assert rig.parts_get(SELECTED, backwards).result == build(rig.parts())


def test_parts_by_features(server: ServerProcess) -> None:
    """With RSS it tells the pairs too; ANNOUNCE_ACK would tell nothing, so it is not there."""
    with NetPartsRig(server, features=FEATURES | {GUEST_ANNOUNCE, HASH_REPORT, RSS}) as rig:
        assert rig.commands()[8:] == [VLANS, PAIRS, HASH_CONFIG]
        rig.net.set_hash(0x5, KEY)
        assert rig.value(HASH_CONFIG) == struct.pack("<I8xB", 5, 40) + KEY
        rig.net.set_rss([0, 1, 1, 0], types=0x3, key=KEY, unclassified=1)
        assert rig.commands()[8:] == [VLANS, RSS_CONFIG]
        expected = struct.pack("<IHH4HHB", 3, 3, 1, 0, 1, 1, 0, 2, 40) + KEY
        assert rig.value(RSS_CONFIG) == expected
        rig.stop()
        assert rig.set(rig.parts()) == OK
        assert rig.set(without_ours(rig.parts())) == OK
        rig.resume()
        assert rig.value(RSS_CONFIG) == expected


def test_without_a_control_queue(server: ServerProcess) -> None:
    """Nothing that a driver cannot command, and nothing that it could not have is set."""
    with NetPartsRig(server, features=frozenset()) as rig:
        assert rig.commands() == []
        rig.stop()
        before = rig.parts()
        assert rig.set([*before, vlans(1)]) == WRONG_CONTENT
        assert rig.set(before) == OK


def test_parts_tell_what_was_commanded(rig: NetPartsRig) -> None:
    """Each in the form of its command's data."""
    assert [rig.value(command) for command in MODES] == [b"\0"] * 6
    assert rig.value(MAC_ADDRESS) == ONE
    assert rig.value(MAC_TABLE) == bytes(8)
    assert rig.value(VLANS) == b""
    assert rig.value(PAIRS) == b"\2\0"
    for _, command in MODES:
        rig.net.set_mode(command, True)
        assert rig.value((0, command)) == b"\1"
        rig.net.set_mode(command, False)
    rig.net.set_mac(mac(0x77))
    assert rig.value(MAC_ADDRESS) == mac(0x77)
    groups = [b"\x01\0\x5e\0\0\1", b"\x33\x33\0\0\0\1"]
    rig.net.set_mac_table([mac(0x88)], groups)
    assert rig.value(MAC_TABLE) == table([mac(0x88)], groups).value
    for vlan in (4095, 7, 0):
        rig.net.set_vlan(vlan)
    assert rig.value(VLANS) == vlans(0, 7, 4095).value
    rig.net.set_vlan(7, False)
    assert rig.value(VLANS) == vlans(0, 4095).value
    rig.net.set_pairs(1)
    assert rig.value(PAIRS) == b"\1\0"


def test_the_largest_set(rig: NetPartsRig) -> None:
    """All VLANs and full tables: far below what Linux can take in one command (248 KiB)."""
    rig.stop()
    addresses = [mac(0x100 + number) for number in range(64)]
    groups = [b"\1\0\0\0\0" + bytes([number]) for number in range(64)]
    large = changed(rig.parts(), vlans(*range(4096)), table(addresses, groups))
    assert rig.set(without_ours(large)) == OK
    whole = rig.parts_get().result
    size = int.from_bytes(rig.metadata(SIZE).result[:4], "little")
    assert len(whole) <= size < 62 * 4096
    rig.resume()
    assert rig.value(VLANS) == vlans(*range(4096)).value


# What is set.


@pytest.mark.spec("P-DEV-42", "P-DEV-62")
def test_settings_take_effect_at_the_resume(rig: NetPartsRig) -> None:
    """From the standard's parts alone: the address, a VLAN and a group; frames are received by them."""
    group = b"\x01\0\x5e\0\0\1"
    rig.stop()
    parts = without_ours(rig.parts())
    new = changed(parts, told(MAC_ADDRESS, mac(0x66)), vlans(5), table([mac(0x67)], [group]))
    assert rig.set(new) == OK
    assert rig.net.mac == ONE
    rig.resume()
    assert rig.net.mac == mac(0x66)
    for to, vlan in itertools.product((ONE, mac(0x66), mac(0x67), group), (None, 5, 6)):
        rig.peer.send(back(b"x", to=to, vlan=vlan))
    found = received(rig.net, 6)
    assert found == [
        back(b"x", to=to, vlan=vlan) for to in (mac(0x66), mac(0x67), group) for vlan in (None, 5)
    ]


@pytest.mark.spec("P-DEV-45", "P-DEV-04")
def test_values_that_no_command_could_have(rig: NetPartsRig) -> None:
    """Other lengths, a group for an address, VLANs and pairs that there are not: refused, nothing changed."""
    rig.net.set_vlan(3)
    rig.stop()
    before = rig.parts()
    bad = [
        *(told(command, value) for command in MODES for value in (b"", b"\2", b"\0\0")),
        *(told(MAC_ADDRESS, value) for value in (b"", bytes(5), bytes(7), b"\1\0\0\0\0\1", bytes(6))),
        *(told(VLANS, value) for value in (b"\1", b"\0\x10", b"\xff\xff", b"\1\0\2")),
        *(told(PAIRS, value) for value in (b"", b"\1", b"\0\0", b"\3\0", b"\1\0\0\0")),
        told(MAC_TABLE, b""),
        told(MAC_TABLE, bytes(7)),
        told(MAC_TABLE, bytes(9)),
        told(MAC_TABLE, b"\xff\xff\xff\xff" + bytes(4)),
        table([b"\1\0\0\0\0\1"], []),
        table([], [mac(3)]),
    ]
    for part in bad:
        assert rig.set(changed(without_ours(before), part)) == WRONG_CONTENT, part
    assert rig.parts() == before
    rig.resume()
    rig.peer.send(back(b"x", vlan=3))
    assert received(rig.net) == [back(b"x", vlan=3)]


@pytest.mark.spec("P-DEV-47", "P-DEV-04")
def test_commands_that_no_part_is_for(rig: NetPartsRig) -> None:
    """Unknown selectors, also those of features that were not taken; OPTIONAL ones are passed over."""
    rig.stop()
    before = rig.parts()
    unknown = [told((5, 0), bytes(8)), told((9, 9)), told((2, 1), b"\1\0"), told(RSS_CONFIG, bytes(13))]
    odd = Part(NET_CVQ_CFG, b"\0\0\0\0\0\0\0\1", b"\1")
    for part in (*unknown, odd):
        assert rig.set([*before, part]) == WRONG_CONTENT
    assert rig.parts() == before
    for part in (*unknown[:3], odd):
        assert rig.set([*before, part._replace(flags=1)]) == OK
    rig.resume()
    assert rig.value(PROMISC) == b"\0"


@pytest.mark.spec("P-DEV-04")
def test_parts_of_a_disk(rig: NetPartsRig) -> None:
    """Another type of device is refused by our part that names it."""
    rig.stop()
    before = rig.parts()
    assert rig.set(changed(before, ours(0x0F, struct.pack("<H6x", 2)))) == WRONG_CONTENT
    assert rig.parts() == before


@pytest.mark.spec("P-DEV-59")
@pytest.mark.parametrize("by", ["flr", "status"])
def test_a_reset_forgets_what_was_commanded(rig: NetPartsRig, by: str) -> None:
    """And what was set."""
    rig.net.set_vlan(9)
    rig.net.set_mac(mac(0x99))
    rig.stop()
    assert rig.set(without_ours(rig.parts())) == OK
    if by == "flr":
        rig.device.function.flr()
    else:
        rig.device.common.write("device_status", 0)
        until(lambda: rig.device.status == 0, "the device reset")
    assert rig.commands() == []
    rig.resume()
    driver = NetDriver(rig.device, queue_size=16, timeout=TIMEOUT)
    assert driver.mac == ONE
    assert rig.value(VLANS) == b""
    assert rig.value(MAC_ADDRESS) == ONE


# Frames.


@pytest.mark.spec("P-DEV-49", "P-DEV-51", "P-DEV-54")
def test_no_frame_moves(rig: NetPartsRig) -> None:
    """Frames both ways while it is stopped: all pass once it runs. Nothing was taken ahead of that."""
    rig.drain()
    rig.stop()
    rig.net.send(out(b"waits"), kick=False)
    with rig.silence():
        rig.queue.kick(force=True)
        for number in range(5):
            rig.peer.send(back(bytes([number])))
        rig.peer.flush()
    assert rig.peer.poll() == []
    rig.resume()
    assert received(rig.peer) == [out(b"waits")]
    assert received(rig.net, 5) == [back(bytes([number])) for number in range(5)]


@pytest.mark.spec("P-DEV-51")
def test_a_control_command_waits(rig: NetPartsRig) -> None:
    """Kicked while stopped: parts tell of it after the resume."""
    control = rig.net.control
    assert control is not None
    command = rig.placed(b"\2\0\7\0\xee")
    rig.stop()
    before = rig.parts()
    control.add([(command.address, 4)], [(command.address + 4, 1)])
    control.kick(force=True)
    assert rig.parts() == before
    assert command.view[4] == 0xEE
    rig.resume()
    control.wait(TIMEOUT)
    assert rig.value(VLANS) == b"\7\0"


@pytest.mark.spec("P-DEV-54")
def test_a_link_that_goes_down(rig: NetPartsRig) -> None:
    """Silence while it is stopped, one configuration interrupt after it."""
    rig.drain()
    rig.stop()
    with rig.silence():
        rig.server.ask("set-link", function="vf1", up=False)
    rig.resume()
    assert rig.signalled(10) == [0]
    rig.server.ask("set-link", function="vf1", up=True)


@pytest.mark.spec("P-DEV-49", "P-DEV-50")
def test_what_is_being_sent_ends_before_the_answer() -> None:
    """Frames between fetch and completion hold the stop up; buffers that wait for frames do not."""
    with running() as start:
        slow = start(*OPTIONS, "--io-delay-ms", "1000")
        with NetPartsRig(slow) as rig:
            used = rig.queue.device_used_idx
            for number in range(4):
                rig.net.send(out(bytes([number])), kick=False)
            rig.queue.kick(force=True)
            until(lambda: outstanding(slow, "vf1") == 4, "the frames were fetched")
            mark = slow.mark()
            pending = rig.send(MODE_SET, STOPPED)
            assert rig.answer(pending).code == OK
            assert rig.queue.device_used_idx == (used + 4) & 0xFFFF
            assert "DEV_MODE_SET vf1: waits" in slow.log[mark:]
            with rig.silence():
                rig.device.notify(1)
            assert received(rig.peer, 4) == [out(bytes([number])) for number in range(4)]


# Moves.


@pytest.mark.spec("P-DEV-50")
@pytest.mark.parametrize(
    ("packed", "foreign"), [(False, False), (True, False), (False, True)], ids=["split", "packed", "foreign"]
)
def test_a_network_function_moves(server: ServerProcess, packed: bool, foreign: bool) -> None:
    """To the neighbour: settings, buffers that wait for frames, and frames that wait to be sent."""
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(NetPartsRig(server, packed=packed))
        rig.net.set_vlan(5)
        rig.net.set_mac(mac(0x55))
        for number in range(20):
            rig.peer.send(back(bytes([number]), to=mac(0x55)))
            assert received(rig.net) == [back(bytes([number]), to=mac(0x55))]
            rig.net.send(out(bytes([number])))
            assert received(rig.peer) == [out(bytes([number]))]
        rig.stop()
        rig.net.send(out(b"waits"))
        parts = rig.parts()
        rig.peer.close()
        gone(server, "vf2")
        rig.stop(vf=2)
        assert rig.create(7, 1, vf=2) == OK
        assert rig.set(without_ours(parts) if foreign else parts, id_=7, vf=2) == OK
        left = rig.device
        there = VirtioPci.open(server.socket("vf2"), memory=rig._memory, timeout=TIMEOUT)
        arrive(rig.net, there, rig.queues)
        left.connection.device_reset()
        left.connection.close()
        rig.peer = NetDriver.open(server.socket("vf1"), queue_size=64, timeout=TIMEOUT)
        rig.resume(vf=2)
        heard: list[bytes] = []
        until(lambda: out(b"waits") in _take(rig.peer, heard), "the frame that waited")
        rig.peer.send(back(b"comes", to=mac(0x55), vlan=5))
        rig.peer.send(back(b"not", to=mac(0x55), vlan=6))
        rig.peer.send(back(b"goes", to=mac(0x55)))
        assert received(rig.net, 2) == [
            back(b"comes", to=mac(0x55), vlan=5),
            back(b"goes", to=mac(0x55)),
        ]
        assert rig.net.mac == mac(0x55)


def _take(driver: NetDriver, into: list[bytes]) -> list[bytes]:
    into += [frame.data for frame in driver.poll()]
    return into


def test_metadata(rig: NetPartsRig) -> None:
    """It counts the control queue's parts with the others."""
    parts = rig.parts()
    assert rig.metadata(COUNT).result[:4] == struct.pack("<I", len(parts))
    assert rig.adm(METADATA_GET, named(0, 3) + bytes([LIST]) + bytes(7), 8 + 16 * len(parts)).code == OK
