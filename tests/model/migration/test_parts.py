"""Device parts: what they are on the wire, and that they say all that a context says."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pymodel.devices.net.control import Command, carry_out
from pymodel.devices.net.settings import Settings
from pymodel.errors import InvalidCommand, InvalidField
from pymodel.migration import context
from pymodel.migration.member import Dialect, Member
from pymodel.migration.parts import apply, encode, header, parse
from pymodel.migration.state import FunctionState
from pymodel.pci.function import Function
from pymodel.queue.packed import PackedRing
from tests.model.devices.net.rig import NetRig
from tests.model.fakes import FakeFunction, make_member, present_state
from vfu_client.drivers.net import FEATURES


def part(kind: int, selector: bytes, value: bytes, flags: int = 0) -> bytes:
    return struct.pack("<HBB8sI", kind, flags, 0, selector, len(value)) + value


def own(field: int, value: bytes, queue: int = 0) -> bytes:
    return part(0x5F0, struct.pack("<HHI", field, queue, 0), value, flags=1)


def stream(member: Member) -> bytes:
    return b"".join(header(found) + found.value for found in member.parts.capture())


def context_of(state: FunctionState) -> bytes:
    return b"".join(buffer.tobytes() for buffer in context.encode(state))


def applied(data: bytes, state: FunctionState) -> FunctionState:
    shape = context.Shape.of(state, {})
    apply(parse(data), state, shape, FakeFunction())
    return state


def test_on_the_wire() -> None:
    """All parts of a function, those of the standard first and in its order."""
    found = b"".join(header(each) + each.value for each in encode(present_state(), FakeFunction()))
    none = bytes(8)
    assert found == b"".join(
        [
            part(0x100, none, (0x1_0000_0000_0000_0001_0000_0040).to_bytes(16, "little"), flags=1),
            part(0x101, none, (1 << 32).to_bytes(16, "little")),
            part(0x102, struct.pack("<Q", 0), struct.pack("<I", 1)),
            part(0x102, struct.pack("<Q", 8), struct.pack("<I", 2)),
            part(0x102, struct.pack("<Q", 16), struct.pack("<H", 3)),
            part(0x102, struct.pack("<Q", 18), struct.pack("<H", 2)),
            part(0x102, struct.pack("<Q", 22), struct.pack("<H", 1)),
            part(0x103, none, b"\x0f"),
            part(0x104, struct.pack("<Q", 0), struct.pack("<4H3Q", 128, 1, 1, 0, 0x1000, 0x2000, 0x3000)),
            part(0x104, struct.pack("<Q", 1), struct.pack("<4H3Q", 64, 0xFFFF, 0, 0, 0, 0, 0)),
            part(0x105, struct.pack("<Q", 0), bytes(8)),
            part(0x105, struct.pack("<Q", 1), bytes(8)),
            own(0x0F, struct.pack("<Q", 2)),
            own(0x12, struct.pack("<IIHHHBB", 1, 2, 3, 2, 1, 15, 7)),
            own(0x13, bytes(range(24))),
            own(0x15, struct.pack("<4H", 0, 41, 40, 1)),
            own(0x17, b"\1" + bytes(7)),
            own(0x18, b"\1" + bytes(7)),
        ]
    )


def test_there_and_back() -> None:
    data = b"".join(header(found) + found.value for found in encode(present_state(), FakeFunction()))
    empty = present_state()
    empty.driver_features = empty.device_status = empty.config_generation = empty.isr = 0
    empty.device_config = bytes(24)
    empty.queues[0] = type(empty.queues[0])(0)
    assert applied(data, empty) == present_state()


def test_the_order_does_not_matter() -> None:
    """As all parts take effect at once."""
    parts = encode(present_state(), FakeFunction())
    data = b"".join(header(found) + found.value for found in reversed(parts))
    assert applied(data, present_state()) == present_state()


VQ_0 = part(0x104, bytes(8), struct.pack("<4H3Q", 128, 1, 1, 0, 0x1000, 0x2000, 0x3000))


def test_a_position_that_is_in_no_part() -> None:
    """A split ring's is read from memory, and the driver is told once; a packed one's is nowhere."""
    state = applied(VQ_0, present_state())
    assert (state.queues[0].lost, state.queues[0].interrupt_owed) == (True, True)
    assert (state.queues[0].last_avail_idx, state.queues[0].used_idx) == (0, 0)
    packed = part(0x101, bytes(8), (1 << 32 | 1 << 34).to_bytes(16, "little"))
    state = applied(packed + VQ_0, present_state())
    with pytest.raises(InvalidField, match="where it is in a packed ring was not said"):
        PackedRing.check(state.queues[0])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"\0" * 8 + b"\1", "cut after 9 bytes"),
        (VQ_0[:-1], "cut after 31 of 32"),
        (VQ_0 + VQ_0, "twice"),
        (part(0x103, bytes(8), b"\0\0"), "2 bytes, here it has 1"),
        (part(0x101, bytes(8), bytes(8)), "8 bytes, here it has 16"),
        (part(0x100, bytes(8), bytes(16), flags=1), "here it is"),
        (part(0x102, struct.pack("<Q", 18), b"\3\0"), "num_queues 3, here it is 2"),
        (part(0x102, struct.pack("<Q", 20), b"\0"), "unknown"),
        (part(0x104, struct.pack("<Q", 2), bytes(32)), "no queue here"),
        (part(0x104, struct.pack("<HHI", 0, 1, 0), bytes(32)), "no queue here"),
        (part(0x104, bytes(8), struct.pack("<4H3Q", 1, 0, 2, 0, 0, 0, 0)), "enabled is 2"),
        (part(0x104, bytes(8), struct.pack("<4H3Q", 1, 0, 1, 1, 0, 0, 0)), "reserved"),
        (part(0x200, bytes(8), b"\0"), "unknown"),
        (part(0x106, bytes(8), b""), "unknown"),
        (part(0x103, bytes(8), b"\0", flags=2), "flags 0x2"),
        (struct.pack("<HBB8sI", 0x103, 0, 1, bytes(8), 1) + b"\0", "reserved 0x1"),
        (own(0x0F, struct.pack("<Q", 1)), "virtio_id 1, here it is 2"),
        (own(0x0F, bytes(7)), "length 7"),
        (own(0x15, struct.pack("<4H", 1, 0, 0, 0)), "about queue 1"),
        (own(0x16, struct.pack("<4H", 0, 0x8000, 0x8000, 0)), "other format"),
        (own(0x13, bytes(23)), "length 23"),
        (part(0x5F0, struct.pack("<Q", 0x200), bytes(8)), "unknown"),
    ],
)
def test_what_is_refused(data: bytes, reason: str) -> None:
    with pytest.raises(InvalidField, match=reason):
        applied(data, present_state())


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        part(0x106, bytes(8), b"what", flags=1),
        part(0x900, b"whatever", b"", flags=1),
        own(0x200, bytes(8)),
        own(0x7777, b""),
        VQ_0 + own(0x15, struct.pack("<4H", 0, 41, 40, 1)) + bytes(7),
    ],
)
def test_what_changes_nothing(data: bytes) -> None:
    """Padding, and what is unknown and optional."""
    assert applied(data, present_state()) == present_state()


def test_a_function_with_content() -> None:
    member = make_member(FakeFunction())
    with pytest.raises(InvalidCommand, match="disk is in memory"):
        member.parts.capture()
    assert member.set_mode(1, Dialect.PARTS)
    with pytest.raises(InvalidCommand, match="disk is in memory"):
        member.set_parts(b"")


macs = st.sets(st.binary(min_size=5, max_size=5), max_size=66)
commands = st.one_of(
    st.tuples(
        st.sampled_from([(0, 0), (0, 1), (0, 2), (0, 3), (0, 4), (0, 5)]), st.sampled_from([b"\0", b"\1"])
    ),
    st.tuples(
        st.just((1, 0)),
        st.builds(
            lambda unicast, multicast: (
                struct.pack("<I", len(unicast))
                + b"".join(b"\2" + mac for mac in unicast)
                + struct.pack("<I", len(multicast))
                + b"".join(b"\3" + mac for mac in multicast)
            ),
            macs,
            macs,
        ),
    ),
    st.tuples(st.just((1, 1)), st.binary(min_size=5, max_size=5).map(lambda mac: b"\2" + mac)),
    st.tuples(st.just((2, 0)), st.integers(0, 4095).map(lambda vlan: struct.pack("<H", vlan))),
    st.tuples(st.just((4, 0)), st.sampled_from([b"\1\0", b"\2\0"])),
    st.just(((4, 1), struct.pack("<IHH2HHB", 0x3F, 1, 1, 0, 1, 2, 40) + bytes(range(40)))),
    st.just(((4, 2), struct.pack("<I8xB", 0x7, 3) + b"key")),
    st.tuples(st.just((5, 0)), st.sampled_from([0, 2, 1 << 7]).map(lambda bits: struct.pack("<Q", bits))),
)


@settings(max_examples=60)
@given(sent=st.lists(commands, max_size=6))
def test_a_network_function_moves_whole(sent: list[tuple[tuple[int, int], bytes]]) -> None:
    """Whatever its driver set, and without a part of ours all that the standard has commands for."""
    with NetRig(queues=2, features=FEATURES | {1, 2, 7, 20, 57, 60}, ring_features=frozenset({32})) as rig:
        for (kind, number), data in sent:
            rig.driver.answer((kind, number), data)
        source, target = rig.function, rig.world.function("vf2")
        for function in (source, target):
            assert function.member is not None
            assert function.member.set_mode(1, Dialect.PARTS)
        assert source.member is not None
        assert target.member is not None
        whole = stream(source.member)
        target.member.set_parts(whole)
        assert stream(target.member) == whole
        _resume(target)
        arrived, left = target.capture(), source.capture()
        # One may have been lost on the way, so each queue that is enabled interrupts.
        assert [queue.interrupt_owed for queue in arrived.queues] == [bool(q.enable) for q in left.queues]
        for queue in (*arrived.queues, *left.queues):
            queue.interrupt_owed = False
        assert context_of(arrived) == context_of(left)

        standard = [found for found in source.member.parts.capture() if found.type != 0x5F0]
        target.device_reset()
        assert target.member.set_mode(1, Dialect.PARTS)
        target.member.set_parts(b"".join(header(found) + found.value for found in standard))
        _resume(target)
        # A table that overflowed is in none of them.
        told = {(found.type, found.selector): found.value for found in standard if found.type == 0x200}
        assert told.items() <= _net_parts(target.member).items()


def test_a_long_table_of_vlans_is_taken_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command copies the table: 130000 of them would hold the owner up for seconds."""
    carried_out = []

    def count(kind: tuple[int, int], command: Command) -> Settings:
        carried_out.append(kind)
        return carry_out(kind, command)

    monkeypatch.setattr("pymodel.devices.net.parts.carry_out", count)
    with NetRig(ring_features=frozenset({32})) as rig:
        member = rig.function.member
        assert member is not None
        assert member.set_mode(1, Dialect.PARTS)
        vlans = struct.pack("<130000H", *(at % 4096 for at in range(130000)))
        assert member.set_parts(part(0x200, b"\2".ljust(8, b"\0"), vlans)) == 1
        assert len(carried_out) == 1
        whole = struct.pack("<4096H", *range(4096))
        assert _net_parts(member)[0x200, b"\2".ljust(8, b"\0")] == whole
        for bad in (b"\0\x10", vlans + b"\xff\xff", b"\1\0\0"):
            with pytest.raises(InvalidField):
                member.set_parts(part(0x200, b"\2".ljust(8, b"\0"), bad))


