"""A network function's context: what it holds, that it comes back as it was, and that nonsense is refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymodel.errors import InvalidField
from pymodel.memory import Segments
from tests.model.devices.net.rig import MAC, PEER, NetRig, ethernet, udp
from tests.model.fakes import FakeMemory, context, part, segments, split
from vfu_client.drivers.net import FEATURES

RX_MODE, MAC_TABLE, VLANS, PAIRS, HASH, RSS, OFFLOADS = range(0x100, 0x107)
DRIVER_FEATURES, COMMON, CONFIG = 0x11, 0x12, 0x13
ACTIVE, STOP, FREEZE = 0, 1, 2
GROUP = b"\x01\0\x5e\0\0\x07"
KEY = bytes(range(40))
GUEST_ANNOUNCE = 21
RICH = FEATURES | {60, 57, 1, 7, 2, GUEST_ANNOUNCE}
LINK_UP, ANNOUNCE = 1, 2


def mode(rig: NetRig, value: int) -> None:
    assert rig.function.member is not None
    assert rig.function.member.set_mode(value)
    assert rig.world.pump()


def read(rig: NetRig) -> bytes:
    assert rig.function.member is not None
    rig.function.member.discard_context()
    memory = FakeMemory(1 << 18)
    left, size = rig.function.member.read_context(Segments(memory, [(0, 1 << 18)]), 0)
    assert not left
    return memory.data[:size].tobytes()


def write(rig: NetRig, stream: bytes) -> None:
    assert rig.function.member is not None
    source = segments(stream)
    while not rig.function.member.write_context(source, 0):
        pass


def frozen(**options: object) -> NetRig:
    rig = NetRig(queues=4, **options)  # type: ignore[arg-type]
    mode(rig, FREEZE)
    return rig


def value(stream: bytes, kind: int) -> bytes:
    (found,) = [content for number, content in split(stream) if number == kind]
    return found


@pytest.fixture
def rig() -> Iterator[NetRig]:
    with frozen() as rig:
        yield rig


def configure(rig: NetRig) -> None:
    """Settings of all kinds."""
    driver = rig.driver
    driver.set_mode(0, False)
    driver.set_mode(5, True)
    driver.set_mac(b"\x02\0\0\0\0\x77")
    driver.set_mac_table([PEER], [GROUP])
    driver.set_vlan(1)
    driver.set_vlan(4095)
    driver.set_rss([0, 1, 2, 3], types=6, key=KEY, unclassified=2, pairs=3)
    driver.set_offloads(1 << 1)


def test_fields() -> None:
    """What the page on wire formats says, byte by byte."""
    with NetRig(queues=4, pairs=4, features=RICH) as rig:
        configure(rig)
        stream = read(rig)
        assert value(stream, RX_MODE) == bytes([0, 0, 0, 0, 0, 1, 0, 0])
        assert value(stream, MAC_TABLE) == struct.pack("<HHB3x", 1, 1, 0) + PEER + GROUP
        assert value(stream, VLANS) == b"\2" + bytes(510) + b"\x80"
        assert value(stream, PAIRS) == b"\3" + bytes(7)
        assert value(stream, HASH) == struct.pack("<IB3x", 6, 40) + KEY
        assert value(stream, RSS) == struct.pack("<HH4x4H", 4, 2, 0, 1, 2, 3)
        assert value(stream, OFFLOADS) == struct.pack("<Q", 1 << 7)
        assert value(stream, CONFIG)[:10] == b"\x02\0\0\0\0\x77" + struct.pack("<HH", LINK_UP, 4)
        kinds = [kind for kind, _ in split(stream)]
        assert kinds[-8:] == [*range(0x100, 0x107), 1]


def test_fields_query(rig: NetRig) -> None:
    lengths = rig.function.device_fields()
    assert lengths == {
        RX_MODE: 8,
        MAC_TABLE: 0xFFFFFFFF,
        VLANS: 512,
        PAIRS: 8,
        HASH: 48,
        RSS: 0xFFFFFFFF,
        OFFLOADS: 8,
    }


def test_comes_back_as_it_was() -> None:
    with NetRig(queues=4, pairs=4, features=RICH) as source:
        configure(source)
        mode(source, FREEZE)
        stream = read(source)
    with frozen() as target:
        write(target, stream)
        assert read(target) == stream
        write(target, read(target))
        assert read(target) == stream


def test_pairs_that_the_driver_does_not_know_are_not_used() -> None:
    """Without MQ and RSS frames come by receiveq1, whatever the context says. Queue 2 is for control."""
    stream = context(part(PAIRS, struct.pack("<H6x", 4)), part(RSS, struct.pack("<HH4xH", 1, 1, 1)))
    with NetRig(queues=4, features=FEATURES - {22}) as rig:
        mode(rig, FREEZE)
        write(rig, stream)
        mode(rig, ACTIVE)
        rig.put(ethernet(), udp(1), udp(2))
        assert rig.got() == [ethernet(), udp(1), udp(2)]


def test_what_no_field_mentions_stays() -> None:
    with NetRig(queues=4, pairs=4, features=RICH) as rig:
        configure(rig)
        mode(rig, FREEZE)
        before = dict(split(read(rig)))
        write(rig, context(part(VLANS, bytes(512))))
        after = dict(split(read(rig)))
        assert {kind for kind in before if before[kind] != after[kind]} == {VLANS}
        write(rig, context())
        assert dict(split(read(rig))) == after


def test_goes_on_where_it_was_left() -> None:
    """The settings work at the destination: its filter, its queues, its offloads; and it is announced."""
    with NetRig(queues=4, pairs=4, features=RICH) as rig:
        configure(rig)
        mode(rig, FREEZE)
        stream = read(rig)
        # The same function stands for the destination: a reset has it forget, the context brings it back.
        rig.function.transport.reset()
        assert rig.port.filter is None
        write(rig, stream)
        assert rig.port.filter is None, "it does not run yet"
        mode(rig, ACTIVE)
        assert rig.wanted(ethernet(to=PEER, vlan=1))
        assert not rig.wanted(ethernet(to=PEER, vlan=2))
        assert not rig.wanted(ethernet(to=MAC))
        assert rig.port.features >> 1 & 1
        assert not rig.port.features >> 7 & 1
        rig.put(udp(1), ethernet(b"unclassified"))
        assert rig.got(2) == [ethernet(b"unclassified")]
        assert len(rig.port.sent) == 3, "untagged, VLAN 1, VLAN 4095"
        assert rig.port.sent[0][12:24] == b"\xff" * 6 + b"\x02\0\0\0\0\x77"
        assert rig.driver.status == LINK_UP | ANNOUNCE
        rig.driver.acknowledge_announce()
        assert rig.driver.status == LINK_UP


@pytest.mark.parametrize("modes", [(ACTIVE,), (STOP, ACTIVE)], ids=["at once", "by way of stop"])
def test_frames_are_wanted_when_the_mode_is_set(
    modes: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the function's own thread has a turn; the owner's thread does not touch guest memory for it."""
    with NetRig() as rig:
        mode(rig, FREEZE)
        write(rig, read(rig))
        assert rig.port.filter is None
        member, host = rig.function.member, rig.world.hosts["vf1"]
        assert member is not None

        def touched(*_: object, **__: object) -> None:
            raise AssertionError("guest memory was touched")

        with monkeypatch.context() as patch:
            for name in ("view", "views", "read", "write", "load_u16", "store_u16", "fence"):
                patch.setattr(host.mapped, name, touched)
            for step in modes:
                assert member.set_mode(step)
            assert rig.wanted(ethernet())
        rig.put(ethernet())
        assert rig.got() == [ethernet()]


