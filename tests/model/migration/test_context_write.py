"""Writing a context: staging, commits, cuts anywhere, refusals without a trace."""

from __future__ import annotations

import itertools
import struct
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.errors import InvalidCommand, InvalidField, MemoryFault
from pymodel.memory import Bytes, Segments
from pymodel.migration.member import Member
from pymodel.migration.writing import STAGING_SLACK
from tests.model.fakes import (
    CHANGE,
    DISCARD,
    END,
    MAC,
    START,
    TABLE,
    FakeFunction,
    FakeMemory,
    context,
    extent,
    isr,
    make_member,
    part,
    segments,
)

COMMON = struct.pack("<IIHHHBB", 9, 8, 7, 2, 0, 11, 99)
QUEUE1 = struct.pack("<8H3Q", 1, 32, 5, 1, 0, 0, 0, 0, 0x10, 0x20, 0x30)


def frozen() -> tuple[FakeFunction, Member]:
    function = FakeFunction()
    function.disk[:] = 0x11
    member = make_member(function)
    assert member.set_mode(2)
    return function, member


def write(member: Member, stream: bytes, cuts: tuple[int, ...] = ()) -> None:
    source = segments(stream, cuts)
    while not member.write_context(source, 0):
        assert member.partial


def read(member: Member) -> bytes:
    memory = FakeMemory(1 << 16)
    left, size = member.read_context(Segments(memory, [(0, 1 << 16)]), 0)
    assert left == 0
    return memory.data[:size].tobytes()


def test_fields_are_applied() -> None:
    function, member = frozen()
    write(
        member,
        context(
            part(0x12, COMMON),
            part(0x14, QUEUE1),
            part(0x15, struct.pack("<4H", 1, 6, 5, 1)),
            part(0x11, struct.pack("<QQ", 3, 1)),
            part(0x18, bytes(8)),
            part(0x13, b"c" * 24),
            part(TABLE, b"new table"),
        ),
    )
    state = function.state
    assert (state.device_feature_select, state.driver_feature_select, state.config_msix_vector) == (9, 8, 7)
    assert (state.device_status, state.config_generation, state.driver_features) == (11, 99, 3 | 1 << 64)
    assert (state.queues[1].size, state.queues[1].enable, state.queues[1].device) == (32, 1, 0x30)
    assert (state.queues[1].last_avail_idx, state.queues[1].interrupt_owed) == (6, True)
    assert state.queues[0].size == 128  # not written: as it was
    assert state.config_changed is False
    assert state.device_config == b"c" * 24
    assert function.table == b"new table"
    assert function.disk.tobytes() == b"\x11" * 4096


def test_a_context_that_was_read_can_be_written_elsewhere() -> None:
    _, source = frozen()
    there, target = FakeFunction(), None
    target = make_member(there)
    target.set_mode(2)
    there.state.isr, there.table = 0, b""
    stream = read(source)
    write(target, stream)
    assert read(target) == stream


def test_device_features_are_never_applied() -> None:
    function, member = frozen()
    before = function.state.device_features
    write(member, context(part(0x10, bytes(16))))
    assert function.state.device_features == before


@pytest.mark.spec("DEV-11")
def test_a_complete_context_can_be_written_again() -> None:
    function, member = frozen()
    write(member, context(isr(2)))
    write(member, context(isr(3)))
    assert function.state.isr == 3


@pytest.mark.spec("DEV-37")
@pytest.mark.parametrize("order", [(2, 3), (3, 2)])
def test_contexts_in_one_command_apply_in_order(order: tuple[int, int]) -> None:
    function, member = frozen()
    write(member, context(isr(order[0]), part(TABLE, b"A")) + context(isr(order[1])))
    assert (function.state.isr, function.table, function.restored) == (order[1], b"A", 1)


