"""A CTX_WRITE is taken in slices, so that a long one holds no lock for long, and is still all or nothing."""

from __future__ import annotations

import struct

import pytest

from pymodel.errors import InvalidCommand, InvalidField, MemoryFault
from pymodel.memory import Segments
from tests.model.fakes import (
    DISCARD,
    END,
    START,
    Driver,
    FakeFunction,
    FakeMemory,
    context,
    isr,
    make_member,
    part,
    segments,
)

FIELDS = 3000  # more than one slice takes


def long_context(value: int) -> bytes:
    return context(*[part(DISCARD)] * FIELDS, isr(value))


def test_a_long_write_takes_turns() -> None:
    driver = Driver().open()
    driver.mode(2)
    answer = driver.adm(4, data=long_context(9))
    turns = 0
    while answer.used is None:
        assert driver.owner.wakes > turns, "nobody would call again"
        assert not driver.queue.accepts(2), "the next command waits"
        assert driver.owner.functions[1].state.isr == 1
        turns += 1
        driver.queue.service()
    assert answer.status == (0, 0)
    assert turns
    assert driver.owner.functions[1].state.isr == 9


def test_freeze_cannot_be_left_between_slices() -> None:
    """DEV-05: by another admin queue, if there is one."""
    driver = Driver().open()
    driver.mode(2)
    answer = driver.adm(4, data=long_context(9))
    assert answer.used is None
    assert driver.adm(1, data=bytes([0]), queue=3).status == (22, 1)
    assert driver.adm(1, data=bytes([2]), queue=3).status == (0, 0)


def test_a_reset_of_the_function_between_slices_begins_again() -> None:
    function = FakeFunction()
    member = make_member(function)
    member.set_mode(2)
    begin = segments(part(START))
    assert member.write_context(begin, 0)
    source = segments(b"".join([part(DISCARD)] * FIELDS) + isr(9) + part(END))
    assert not member.write_context(source, 0)
    member.function_reset()
    # What was staged is gone, so the rest is no context any more.
    with pytest.raises(InvalidField, match="before START_MARKER"):
        member.write_context(source, 0)
    assert not member.partial
    whole = segments(long_context(7))
    assert not member.write_context(whole, 0)
    member.function_reset()
    turns = 0
    while not member.write_context(whole, 0):
        turns += 1
    assert turns
    assert function.state.isr == 7


def test_what_fails_in_a_later_slice_leaves_nothing() -> None:
    function = FakeFunction()
    member = make_member(function)
    member.set_mode(2)
    assert member.write_context(segments(part(START) + isr(3)), 0)
    source = segments(isr(4) * FIELDS + part(0xEEEE))
    assert not member.write_context(source, 0)
    with pytest.raises(InvalidField, match="unknown type"):
        member.write_context(source, 0)
    assert member.write_context(segments(part(END)), 0)
    assert function.state.isr == 3


def test_memory_that_goes_between_slices() -> None:
    function = FakeFunction()
    member = make_member(function)
    member.set_mode(2)
    raw = long_context(9)
    memory = FakeMemory(1 << 20)
    memory.data[: len(raw)] = list(raw)
    source = Segments(memory, [(0, len(raw))])
    assert not member.write_context(source, 0)
    memory.data = memory.data[:100]
    with pytest.raises(MemoryFault):
        member.write_context(source, 0)
    assert not member.partial
    assert function.state.isr == 1


def test_the_queue_is_reset_between_slices() -> None:
    driver = Driver().open()
    driver.mode(2)
    answer = driver.adm(4, data=long_context(9))
    assert answer.used is None
    driver.queue.drop(2)
    assert driver.mode(0) == (0, 0)
    assert answer.used is None
    assert driver.owner.functions[1].state.isr == 1


def test_a_command_of_more_bytes_than_a_context_can_have_is_refused_at_once() -> None:
    function = FakeFunction()
    member = make_member(function)
    memory = FakeMemory(1 << 20)
    memory.data[:16] = list(struct.pack("<IIQ", 0, 0, 0))
    source = Segments(memory, [(0, 1 << 20)] * 65)  # twice the disk of 4 KiB and 64 MiB are the limit
    with pytest.raises(InvalidCommand):
        member.write_context(source, 0)
    member.set_mode(2)
    with pytest.raises(InvalidField, match="more than this function can"):
        member.write_context(source, 0)
    assert not member.partial
