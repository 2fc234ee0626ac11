"""Commands that must wait: for requests (DEV-14), a function reset, a device reset, a power state change.

Each operation takes time on these servers. That it is under way is read from a register, and the order is
what is asserted: never an answer first.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    COMMON_CFG,
    CTX_DISCARD,
    CTX_READ,
    CTX_WRITE,
    FIELDS_QUERY,
    FREEZE,
    MODE_GET,
    MODE_SET,
    OK,
    PATTERN,
    SIZE_GET,
    STOP,
    TIMEOUT,
    Rig,
    context,
    outstanding,
    small_server,
    until_done,
    value,
)
from tests.wire.running import until
from tests.wire.transitions import device_reset, flr, power_down, power_up
from vfu_client.drivers.block import BlockDriver

DELAY_MS = "400"

SET_STOP, SET_FREEZE = bytes([1]) + bytes(7), bytes([2]) + bytes(7)
# (opcode, data, room for a result)
WAITING = {
    "mode-set": (MODE_SET, SET_STOP, 0),
    "mode-set-same": (MODE_SET, SET_FREEZE, 0),
    "write": (CTX_WRITE, context(), 0),
    "read": (CTX_READ, b"", 1 << 16),
}
AT_ONCE = {
    "mode-get": (MODE_GET, b"", 8),
    "size-get": (SIZE_GET, bytes(8), 8),
    "fields-query": (FIELDS_QUERY, b"", 4096),
    "discard": (CTX_DISCARD, b"", 0),
}
COMMANDS = pytest.mark.parametrize("command", WAITING.values(), ids=WAITING)


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """A server whose resets and power states take a while."""
    options = [word for name in ("flr", "reset", "pm") for word in (f"--{name}-delay-ms", DELAY_MS)]
    with small_server(*options) as started:
        yield started


@pytest.fixture(scope="module")
def slow_io() -> Iterator[ServerProcess]:
    """A server whose requests take a while."""
    with small_server("--io-delay-ms", DELAY_MS) as started:
        yield started


def check(rig: Rig, start: Callable[[Rig], Callable[[], bool]], command: tuple[int, bytes, int]) -> None:
    """Start an operation, send what is answered at once, then what waits; others go on meanwhile."""
    with BlockDriver.open(rig.server.socket("vf2"), timeout=TIMEOUT) as other:
        under_way = start(rig)
        for name, at_once in AT_ONCE.items():
            assert rig.adm(*at_once).code == OK
            assert under_way(), f"{name} was not answered at once"
        pending = rig.send(*command)
        other.write(0, PATTERN)
        assert other.read(0).tobytes() == PATTERN
        assert under_way(), "another function's requests waited"
        assert not rig.done(pending) or not under_way()
        answer = until_done(rig, pending, under_way)
    assert answer.code == OK
    if command[0] == CTX_READ:
        remaining, size = struct.unpack_from("<II", answer.result)
        assert (remaining, answer.used) == (0, 16 + size)


@COMMANDS
@pytest.mark.spec("DEV-29")
def test_commands_wait_for_a_function_reset(rig: Rig, command: tuple[int, bytes, int]) -> None:
    """FLR in Freeze: the commands are answered after it, and see what it left; the mode is kept (A-15)."""
    rig.go(FREEZE)
    check(rig, flr, command)
    assert rig.mode == (STOP if command[1] == SET_STOP else FREEZE)
    if command[0] == CTX_READ:
        assert rig.read(64) == (0, b"")
    assert value(rig.context(), COMMON_CFG)[14] == 0


@pytest.mark.spec("DEV-29")
def test_a_function_reset_in_active_with_requests(rig: Rig) -> None:
    """FLR while requests are queued, then MODE_SET(Stop): answered after it, then nothing moves."""
    for _ in range(20):
        rig.read_request(kick=False)
    rig.queue.kick(force=True)
    check(rig, flr, (MODE_SET, SET_STOP, 0))
    with rig.silence():
        rig.device.notify(0)
    assert rig.mode == STOP


@pytest.mark.spec("DEV-30")
@pytest.mark.parametrize("command", [WAITING["mode-set"], WAITING["read"]], ids=["mode-set", "read"])
@pytest.mark.parametrize("mode", [ACTIVE, STOP], ids=["active", "stop"])
def test_commands_wait_for_a_device_reset(rig: Rig, mode: int, command: tuple[int, bytes, int]) -> None:
    """A status of 0 written in Active or Stop: MODE_SET and READ are answered when the status reads 0."""
    rig.go(mode)
    check(rig, device_reset, command)
    assert value(rig.context(), COMMON_CFG)[14] == 0


@pytest.mark.spec("DEV-30")
def test_a_write_that_waits_for_a_device_reset_is_judged_by_the_mode(rig: Rig) -> None:
    """A reset cannot be under way in Freeze (A-16), so WRITE waits in Stop and is then refused."""
    rig.go(STOP)
    under_way = device_reset(rig)
    answer = until_done(rig, rig.send(CTX_WRITE, context()), under_way)
    assert answer.code == (22, 1)


@pytest.mark.spec("DEV-30")
def test_a_reset_begun_before_freeze_is_finished_first(rig: Rig) -> None:
    """MODE_SET(Freeze) during a reset: the context in Freeze is that after the reset, for good."""
    under_way = device_reset(rig)
    assert until_done(rig, rig.send(MODE_SET, SET_FREEZE), under_way).code == OK
    first = rig.context()
    assert value(first, COMMON_CFG)[14] == 0
    assert rig.signalled() == []
    assert rig.context() == first


@COMMANDS
@pytest.mark.spec("DEV-31")
def test_commands_wait_for_a_power_state(rig: Rig, command: tuple[int, bytes, int]) -> None:
    """A change of PMCSR to D3hot in Freeze: answered when the new state is read."""
    rig.go(FREEZE)
    check(rig, power_down, command)
    assert value(rig.context(), COMMON_CFG)[14] == 0x0F


@pytest.mark.spec("DEV-31")
def test_commands_wait_for_the_way_back_to_d0(rig: Rig) -> None:
    """From D3hot to D0, in Freeze."""
    rig.go(FREEZE)
    check(rig, power_up, WAITING["mode-set"])
    assert value(rig.context(), COMMON_CFG)[14] == 0x0F


@pytest.mark.spec("DEV-29", "DEV-30", "DEV-31")
@pytest.mark.parametrize("start", [flr, power_down], ids=["flr", "pm"])
def test_what_stands_behind_a_waiting_command_waits_with_it(
    rig: Rig, start: Callable[[Rig], Callable[[], bool]]
) -> None:
    """One queue, one order (A-23): MODE_GET behind MODE_SET is answered after it, and shows its effect."""
    rig.go(FREEZE)
    under_way = start(rig)
    first, second = rig.send(MODE_SET, SET_STOP), rig.send(MODE_GET, room=8)
    while under_way():
        assert not rig.done(second) or not under_way()
    assert rig.answer(second).result[0] == STOP
    assert rig.done(first)
    assert rig.answer(first).code == OK


@pytest.mark.spec("DEV-29")
def test_commands_of_another_member_do_not_wait(rig: Rig) -> None:
    """An FLR of VF 1 holds up no command about VF 2."""
    under_way = flr(rig)
    for command in WAITING.values():
        rig.adm(*command, vf=2)
    assert rig.adm(MODE_SET, bytes(8), vf=2).code == OK
    assert under_way()


@pytest.mark.spec("DEV-29")
def test_a_function_reset_whose_client_leaves_is_finished(rig: Rig) -> None:
    """The client hangs up during FLR: commands are answered, what was partly written is dropped (A-15)."""
    rig.go(FREEZE)
    stream = rig.context()
    assert rig.write(stream[:40]) == OK
    under_way = flr(rig)
    pending = rig.send(MODE_SET, SET_STOP)
    assert under_way()
    rig.disk.close()
    assert rig.answer(pending).code == OK
    assert rig.mode == STOP


# Requests.


@pytest.mark.spec("DEV-14", "DEV-13", "DEV-22")
@pytest.mark.parametrize("data", [SET_STOP, SET_FREEZE], ids=["stop", "freeze"])
def test_requests_finish_before_the_answer(slow_io: ServerProcess, data: bytes) -> None:
    """Eight requests between fetch and completion: MODE_SET is answered when all are in the used ring (A-22).

    From then on there is silence, and all data is there; the PF answers commands about others meanwhile.
    """
    with Rig(slow_io) as rig:
        requests = [rig.read_request(kick=False) for _ in range(8)]
        rig.queue.kick(force=True)
        until(lambda: outstanding(slow_io, "vf1") == 8, "fetched")
        mark = slow_io.mark()
        pending = rig.send(MODE_SET, data)
        slow_io.wait_log("DEV_MODE_SET vf1: waits", since=mark)
        # A request that came after the command is not fetched any more.
        late = rig.read_request()
        answer = until_done(rig, pending, lambda: rig.queue.device_used_idx < 8)
        assert answer.code == OK
        with rig.silence():
            rig.device.notify(0)
        assert rig.queue.device_used_idx == 8
        for request in requests:
            assert rig.finish(request) == bytes(512)
        assert late.status is None
        rig.go(ACTIVE)
        assert rig.finish(late) == bytes(512)


@pytest.mark.spec("DEV-14")
def test_a_stop_without_requests_is_answered_at_once(slow_io: ServerProcess) -> None:
    """No wait for the sake of waiting: another VF's request is still under way when Stop is answered."""
    with Rig(slow_io) as rig, BlockDriver.open(slow_io.socket("vf2"), timeout=TIMEOUT) as other:
        request = other.submit(0, 0, other.device.memory.allocate(512))
        rig.go(STOP)
        assert other.queues[0].device_used_idx == 0
        other.finish(request)