@pytest.mark.spec("DEV-37")
def test_extents_of_several_contexts() -> None:
    """A context with extents describes the whole disk; changes only touch their range."""
    function, member = frozen()
    first = context(extent(0, b"aaaa"), extent(8, b"bbbb"))
    write(member, first + context(extent(2, b"CC", CHANGE)))
    assert function.disk[:13].tobytes() == b"aaCC\0\0\0\0bbbb\0"
    write(member, first + context(extent(4, b"zz")))
    assert function.disk[:13].tobytes() == bytes(4) + b"zz" + bytes(7)
    write(member, context(extent(0, b"")))
    assert not function.disk.any()


@pytest.mark.spec("DEV-38")
def test_the_last_value_of_a_field_wins() -> None:
    function, member = frozen()
    write(member, context(isr(1), isr(2), isr(3), part(MAC, b"\2" * 6), part(MAC, b"\4" * 6)))
    assert (function.state.isr, function.mac) == (3, b"\4" * 6)
    write(member, context(extent(0, b"aaaa"), extent(1, b"bb")))
    assert function.disk[:5].tobytes() == b"abba\0"


def test_discard_field_drops_what_the_stream_said() -> None:
    function, member = frozen()
    write(member, context(isr(0), extent(0, b"x"), part(TABLE, b"x"), part(DISCARD), part(MAC, b"\6" * 6)))
    assert (function.state.isr, function.table, function.mac) == (1, b"table", b"\6" * 6)
    assert function.disk.tobytes() == b"\x11" * 4096


@pytest.mark.spec("DEV-12")
@pytest.mark.parametrize("mode", [0, 1])
@pytest.mark.parametrize("stream", [context(isr(2)), b"rubbish" * 9, b""])
def test_write_fails_unless_freeze(mode: int, stream: bytes) -> None:
    """The mode is looked at before the content (A-26)."""
    function = FakeFunction()
    member = make_member(function)
    member.set_mode(mode)
    before = function.all()
    with pytest.raises(InvalidCommand):
        write(member, stream)
    assert function.all() == before
    assert not member.partial


def test_write_of_nothing_does_nothing() -> None:
    _, member = frozen()
    write(member, b"")
    assert not member.partial


BAD = {
    "no START": isr(2),
    "END first": part(END),
    "DISCARD first": part(DISCARD),
    "two STARTs": part(START) + part(START),
    "START with a value": part(START, b"x"),
    "END with a value": part(START) + part(END, b"x"),
    "unknown type": context(part(0x16, bytes(8))),
    "reserved in the header": context(part(0x17, bytes(8), reserved=1)),
    "reserved in a value": context(part(0x17, bytes(7) + b"\1")),
    "length - 1": context(part(0x17, bytes(7))),
    "length + 1": context(part(0x17, bytes(9))),
    "config length": context(part(0x13, bytes(23))),
    "device field length": context(part(MAC, bytes(7))),
    "other device": context(part(0xF, struct.pack("<H6x", 1))),
    "other queue count": context(part(0x12, struct.pack("<IIHHHBB", 0, 0, 0, 3, 0, 0, 0))),
    "queue index": context(part(0x14, struct.pack("<8H3Q", 2, *[0] * 10))),
    "ring index": context(part(0x15, struct.pack("<4H", 2, 0, 0, 0))),
    "ring flags": context(part(0x15, struct.pack("<4H", 0, 0, 0, 2))),
    "enable": context(part(0x14, struct.pack("<8H3Q", 0, 8, 0, 2, *[0] * 7))),
    "pending": context(part(0x18, b"\2" + bytes(7))),
    "over 16 MiB": part(START) + struct.pack("<IIQ", 0x200, 0, (16 << 20) + 1),
    "huge": part(START) + struct.pack("<IIQ", 0x200, 0, (1 << 64) - 1),
    "extent without offset": context(part(0x200, bytes(7))),
    "beyond the disk": context(extent(4095, b"ab")),
    "the device refuses": context(part(0x12, struct.pack("<IIHHHBB", 0, 0, 0, 2, 0, 128, 0))),
}