def test_the_order_of_commands_does_not_matter() -> None:
    """VQ_PAIRS_SET switches receive-side scaling off, and comes before RSS_CONFIG in the standard."""
    pairs = part(0x200, b"\4".ljust(8, b"\0"), b"\2\0")
    scaling = struct.pack("<IHH2HHB", 0x3F, 1, 1, 0, 1, 2, 40) + bytes(range(40))
    rss = part(0x200, b"\4\1".ljust(8, b"\0"), scaling)
    with NetRig(queues=2, features=FEATURES | {60}, ring_features=frozenset({32})) as rig:
        member = rig.function.member
        assert member is not None
        assert member.set_mode(1, Dialect.PARTS)
        for data in (pairs + rss, rss + pairs):
            member.set_parts(data)
            assert _net_parts(member)[0x200, b"\4\1".ljust(8, b"\0")] == scaling


def _net_parts(member: Member) -> dict[tuple[int, bytes], bytes]:
    found = member.parts.capture()
    return {(each.type, each.selector): each.value for each in found if each.type == 0x200}


def _resume(function: Function) -> None:
    assert function.member is not None
    assert function.member.set_mode(0, Dialect.PARTS)


@pytest.mark.parametrize("end", ["function_reset", "device_reset"])
def test_a_reset_forgets_what_was_set(end: str) -> None:
    with NetRig() as rig:
        member = rig.function.member
        assert member is not None
        whole = stream(member)
        assert member.set_mode(1, Dialect.PARTS)
        member.set_parts(whole)
        reset: Callable[[], None] = getattr(member, end)
        reset()
        rig.function.transport.reset()
        assert member.mode == (0 if end == "function_reset" else 1)
        assert member.set_mode(0, Dialect.PARTS)
        assert rig.function.transport.status == 0
