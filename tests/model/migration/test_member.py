"""Modes, reading in pieces, and waiting."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymodel.errors import InvalidCommand, InvalidField, MemoryFault
from pymodel.memory import Segments
from pymodel.migration.member import Member
from tests.model.fakes import FakeFunction, FakeMemory, make_member, split

MODES = (0, 1, 2)


def in_mode(mode: int, function: FakeFunction | None = None) -> tuple[FakeFunction, Member]:
    function = function or FakeFunction()
    member = make_member(function)
    assert member.set_mode(mode)
    return function, member


def read(member: Member, room: int) -> tuple[int, bytes]:
    memory = FakeMemory(room + 16, region=64)
    left, size = member.read_context(Segments(memory, [(0, 16), (16, room)]), 16)
    return left, memory.data[16 : 16 + size].tobytes()


def read_all(member: Member, room: int = 1 << 16) -> bytes:
    stream, left = b"", 1
    while left:
        left, piece = read(member, room)
        stream += piece
    return stream


# --- modes ---------------------------------------------------------------------------------------------


@pytest.mark.spec("DEV-02")
@pytest.mark.parametrize("mode", MODES)
def test_the_present_mode_changes_nothing(mode: int) -> None:
    function, member = in_mode(mode)
    read(member, 40)
    left, seen = member.context_size(0), len(function.seen)
    assert member.set_mode(mode)
    assert (member.mode, member.context_size(0), len(function.seen)) == (mode, left, seen)


@pytest.mark.spec("DEV-03", "DEV-04")
@pytest.mark.parametrize("mode", MODES)
def test_what_is_not_a_mode_is_refused(mode: int) -> None:
    _, member = in_mode(mode)
    for value in range(3, 256):
        with pytest.raises(InvalidField):
            member.set_mode(value)
    assert member.mode == mode


@pytest.mark.parametrize("present", MODES)
@pytest.mark.parametrize("wanted", MODES)
def test_every_pair_of_modes(present: int, wanted: int) -> None:
    """A-25: also Freeze to Active at once."""
    _, member = in_mode(present)
    assert member.set_mode(wanted)
    assert (member.mode, member.active) == (wanted, wanted == 0)


def test_active_to_freeze_passes_stop() -> None:
    """Each step is told; the gate is closed from the first on."""
    function, _ = in_mode(2)
    assert function.seen == [(1, False), (2, False)]


@pytest.mark.spec("DEV-14")
@pytest.mark.parametrize("mode", [1, 2])
def test_stop_waits_for_outstanding_requests_behind_a_closed_gate(mode: int) -> None:
    function = FakeFunction(outstanding=2)
    member = make_member(function)
    assert not member.set_mode(mode)
    assert (member.mode, member.active) == (0, False)
    function.outstanding = 1
    assert not member.set_mode(mode)
    function.outstanding = 0
    assert member.set_mode(mode)
    assert (member.mode, member.active) == (mode, False)


def test_stop_waits_until_the_disk_is_let_go() -> None:
    function = FakeFunction(quiet=False)
    member = make_member(function)
    assert not member.set_mode(1)
    assert (member.mode, member.active) == (0, False)
    function.quiet = True
    assert member.set_mode(1)
    assert (member.mode, member.active) == (1, False)


def test_a_disk_that_can_not_be_let_go_keeps_the_mode() -> None:
    function = FakeFunction(quiet=False)
    member = make_member(function)
    assert not member.set_mode(2)
    function.quiet = InvalidCommand("broken")
    with pytest.raises(InvalidCommand):
        member.set_mode(2)
    assert (member.mode, member.active, function.seen) == (0, True, [(0, False), (0, True)])


def test_a_stop_that_is_given_up_opens_the_gate() -> None:
    function = FakeFunction(outstanding=1)
    member = make_member(function)
    member.set_mode(1)
    member.abandon_stop()
    assert (member.mode, member.active, function.seen[-1]) == (0, True, (0, True))
    seen = len(function.seen)
    member.abandon_stop()
    assert len(function.seen) == seen


def test_settled_calls_each_waiter_once() -> None:
    _, member = in_mode(0)
    calls: list[int] = []

    def waiter() -> None:
        calls.append(1)

    member.when_settled(waiter)
    member.when_settled(waiter)
    member.settled()
    member.settled()
    assert calls == [1]


# --- reading -------------------------------------------------------------------------------------------


@pytest.mark.spec("DEV-06", "DEV-07", "DEV-33", "DEV-34", "DEV-36")
@pytest.mark.parametrize("mode", MODES)
def test_whole_context_then_nothing(mode: int) -> None:
    _, member = in_mode(mode)
    fields = split(read_all(member))
    assert fields[0] == (0, b"")
    assert fields[-1] == (1, b"")
    for _ in range(3):
        assert read(member, 1000) == (0, b"")


@pytest.mark.spec("DEV-35")
@given(rooms=st.lists(st.integers(0, 700), max_size=12), mode=st.sampled_from(MODES))
def test_pieces_of_any_size_make_the_same_context(rooms: list[int], mode: int) -> None:
    """A-13, A-27: what did not fit is not lost, and what is left is exact."""
    _, member = in_mode(mode)
    whole = read_all(member)
    member.discard_context()
    stream = b""
    for room in rooms:
        left, piece = read(member, room)
        assert len(piece) == min(room, len(whole) - len(stream))
        stream += piece
        assert left == len(whole) - len(stream) == member.context_size(0)
    assert stream + read_all(member) == whole


@pytest.mark.spec("DEV-08", "DEV-09")
@pytest.mark.parametrize("mode", MODES)
def test_discard_begins_again(mode: int) -> None:
    _, member = in_mode(mode)
    size = member.context_size(0)
    read(member, 40)
    assert member.context_size(0) == size - 40
    assert member.context_size(1) == size
    member.discard_context()
    assert member.context_size(0) == size
    assert len(read_all(member)) == size


@pytest.mark.parametrize(("first", "then"), [(0, 1), (1, 2), (2, 1), (2, 0), (1, 0), (0, 2)])
def test_a_mode_change_begins_a_new_read(first: int, then: int) -> None:
    """A-06."""
    _, member = in_mode(first)
    read(member, 40)
    assert member.set_mode(then)
    assert split(read_all(member))[0] == (0, b"")


def test_freeze_mode_is_0_or_1() -> None:
    _, member = in_mode(0)
    for value in (2, 255):
        with pytest.raises(InvalidField):
            member.context_size(value)


@pytest.mark.parametrize("size", [4096, 128 << 10])
def test_active_read_is_a_snapshot(size: int) -> None:
    """A-07: what changes while a context is read in pieces is not seen."""
    function, member = in_mode(0, FakeFunction(disk=np.zeros(size, np.uint8)))
    _, first = read(member, 40)
    function.disk[:] = 0xFF
    function.state.isr = 0
    fields = split(first + read_all(member))
    assert fields[-2][1] == bytes(8 + size)
    assert (0x17, b"\1" + bytes(7)) in fields


def test_an_unmapped_target_does_not_move_the_position() -> None:
    _, member = in_mode(2)
    size = member.context_size(0)
    with pytest.raises(MemoryFault):
        member.read_context(Segments(FakeMemory(100), [(0, 60), (80, 60)]), 16)
    assert member.context_size(0) == size
    assert len(read_all(member)) == size


def test_function_reset_begins_a_new_read_and_keeps_the_mode() -> None:
    """A-15."""
    _, member = in_mode(1)
    read(member, 40)
    member.function_reset()
    assert member.mode == 1
    assert split(read_all(member))[0] == (0, b"")


@pytest.mark.spec("DEV-10")
def test_field_types() -> None:
    _, member = in_mode(0)
    assert member.fields() == {
        0x0: 0,
        0x1: 0,
        0x2: 0,
        0xF: 8,
        0x10: 16,
        0x11: 16,
        0x12: 16,
        0x13: 24,
        0x14: 40,
        0x15: 8,
        0x16: 8,
        0x17: 8,
        0x18: 8,
        0x100: 0xFFFFFFFF,
        0x101: 6,
        0x200: 0xFFFFFFFF,
        0x201: 0xFFFFFFFF,
    }
    sent = {kind for kind, _ in split(read_all(member))}
    assert sent <= set(member.fields())
