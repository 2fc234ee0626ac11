"""Control commands of the network device: what each changes, and that a refused one changes nothing."""

from __future__ import annotations

import struct

import numpy as np
import pytest

from pymodel.devices.net.control import Command, Refused, carry_out
from pymodel.devices.net.filter import ReceiveFilter
from pymodel.devices.net.settings import MacTable, Rss, Settings
from tests.model.devices.net.rig import BROADCAST, MAC, PEER, NetRig, ethernet

ALL = (1 << 64) - 1
PAIRS = 4
START = Settings(mac=MAC)
GROUP = b"\x01\0\x5e\0\0\x07"
OTHER = b"\x02\0\0\0\0\x33"
KEY = bytes(range(40))


def run(kind: tuple[int, int], data: bytes, settings: Settings = START, features: int = ALL) -> Settings:
    return carry_out(kind, Command(data, settings, features, PAIRS))


def tables(unicast: list[bytes], multicast: list[bytes]) -> bytes:
    return b"".join(struct.pack("<I", len(table)) + b"".join(table) for table in (unicast, multicast))


def rss(
    types: int = 2,
    table: tuple[int, ...] = (0, 1, 2, 3),
    unclassified: int = 1,
    pairs: int = 4,
    key: bytes = KEY,
) -> bytes:
    head = struct.pack("<IHH", types, len(table) - 1, unclassified)
    return head + struct.pack(f"<{len(table)}HHB", *table, pairs, len(key)) + key


@pytest.mark.parametrize(
    ("number", "name"), list(enumerate(["promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast"]))
)
def test_modes(number: int, name: str) -> None:
    on = run((0, number), b"\1")
    assert on.modes == {"promisc", name}
    assert run((0, number), b"\0", on).modes == {"promisc"} - {name}


def test_mac_table() -> None:
    found = run((1, 0), tables([OTHER, PEER, OTHER], [GROUP]))
    assert found.unicast == MacTable(frozenset({OTHER, PEER}))
    assert found.multicast == MacTable(frozenset({GROUP}))
    assert run((1, 0), tables([], []), found) == START


def test_mac_table_overflow() -> None:
    """Up to 64 of each kind are told apart; with more, all of the kind are received."""
    many = [b"\x02\0\0\0\1" + bytes([last]) for last in range(65)]
    full = run((1, 0), tables(many[:64], []))
    assert len(full.unicast.addresses) == 64
    assert not full.unicast.overflow
    over = run((1, 0), tables(many, [GROUP]))
    assert over.unicast == MacTable(overflow=True)
    assert over.multicast == MacTable(frozenset({GROUP}))
    quiet = Settings(mac=MAC, modes=frozenset(), unicast=over.unicast)
    assert accepts(quiet, ethernet(to=PEER))
    assert not accepts(quiet, ethernet(to=GROUP))


def test_mac_address() -> None:
    assert run((1, 1), OTHER).mac == OTHER


def test_vlans() -> None:
    found = run((2, 0), struct.pack("<H", 4095), run((2, 0), struct.pack("<H", 7)))
    assert found.vlans == {7, 4095}
    assert run((2, 1), struct.pack("<H", 7), found).vlans == {4095}
    assert run((2, 1), struct.pack("<H", 8), found) == found


def test_steering() -> None:
    """Of two commands that choose a mode the last one counts; hashes that are reported stay."""
    by_hash = run((4, 1), rss(pairs=3))
    assert by_hash.rss == Rss(1, (0, 1, 2, 3))
    assert (by_hash.pairs, by_hash.hash_types, by_hash.hash_key) == (3, 2, KEY)
    automatic = run((4, 0), struct.pack("<H", 2), by_hash)
    assert (automatic.rss, automatic.pairs, automatic.hash_types) == (None, 2, 2)
    hashed = run((4, 2), struct.pack("<I8xB", 0x3F, 40) + KEY)
    assert (hashed.rss, hashed.hash_types, hashed.hash_key) == (None, 0x3F, KEY)
    # As Linux sends it: RSS's structure with a table of one entry, whose count of queues stands in the way.
    assert run((4, 2), struct.pack("<IHHHHB", 0x3F, 0, 0, 0, 1, 40) + KEY) == hashed
    # Linux 7.3 pads its structures behind the key.
    assert run((4, 2), struct.pack("<I8xB", 0x3F, 40) + KEY + b"\0") == hashed
    assert run((4, 1), rss(pairs=3) + b"\0") == by_hash