def test_a_device_that_no_driver_runs_wants_no_frames_when_active() -> None:
    with NetRig() as rig:
        rig.pci.reset()
        mode(rig, FREEZE)
        write(rig, read(rig))
        mode(rig, ACTIVE)
        assert rig.port.filter is None


def test_announce_is_in_the_context() -> None:
    """A driver that was asked, and moved before it acknowledged, is still asked."""
    with NetRig(queues=4, features=RICH) as rig:
        rig.device.announce()
        mode(rig, FREEZE)
        stream = read(rig)
        assert value(stream, CONFIG)[6] == LINK_UP | ANNOUNCE
        write(rig, stream)
        assert read(rig) == stream


def test_link_is_the_destinations() -> None:
    """The context says that the link was up; where it is not, the driver is told when it goes on."""
    with frozen() as rig:
        stream = read(rig)
        rig.port.link_up = False
        write(rig, stream)
        assert value(read(rig), CONFIG)[6] == LINK_UP
        mode(rig, ACTIVE)
        assert rig.driver.status == 0


def test_nothing_changes_in_freeze() -> None:
    """Neither carrier nor cable nor frames that wait (DEV-20)."""
    with frozen() as rig:
        before = read(rig)
        rig.port.link_up = False
        rig.put(ethernet())
        rig.function.transport.config_changed("link", lambda: rig.device.set_link(False))
        assert read(rig) == before
        assert rig.got() == []
        rig.port.link_up = True
        rig.device.set_link(True)
        mode(rig, ACTIVE)
        assert rig.driver.status == 0, "the cable was pulled in Freeze"