@pytest.mark.spec("DEV-14")
def test_the_owner_may_give_a_stop_up(slow_io: ServerProcess) -> None:
    """The owner's device is reset while MODE_SET waits: no answer, the mode stays, requests go on."""
    with Rig(slow_io) as rig:
        request = rig.read_request()
        until(lambda: outstanding(slow_io, "vf1") == 1, "fetched")
        rig.send(MODE_SET, SET_STOP)
        rig.owner.device.connection.device_reset()
        late = rig.read_request()
        assert rig.finish(request) == rig.finish(late) == bytes(512)
        rig.owner.close()
        rig.owner = type(rig.owner).open(slow_io.socket("pf"), obey=False, timeout=TIMEOUT)
        assert rig.mode == ACTIVE


@pytest.mark.spec("DEV-14", "DEV-29")
def test_a_stop_that_waits_for_requests_survives_a_function_reset(slow_io: ServerProcess) -> None:
    """The VF is reset while its requests are drained: nothing is outstanding any more, Stop is answered."""
    with Rig(slow_io) as rig:
        rig.read_request()
        until(lambda: outstanding(slow_io, "vf1") == 1, "fetched")
        pending = rig.send(MODE_SET, SET_STOP)
        rig.device.function.flr()
        assert rig.answer(pending).code == OK
        assert rig.mode == STOP
        with rig.silence(0.3):
            pass