def test_offloads() -> None:
    """What was negotiated and is not named is off."""
    taken = 1 << 1 | 1 << 7 | 1 << 8
    assert run((5, 0), struct.pack("<Q", 1 << 1), features=taken | 1 << 2).offloads_off == 1 << 7 | 1 << 8
    assert run((5, 0), struct.pack("<Q", taken), features=taken | 1 << 2).offloads_off == 0


def test_announce_ack() -> None:
    assert run((3, 0), b"") == START


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ((0, 0), b""),
        ((0, 0), b"\1\0"),
        ((0, 0), b"\2"),
        ((0, 5), b"\xff"),
        ((0, 6), b"\1"),
        ((1, 0), b""),
        ((1, 0), tables([PEER], [])[:-1]),
        ((1, 0), tables([PEER], []) + b"\0"),
        ((1, 0), struct.pack("<I", 1) + PEER),  # the second table is missing
        ((1, 0), struct.pack("<I", 0xFFFFFFFF) + PEER),
        ((1, 0), struct.pack("<I", (1 << 32) // 6 + 1) + PEER),
        ((1, 0), tables([GROUP], [])),
        ((1, 0), tables([], [PEER])),
        ((1, 0), tables([PEER] * 11000, [])),  # over 64 KiB
        ((1, 1), b""),
        ((1, 1), PEER + b"\0"),
        ((1, 1), GROUP),
        ((1, 1), bytes(6)),
        ((1, 2), PEER),
        ((2, 0), b"\1"),
        ((2, 0), struct.pack("<H", 4096)),
        ((2, 1), struct.pack("<H", 0xFFFF)),
        ((2, 2), b"\1\0"),
        ((3, 0), b"\0"),
        ((3, 1), b""),
        ((4, 0), struct.pack("<H", 0)),
        ((4, 0), struct.pack("<H", PAIRS + 1)),
        ((4, 0), b"\1"),
        ((4, 1), b""),
        ((4, 1), rss()[:-1]),
        ((4, 1), rss(types=1 << 6)),
        ((4, 1), rss(table=(0, 1, 2))),
        ((4, 1), rss(table=(0,) * 1024)),
        ((4, 1), rss(table=(0, PAIRS))),
        ((4, 1), rss(table=(0, 0x8000))),
        ((4, 1), rss(unclassified=PAIRS)),
        ((4, 1), rss(pairs=0)),
        ((4, 1), rss(pairs=PAIRS + 1)),
        ((4, 1), rss(key=bytes(41))),
        ((4, 1), struct.pack("<IHH", 0, 0xFFFF, 0)),
        ((4, 1), struct.pack("<IHH", 0, 0, 0) + b"\0"),
        ((4, 2), b""),
        ((4, 2), struct.pack("<I8xB", 1 << 9, 0)),
        ((4, 2), struct.pack("<I8xB", 1, 2) + b"k"),
        ((4, 3), b""),
        ((5, 0), b"\0" * 4),
        ((5, 0), struct.pack("<Q", 1 << 11)),
        ((5, 1), bytes(8)),
        ((6, 0), bytes(8)),
        ((0xFF, 0xFF), b""),
    ],
)
def test_refused(kind: tuple[int, int], data: bytes) -> None:
    with pytest.raises(Refused):
        run(kind, data)


@pytest.mark.parametrize(
    ("kind", "data", "feature"),
    [
        ((0, 0), b"\1", 18),
        ((0, 1), b"\1", 18),
        ((0, 2), b"\1", 20),
        ((0, 5), b"\1", 20),
        ((1, 0), tables([], []), 18),
        ((1, 1), PEER, 23),
        ((2, 0), b"\1\0", 19),
        ((3, 0), b"", 21),
        ((4, 0), b"\2\0", 22),
        ((4, 1), rss(), 60),
        ((4, 2), struct.pack("<I8xB", 0, 0), 57),
        ((5, 0), bytes(8), 2),
    ],
)
def test_commands_need_their_feature(kind: tuple[int, int], data: bytes, feature: int) -> None:
    run(kind, data, features=1 << feature)
    with pytest.raises(Refused):
        run(kind, data, features=ALL & ~(1 << feature))