def test_frames_wait_while_it_is_stopped() -> None:
    with NetRig() as rig:
        mode(rig, STOP)
        rig.put(ethernet())
        assert rig.got() == []
        mode(rig, ACTIVE)
        assert rig.got() == [ethernet()]


def test_frames_that_wait_do_not_travel() -> None:
    with NetRig(fill=False) as rig:
        rig.put(ethernet(), ethernet())
        mode(rig, FREEZE)
        stream = read(rig)
        write(rig, stream)
        mode(rig, ACTIVE)
        rig.driver.refill()
        assert rig.got() == []
        assert rig.counters["rx-dropped-reset"] == 2


def config(**changes: bytes) -> bytes:
    """The configuration of a function of four pairs, with some bytes changed: `at12` is offset 12."""
    raw = bytearray(struct.pack("<6sHHHIBBHI", MAC, LINK_UP, 4, 0, 10_000, 1, 40, 128, 0x3F))
    for name, data in changes.items():
        at = int(name.removeprefix("at"))
        raw[at : at + len(data)] = data
    return bytes(raw)


def test_config_literal(rig: NetRig) -> None:
    assert value(read(rig), CONFIG) == config()


@pytest.mark.parametrize(
    "field",
    [
        part(CONFIG, config(at0=b"\x01")),  # a group's address
        part(CONFIG, config(at0=bytes(6))),
        part(CONFIG, config(at6=b"\4")),
        part(CONFIG, config(at8=b"\5")),
        part(CONFIG, config(at10=b"\1")),
        part(CONFIG, config(at12=b"\1")),
        part(CONFIG, config(at16=b"\0")),
        part(CONFIG, config(at17=b"\0")),
        part(CONFIG, config(at18=b"\1")),
        part(CONFIG, config(at20=b"\0")),
        part(CONFIG, config()[:-1]),
        part(RX_MODE, bytes([2, 0, 0, 0, 0, 0, 0, 0])),
        part(RX_MODE, bytes([0, 0, 0, 0, 0, 0, 0, 1])),
        part(RX_MODE, bytes(7)),
        part(MAC_TABLE, b""),
        part(MAC_TABLE, bytes(7)),
        part(MAC_TABLE, struct.pack("<HHB3x", 1, 0, 0)),
        part(MAC_TABLE, struct.pack("<HHB3x", 0, 0, 0) + PEER),
        part(MAC_TABLE, struct.pack("<HHB3x", 1, 0, 0) + GROUP),
        part(MAC_TABLE, struct.pack("<HHB3x", 0, 1, 0) + PEER),
        part(MAC_TABLE, struct.pack("<HHB3x", 1, 0, 1) + PEER),
        part(MAC_TABLE, struct.pack("<HHB3x", 0, 0, 4)),
        part(MAC_TABLE, struct.pack("<HHB3s", 0, 0, 0, b"\0\0\1")),
        part(MAC_TABLE, struct.pack("<HHB3x", 65, 0, 0) + PEER * 65),
        part(VLANS, bytes(511)),
        part(PAIRS, bytes(8)),
        part(PAIRS, b"\5" + bytes(7)),
        part(PAIRS, b"\1" + bytes(6) + b"\1"),
        part(HASH, struct.pack("<IB3x", 1 << 6, 0) + bytes(40)),
        part(HASH, struct.pack("<IB3x", 0, 41) + bytes(40)),
        part(HASH, struct.pack("<IB3x", 0, 1) + b"\1\1" + bytes(38)),
        part(HASH, struct.pack("<IB3s", 0, 0, b"\1\0\0") + bytes(40)),
        part(RSS, b""),
        part(RSS, struct.pack("<HH4x", 1, 0)),
        part(RSS, struct.pack("<HH4x", 0, 1)),
        part(RSS, struct.pack("<HH4xH", 1, 0, 4)),
        part(RSS, struct.pack("<HH4xH", 1, 4, 0)),
        part(RSS, struct.pack("<HH4x3H", 3, 0, 0, 0, 0)),
        part(RSS, struct.pack("<HH4x1024H", 1024, 0, *[0] * 1024)),
        part(RSS, struct.pack("<HHI", 0, 0, 1)),
        part(OFFLOADS, struct.pack("<Q", 1 << 11)),
        part(DRIVER_FEATURES, ((1 << 32) | (1 << 22)).to_bytes(16, "little")),  # MQ without CTRL_VQ
        part(0x107, bytes(8)),
        part(0x200, bytes(8)),
    ],
)
def test_refused(rig: NetRig, field: bytes) -> None:
    before = read(rig)
    with pytest.raises(InvalidField):
        write(rig, context(field))
    assert read(rig) == before


