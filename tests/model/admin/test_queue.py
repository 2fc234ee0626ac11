"""The frame of commands, buffers of any length, held commands."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pymodel.errors import MemoryFault
from pymodel.memory import Buffer, Segments
from tests.model.fakes import (
    INVALID_COMMAND,
    INVALID_FIELD,
    INVALID_MEMBER,
    OK,
    Driver,
    FakeFunction,
    FakeMemory,
    context,
    isr,
    part,
)

# opcode from the base: data, whole used length
LENGTHS = [
    (0, b"", 16),
    (1, bytes(8), 8),
    (2, bytes(8), 16),
    (4, b"", 8),
    (5, b"", 8 + 17 * 8),
    (6, b"", 8),
    (7, b"", 8),
    (8, b"", 16),
    (9, b"", 8),
]


def ready(op: int) -> Driver:
    driver = Driver().open()
    if op == 4:
        assert driver.mode(2) == OK
    if op == 8:
        assert driver.adm(7).status == OK
    return driver


@pytest.mark.spec("P-DEV-17", "P-DEV-18", "P-DEV-19", "P-DEV-20")
@pytest.mark.parametrize(("op", "data", "used"), LENGTHS)
@pytest.mark.parametrize("room", [1, 3, 4, 7, 8, 9, 12, 16, 23, 4096])
def test_results_are_cut_to_the_buffer(op: int, data: bytes, used: int, room: int) -> None:
    whole = ready(op).adm(op, data=data)
    assert (whole.status, whole.used) == (OK, used)
    answer = ready(op).adm(op, data=data, room=room)
    assert answer.used == min(room, used)
    assert answer.raw == whole.raw[:room]
    assert answer.poisoned


@pytest.mark.spec("P-DEV-16")
@pytest.mark.parametrize("length", range(33))
def test_short_and_long_readable_parts(length: int) -> None:
    """What is missing is 0, surplus is ignored."""
    driver = Driver().open()
    command = struct.pack("<HH12xQB7x", 0x41, 1, 1, 1) + b"surplus"
    status = driver.send(command[:length]).status
    member = int.from_bytes(command[16 : min(length, 24)].ljust(8, b"\0"), "little")
    if length < 3:
        assert status != OK or length < 1 or command[:length].strip(b"\0") == b""
    elif member != 1:
        assert status == INVALID_MEMBER
    else:
        assert status == OK
        assert driver.mode_get() == (1 if length > 24 else 0)


def test_an_empty_readable_part_is_a_command_of_zeros() -> None:
    answer = Driver().send(b"")
    assert (answer.status, answer.result) == (OK, b"\x83\3" + bytes(6))


def test_an_empty_writable_part_has_no_effect() -> None:
    driver = Driver().open()
    answer = driver.adm(1, data=b"\2", room=0)
    assert answer.used == 0
    assert driver.mode_get() == 0


@given(st.binary(max_size=64), st.integers(0, 64))
def test_any_bytes_are_answered(command: bytes, room: int) -> None:
    assert Driver().open().send(command, room).used is not None


def test_reserved_header_bytes_are_ignored() -> None:
    driver = Driver().open()
    assert driver.send(struct.pack("<HH", 0x40, 1) + b"\xff" * 12 + struct.pack("<Q", 1)).status == OK


@pytest.mark.spec("DEV-06")
@pytest.mark.parametrize("room", [8, 12, 15, 16, 17, 40, 64, 1000])
def test_read_results(room: int) -> None:
    """Used length is exactly 16 + size; bytes that did not fit are not lost (A-27)."""
    driver = Driver().open()
    whole = driver.read_all()
    assert driver.adm(6).status == OK
    answer = driver.adm(3, room=room)
    size = max(room - 16, 0)
    assert (answer.status, answer.used) == (OK, min(room, 16 + size))
    if room >= 16:
        assert struct.unpack_from("<II", answer.result) == (len(whole) - size, size)
        assert answer.result[8:] == whole[:size]
    assert driver.read_all(room=100) == whole[size:]
    for _ in range(3):
        answer = driver.adm(3)
        assert (answer.used, answer.result) == (16, bytes(8))


def test_size_get() -> None:
    driver = Driver().open()
    whole = len(driver.read_all())
    assert driver.adm(2, data=b"\0").result == bytes(8)
    assert driver.adm(2, data=b"\1").result == struct.pack("<Q", whole)
    assert driver.adm(2, data=b"\2").status == INVALID_FIELD


@pytest.mark.spec("DEV-10")
def test_fields_query() -> None:
    rows = struct.iter_unpack("<HHI", Driver().open().adm(5).result)
    found = {kind: length for kind, reserved, length in rows if reserved == 0}
    assert {0, 1, 2} <= found.keys()
    assert (found[0x12], found[0x13], found[0x14], found[0x200]) == (16, 24, 40, 0xFFFFFFFF)


@pytest.mark.spec("DEV-03", "DEV-04")
def test_mode_values() -> None:
    driver = Driver().open()
    for value in range(256):
        assert driver.mode(value) == (OK if value < 3 else INVALID_FIELD)
    assert driver.mode_get() == 2
    assert driver.mode_get(2) == 0  # another member's own


@pytest.mark.spec("DEV-05", "DEV-11", "DEV-12", "DEV-24")
def test_write_and_its_state() -> None:
    driver = Driver().open()
    function = driver.owner.functions[1]
    assert driver.adm(4, data=context(isr(2))).status == INVALID_COMMAND
    assert driver.mode(2) == OK
    assert driver.adm(4, data=context(isr(2)) + part(0)[:5]).status == OK
    assert function.state.isr == 2
    assert driver.mode(0) == INVALID_COMMAND
    assert driver.mode(1) == INVALID_COMMAND
    assert driver.mode(2) == OK
    assert driver.adm(4, data=bytes(11) + part(0x17, b"")).status == INVALID_FIELD
    assert driver.mode(1) == INVALID_COMMAND
    assert driver.adm(6).status == OK
    assert driver.mode(1) == OK


def test_write_records() -> None:
    driver = Driver().open()
    record = driver.owner.members[1].record
    assert driver.adm(8).status == INVALID_COMMAND
    assert driver.adm(7).status == OK
    assert record.active
    assert driver.owner.functions[1].expected == [True]
    for page in (1, 2, 7):
        record.add(page << 12, 1)
    answer = driver.adm(8, room=8 + 8 + 16 + 15)
    assert (answer.used, answer.result) == (32, struct.pack("<IIQQ", 1, 1, 0x1000, 0x2000))
    assert driver.adm(8).result == struct.pack("<IIQQ", 0, 1, 0x7000, 0x1000)
    assert driver.adm(8).result == bytes(8)
    assert driver.mode(2) == OK
    assert driver.adm(7).status == OK
    assert driver.adm(9).status == OK
    assert driver.owner.functions[1].expected == [True, True, False]
    assert driver.adm(8).status == INVALID_COMMAND
    assert driver.adm(9).status == OK


# --- memory that is not there --------------------------------------------------------------------------


@pytest.mark.parametrize("op", [1, 3, 4, 8])
def test_an_unmapped_result_stops_the_command_ahead_of_any_effect(op: int) -> None:
    driver = ready(op)
    member = driver.owner.members[1]
    member.record.start()
    member.record.add(0, 1)
    mode, size = member.mode, member.context_size(0)
    command = struct.pack("<HH12xQ", 0x40 + op, 1, 1) + (context(isr(2)) if op == 4 else b"\1")
    answer = driver.send(command)

    def never(used: int) -> None:
        raise AssertionError("completed")

    fresh = ready(op)
    member = fresh.owner.members[1]
    member.record.start()
    member.record.add(0, 1)
    readable = Segments(answer.memory, [(0, len(command))])
    writable = Segments(answer.memory, [(len(command), 64), (1 << 40, 8)])
    with pytest.raises(MemoryFault):
        fresh.queue.take(Buffer(2, readable, writable, never))
    assert (member.mode, member.context_size(0)) == (mode, size)
    assert member.record.take(1)[0] == [(0, 4096)]
    assert fresh.owner.functions[1].state.isr == 1
    assert fresh.queue.accepts(2)


def test_an_unmapped_command() -> None:
    memory = FakeMemory(64)
    with pytest.raises(MemoryFault):
        Driver().queue.take(Buffer(2, Segments(memory, [(60, 24)]), Segments(memory, [(0, 16)]), print))


# --- commands that wait --------------------------------------------------------------------------------


@pytest.mark.spec("DEV-29", "DEV-30", "DEV-31")
@pytest.mark.parametrize("op", range(10))
def test_which_commands_wait_for_a_transition(op: int) -> None:
    """MODE_SET, CTX_READ and CTX_WRITE are held; the others are answered at once (A-23)."""
    driver = ready(op)
    function, member = driver.owner.functions[1], driver.owner.members[1]
    function.in_transition = True
    answer = driver.adm(op, data=bytes(8) if op == 1 else b"")
    if op not in (1, 3, 4):
        assert answer.used is not None
        return
    assert answer.used is None
    assert not driver.queue.accepts(2)
    driver.queue.service()
    assert answer.used is None
    function.in_transition = False
    assert driver.owner.wakes == 0
    member.settled()
    assert driver.owner.wakes == 1
    driver.queue.service()
    assert answer.status == OK
    assert driver.queue.accepts(2)


def test_a_write_that_waited_is_judged_by_the_mode_it_finds() -> None:
    """A-16."""
    driver = Driver().open()
    assert driver.mode(2) == OK
    function = driver.owner.functions[1]
    function.in_transition = True
    answer = driver.adm(4, data=context(isr(2)))
    function.in_transition = False
    assert driver.adm(1, data=b"\1", queue=3).status == OK
    driver.queue.service()
    assert answer.status == INVALID_COMMAND


@pytest.mark.spec("DEV-14")
def test_stop_is_answered_when_the_last_request_ended() -> None:
    driver = Driver().open()
    function, member = driver.owner.functions[1], driver.owner.members[1]
    function.outstanding = 1
    answer = driver.adm(1, data=b"\2")
    assert (answer.used, member.active) == (None, False)
    assert driver.adm(0, queue=3).result[0] == 0
    function.outstanding = 0
    member.settled()
    driver.queue.service()
    assert answer.status == OK
    assert driver.mode_get() == 2


def test_the_driver_cannot_change_a_command_that_waits() -> None:
    driver = Driver().open()
    driver.owner.functions[1].outstanding = 1
    answer = driver.adm(1, data=b"\1")
    answer.memory.data[:32] = 0xFF
    driver.owner.functions[1].outstanding = 0
    driver.queue.service()
    assert answer.status == OK
    assert driver.mode_get() == 1


def test_members_that_vanish_while_a_command_waits() -> None:
    driver = Driver().open()
    driver.owner.functions[1].outstanding = 1
    answer = driver.adm(1, data=b"\1")
    del driver.owner.members[1]
    driver.queue.service()
    assert answer.status == INVALID_MEMBER


def test_a_held_command_stops_its_own_queue_only() -> None:
    """P-DEV-21."""
    driver = Driver().open()
    driver.owner.functions[1].in_transition = True
    held = driver.adm(3)
    assert driver.adm(3, 2, queue=3).status == OK
    assert held.used is None


@pytest.mark.parametrize("whole", [False, True])
def test_reset_forgets_what_waits_and_opens_the_gate(whole: bool) -> None:
    """A-29: modes survive; a Stop that was not answered did not happen."""
    driver = Driver().open()
    assert driver.mode(1, 2) == OK
    driver.owner.functions[1].outstanding = 1
    answer = driver.adm(1, data=b"\1")
    if whole:
        driver.queue.reset()
    else:
        driver.queue.drop(2)
    assert driver.queue.accepts(2)
    members = driver.owner.members
    assert [(members[number].mode, members[number].active) for number in (1, 2)] == [(0, True), (1, False)]
    driver.owner.functions[1].outstanding = 0
    driver.queue.service()
    assert answer.used is None


def test_memory_that_went_while_a_command_waited() -> None:
    """Nothing is done until the memory is back, or the queue is reset, which gives the stop up."""
    driver = Driver().open()
    driver.owner.functions[1].outstanding = 1
    answer = driver.adm(1, data=b"\1")
    answer.memory.data = answer.memory.data[:40]
    driver.owner.functions[1].outstanding = 0
    with pytest.raises(MemoryFault):
        driver.queue.service()
    member = driver.owner.members[1]
    assert (answer.used, member.mode, member.active) == (None, 0, False)
    assert not driver.queue.accepts(2)
    driver.queue.reset()
    assert (answer.used, member.mode, member.active) == (None, 0, True)
    assert driver.queue.accepts(2)


def test_memory_that_came_back_while_a_command_waited() -> None:
    driver = Driver().open()
    driver.owner.functions[1].outstanding = 1
    answer = driver.adm(1, data=b"\1")
    there = answer.memory.data
    answer.memory.data = there[:40]
    driver.owner.functions[1].outstanding = 0
    with pytest.raises(MemoryFault):
        driver.queue.service()
    answer.memory.data = there
    driver.queue.service()
    assert (answer.used, answer.status, driver.owner.members[1].mode) == (8, OK, 1)


def test_log_lines(caplog: pytest.LogCaptureFixture) -> None:
    driver = Driver().open()
    with caplog.at_level("DEBUG", "virtio"):
        driver.adm(3, room=56)
        driver.mode(1)
        driver.adm(4, data=part(0))
    left = driver.owner.members[1].context_size(1) - 40
    assert f"DEV_CTX_READ vf1: OK, 40 bytes, {left} left" in caplog.messages
    assert ("virtio.vf1", 20, "active -> stop") in caplog.record_tuples
    assert tuple(line for line in caplog.messages if "WRITE" in line) == (
        "DEV_CTX_WRITE vf1: EINVAL, Q_INVALID_COMMAND (CTX_WRITE in mode stop)",
    )


def test_a_mistake_of_ours_is_answered(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """EINVAL (22), Q_INVALID_COMMAND (1), with a traceback in the log; what follows is served as ever."""
    driver = Driver().open()
    with monkeypatch.context() as wrong:
        wrong.setattr(FakeFunction, "quiesce", lambda self: self.nothing)
        assert driver.mode(1) == INVALID_COMMAND
    (record,) = [record for record in caplog.records if record.exc_info]
    assert record.getMessage().startswith("DEV_MODE_SET vf1: the server made a mistake")
    assert driver.mode_get() == 0
    assert driver.mode(1) == OK


def test_a_mistake_of_ours_in_a_command_that_waited(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue goes on, and so does the member: its gate is open again."""
    driver = Driver().open()
    function, member = driver.owner.functions[1], driver.owner.members[1]
    function.outstanding = 1
    answer = driver.adm(1, data=b"\1")
    assert (answer.used, member.active) == (None, False)
    function.outstanding = 0
    with monkeypatch.context() as wrong:
        wrong.setattr(FakeFunction, "quiesce", lambda self: 1 // 0)
        driver.queue.service()
    assert answer.status == INVALID_COMMAND
    assert member.active
    assert driver.mode(1) == OK


@pytest.mark.spec("P-DEV-06")
def test_no_memory_for_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """ENOMEM (12), Q_NORESOURCE (6), and nothing has changed: the same command succeeds later."""
    driver = Driver().open()
    assert driver.mode(2) == OK
    function = driver.owner.functions[1]
    before, stream = function.all(), context(isr(0))

    def none(*_: object) -> None:
        raise MemoryError

    for method in ("restore", "check"):
        with monkeypatch.context() as short:
            short.setattr(FakeFunction, method, none)
            assert driver.adm(4, data=stream).status == (12, 6)
        assert function.all() == before
        assert not driver.owner.members[1].partial
    assert driver.adm(4, data=stream).status == OK
    assert function.all() != before