@pytest.mark.spec("DEV-32")
@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("ahead", [b"", context(isr(2)), context(extent(0, b"zzzz"), part(TABLE, b"z"))])
def test_bad_content_leaves_nothing(name: str, ahead: bytes) -> None:
    """All or nothing: good contexts ahead of the bad one in the same command are dropped with it."""
    function, member = frozen()
    before, stream = function.all(), read(member)
    with pytest.raises(InvalidField):
        write(member, ahead + BAD[name])
    assert function.all() == before
    assert not member.partial
    assert member.context_size(0) == 0  # the read position stands
    member.discard_context()
    assert read(member) == stream


@pytest.mark.spec("DEV-32")
def test_a_bad_header_is_refused_before_its_value_comes() -> None:
    _, member = frozen()
    write(member, part(START))
    with pytest.raises(InvalidField):
        write(member, struct.pack("<IIQ", 0x17, 0, 9))


@pytest.mark.spec("DEV-05")
@pytest.mark.parametrize("cut", [1, 15, 16, 17, 31, 32, 33, 40, 47, 55])
def test_partial_context_keeps_the_mode(cut: int) -> None:
    function, member = frozen()
    stream = context(isr(2))
    write(member, stream[:cut])
    for mode in (0, 1):
        with pytest.raises(InvalidCommand):
            member.set_mode(mode)
    assert member.mode == 2
    assert member.set_mode(2)
    write(member, stream[cut:])
    assert function.state.isr == 2
    assert member.set_mode(0)


@pytest.mark.spec("DEV-24")
def test_discard_command_drops_a_partial_context() -> None:
    function, member = frozen()
    before = function.all()
    write(member, context(isr(2), extent(0, b"a"))[:-1])
    member.discard_context()
    assert function.all() == before
    assert member.set_mode(1)


def test_discard_does_not_undo_a_commit() -> None:
    """A-10."""
    function, member = frozen()
    write(member, context(isr(2)) + part(START))
    member.discard_context()
    assert function.state.isr == 2


def test_commit_begins_a_new_read() -> None:
    _, member = frozen()
    read(member)
    write(member, part(START))
    assert member.context_size(0) == 0
    write(member, part(END))
    assert member.context_size(0) > 0


def test_function_reset_drops_staging_and_keeps_the_mode() -> None:
    """A-15."""
    _, member = frozen()
    write(member, part(START))
    member.function_reset()
    assert (member.partial, member.mode) == (False, 2)


def test_unmapped_source_changes_nothing() -> None:
    function, member = frozen()
    stream = context(isr(2))
    memory = FakeMemory(len(stream))
    memory.data[:] = np.frombuffer(stream, np.uint8)
    with pytest.raises(MemoryFault):
        member.write_context(Segments(memory, [(0, len(stream)), (1 << 30, 8)]), 0)
    assert not member.partial
    assert function.state.isr == 1


@given(data=st.data())
def test_cut_anywhere_is_the_same(data: st.DataObject) -> None:
    """A-13: any division into commands and segments means the same as one piece."""
    stream = context(isr(2), extent(4, b"hello"), part(TABLE, b"ttt")) + context(
        part(0x12, COMMON), part(MAC, b"\6" * 6), extent(1, b"yo", CHANGE)
    )
    cut = st.lists(st.integers(0, len(stream)), max_size=6).map(sorted)
    edges = [0, *data.draw(cut), len(stream)]
    pieces = data.draw(cut)
    whole, whole_member = frozen()
    write(whole_member, stream)
    function, member = frozen()
    for first, end in itertools.pairwise(edges):
        write(member, stream[first:end], tuple(at - first for at in pieces if first <= at <= end))
    assert function.all() == whole.all()
    assert not member.partial