word = st.integers(0, 0xFFFF) | st.integers(0, 5)
fields = st.lists(
    st.one_of(
        st.binary(max_size=6).map(lambda raw: part(RX_MODE, raw.ljust(8, b"\0"))),
        st.lists(st.sampled_from([0, 1]), min_size=6, max_size=6).map(
            lambda modes: part(RX_MODE, bytes([*modes, 0, 0]))
        ),
        st.tuples(st.lists(st.sampled_from([PEER, MAC, GROUP]), max_size=3), st.integers(0, 4), word).map(
            lambda made: part(
                MAC_TABLE,
                struct.pack("<HHB3x", min(len(made[0]), made[2]), max(len(made[0]) - made[2], 0), made[1])
                + b"".join(made[0]),
            )
        ),
        st.binary(max_size=20).map(lambda raw: part(VLANS, raw.rjust(512, b"\0"))),
        word.map(lambda pairs: part(PAIRS, struct.pack("<H6x", pairs))),
        st.tuples(st.integers(0, 80), st.integers(0, 50), st.binary(max_size=40)).map(
            lambda made: part(HASH, struct.pack("<IB3x40s", *made))
        ),
        st.tuples(word, st.lists(st.integers(0, 5), max_size=9)).map(
            lambda made: part(RSS, struct.pack(f"<HH4x{len(made[1])}H", len(made[1]), made[0], *made[1]))
        ),
        st.integers(0, (1 << 64) - 1).map(lambda off: part(OFFLOADS, struct.pack("<Q", off))),
        st.sampled_from([0, 1 << 1, 1 << 7, 1 << 8]).map(lambda off: part(OFFLOADS, struct.pack("<Q", off))),
        st.tuples(st.binary(min_size=6, max_size=6), st.integers(0, 4)).map(
            lambda made: part(CONFIG, config(at0=made[0], at6=bytes([made[1]])))
        ),
        st.sampled_from([1 << 32, 1 << 32 | 1 << 17, 1 << 32 | 1 << 17 | 1 << 22, (1 << 64) - 1]).map(
            lambda bits: part(DRIVER_FEATURES, bits.to_bytes(16, "little"))
        ),
    ),
    max_size=6,
)


@settings(max_examples=150)
@given(written=st.lists(fields, min_size=1, max_size=2))
def test_state_is_refused_or_lived_with(written: list[list[bytes]]) -> None:
    """Whatever was taken is given back the same, the function runs on it, and works after a reset."""
    with frozen() as rig:
        before = read(rig)
        try:
            write(rig, b"".join(context(*parts) for parts in written))
        except InvalidField:
            assert read(rig) == before
        else:
            after = read(rig)
            write(rig, after)
            assert read(rig) == after
        mode(rig, ACTIVE)
        rig.put(udp(1), ethernet(b"x"), ethernet(to=PEER, vlan=3))
        rig.driver.send(ethernet())
        rig.restart(queue_size=16, pairs=4)
        rig.put(udp(1))
        assert sum(len(rig.got(pair)) for pair in range(4)) == 1
        mode(rig, FREEZE)
        write(rig, before)
        assert read(rig) == before