def test_refused_at_the_queue() -> None:
    """VIRTIO_NET_ERR is 1; the device goes on, nothing was changed, both are counted."""
    with NetRig() as rig:
        before = rig.device.capture_fields(None)[0].value[0].tobytes()
        assert rig.driver.answer((0, 0), b"\2") == 1
        assert rig.driver.answer((9, 9)) == 1
        assert rig.device.capture_fields(None)[0].value[0].tobytes() == before
        assert rig.driver.answer((0, 0), b"\0") == 0
        assert rig.counters["commands"] == 3
        assert rig.counters["commands-refused"] == 2


def test_refusals_do_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    with NetRig() as rig:
        for _ in range(50):
            assert rig.driver.answer((9, 9)) == 1
        assert sum("refused" in record.message for record in caplog.records) == 10
        rig.restart()
        rig.driver.answer((9, 9))
        assert sum("refused" in record.message for record in caplog.records) == 11


def test_configuration_that_a_command_changes_has_a_new_generation() -> None:
    """Also if the driver changed it ("Device Configuration Space"), but it needs no interrupt for that."""
    with NetRig() as rig:
        common = rig.pci.common
        assert rig.driver.mac == MAC
        before = common.read("config_generation")
        rig.driver.set_mac(MAC)
        rig.driver.set_mode(0, False)
        assert common.read("config_generation") == before
        rig.driver.set_mac(PEER)
        assert common.read("config_generation") != before
        assert not rig.function.transport.config_owed
        assert rig.pci.msix is not None
        with pytest.raises(TimeoutError):
            rig.pci.msix.interrupts[0].wait(0)


@pytest.mark.parametrize("part", ["header", "answer"])
def test_no_room_for_an_answer(part: str) -> None:
    """A command that can't be answered breaks the device."""
    with NetRig() as rig:
        assert rig.driver.control is not None
        memory = rig.pci.memory.allocate(16)
        readable = [(memory.address, 1 if part == "header" else 3)]
        rig.driver.control.add(readable, [(memory.address + 8, 1)] if part == "header" else [])
        rig.driver.control.kick(force=True)
        assert rig.pci.status & 0x40


# -- the filter ----------------------------------------------------------------------------------------


def accepts(settings: Settings, frame: bytes, *, by_vlan: bool = True) -> bool:
    return ReceiveFilter(settings, by_vlan).accepts(np.frombuffer(frame, np.uint8))


FRAMES = {
    "own": ethernet(to=MAC),
    "other": ethernet(to=OTHER),
    "group": ethernet(to=GROUP),
    "broadcast": ethernet(to=BROADCAST),
}


@pytest.mark.parametrize(
    ("modes", "accepted"),
    [
        ("", "own broadcast"),
        ("promisc", "own other group broadcast"),
        ("allmulti", "own group broadcast"),
        ("alluni", "own other broadcast"),
        ("nouni", "broadcast"),
        ("nouni alluni", "broadcast"),
        ("nobcast", "own"),
        ("nobcast allmulti", "own group"),
        ("nomulti allmulti", "own broadcast"),
        ("promisc nouni nomulti nobcast", "own other group broadcast"),
    ],
)
def test_receive_modes(modes: str, accepted: str) -> None:
    settings = Settings(mac=MAC, modes=frozenset(modes.split()))
    assert [name for name, frame in FRAMES.items() if accepts(settings, frame)] == accepted.split()


def test_tables_are_for_their_kind() -> None:
    settings = Settings(
        mac=MAC,
        modes=frozenset(),
        unicast=MacTable(frozenset({OTHER})),
        multicast=MacTable(frozenset({GROUP})),
    )
    assert all(accepts(settings, frame) for frame in FRAMES.values())
    assert ReceiveFilter(settings, True).addresses == {MAC, OTHER}


@pytest.mark.parametrize(
    ("vlan", "accepted"), [(7, True), (8, False), (0, True), (0xE007, True), (0xE000, True)]
)
def test_vlan_filter(vlan: int, accepted: bool) -> None:
    """By the 12 bits of the VLAN id; a tag that is only a priority is no VLAN; untagged frames pass."""
    settings = Settings(mac=MAC, modes=frozenset(), vlans=frozenset({7}))
    frame = ethernet(vlan=vlan)
    assert accepts(settings, frame) is accepted
    assert accepts(settings, frame, by_vlan=False)
    assert accepts(settings, ethernet())
    assert not accepts(settings, ethernet(to=OTHER, vlan=7))


@pytest.mark.parametrize("length", [0, 5, 13])
def test_no_frame(length: int) -> None:
    assert not accepts(START, bytes(length))