@given(data=st.data())
def test_a_failing_write_is_as_if_it_never_came(data: st.DataObject) -> None:
    """A-11, at any state of the stream and with any good part ahead of the bad one."""
    stream = context(
        isr(2), extent(4, b"hello"), part(DISCARD), extent(0, b"abc"), part(TABLE, b"ttt")
    ) + context(extent(9, b"end", CHANGE), isr(3))
    at = data.draw(st.integers(0, len(stream)))
    ahead = data.draw(st.integers(at, len(stream)))
    bad = part(0xEEEE) * 20  # whatever it follows, a header of it is complete
    whole, whole_member = frozen()
    write(whole_member, stream)
    function, member = frozen()
    write(member, stream[:at])
    before, was_partial = function.all(), member.partial
    noise = bytes(data.draw(st.integers(0, 16))) if at == ahead else b""
    try:
        write(member, stream[at:ahead] + b"\xff" * 600 + noise + bad)
    except InvalidField:
        assert function.all() == before
        assert member.partial == was_partial
    else:
        raise AssertionError("taken")
    write(member, stream[at:])
    assert function.all() == whole.all()


def test_staged_memory_is_bounded() -> None:
    """A stream of tiny or overlapping extents ends in a refusal, not in an empty machine."""
    function, member = frozen()
    write(member, part(START))
    stream = extent(0, b"x") * (STAGING_SLACK // 16384)
    for _ in range(3):
        write(member, stream)
    with pytest.raises(InvalidField, match="more than this function can"):
        write(member, stream * 2)
    member.discard_context()
    full = extent(0, bytes(4096))
    changes = context(full.replace(b"\0\2", b"\1\2", 1) * 1000)
    with pytest.raises(InvalidField, match="more than this function can"):
        write(member, changes * 20)
    assert function.restored == 0


def test_many_small_fields_cost_nothing() -> None:
    function, member = frozen()
    write(member, context(isr(2) * 20000, part(TABLE, b"x" * 100) * 20000))
    assert (function.state.isr, function.table) == (2, b"x" * 100)


def test_values_are_copied_once_to_where_they_stay() -> None:
    """The value of a large extent reaches `restore` as one buffer of its announced length."""
    function = FakeFunction(disk=np.zeros(1 << 20, np.uint8))
    member = make_member(function)
    member.set_mode(2)
    content = bytes(np.arange(1 << 20, dtype=np.uint32).astype(np.uint8))
    stream = context(extent(0, content))
    for at in range(0, len(stream), 99_991):
        write(member, stream[at : at + 99_991], (5, 17, 100))
    assert function.disk.tobytes() == content


def test_no_memory_for_the_content_leaves_what_was_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where there is some, for a part of what came. What the content did not need is given back."""
    chunk = 4 << 20
    disk = RamDisk(3 * chunk)
    options = Options("blk", {"pf": RamDisk(512), "vf1": disk}, vfs=1, total_vfs=1)
    member = build(options, lock=threading.RLock).vfs[1].as_member
    assert member.set_mode(2)
    left, zeros = [chunk, chunk], np.zeros

    def few(size: int, kind: type[np.uint8]) -> Bytes:
        if size == chunk and not left:
            raise MemoryError
        return zeros(left.pop() if size == chunk else size, kind)

    def firsts() -> list[int]:
        view = np.empty(3 * chunk, np.uint8)
        disk.read(0, [view])
        return [int(view[at]) for at in (0, chunk, chunk + 512, 2 * chunk)]

    parts = [(0, b"\2" * 512), (chunk, b"\3" * chunk), (chunk, b"\4" * 512), (2 * chunk, b"\5" * 512)]
    stream = context(*(extent(*each) for each in parts))
    write(member, stream)
    assert firsts() == [2, 4, 3, 5]
    assert not disk._spare
    disk.write(0, [np.full(512, 1, np.uint8)])
    with monkeypatch.context() as short:
        short.setattr(np, "zeros", few)
        with pytest.raises(MemoryError):
            write(member, stream)
    assert firsts() == [1, 4, 3, 5]
    assert not disk._spare
    write(member, stream)
    assert firsts() == [2, 4, 3, 5]
