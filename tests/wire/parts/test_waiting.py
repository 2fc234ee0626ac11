"""Commands that must wait: for a function reset, a device reset, a power state change.

Each operation takes time on this server. That it is under way is read from a register, and the order is what
is asserted: never an answer first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import OK, until_done
from tests.wire.parts.rig import (
    DESTROY,
    GET_ID,
    MODE_SET,
    PARTS_SET,
    RUNNING,
    SET_ID,
    STOPPED,
    TO_SET,
    WRONG_STATE,
    PartsRig,
    build,
    file_server,
    named,
)
from tests.wire.transitions import device_reset, flr, power_down, power_up

DELAY_MS = "400"
Start = Callable[[PartsRig], Callable[[], bool]]
Command = Callable[[PartsRig], tuple[int, bytes]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server whose resets and power states take a while."""
    options = [word for name in ("flr", "reset", "pm") for word in (f"--{name}-delay-ms", DELAY_MS)]
    with file_server(tmp_path_factory.mktemp("waiting"), *options) as started:
        yield started


@pytest.fixture
def rig(server: ServerProcess) -> Iterator[PartsRig]:
    """Stopped."""
    with PartsRig(server) as made:
        made.stop()
        yield made


def runs(rig: PartsRig) -> bool:
    """Whether it runs: PARTS_SET of nothing is refused then."""
    answer = rig.set([])
    assert answer in {OK, WRONG_STATE}
    return answer == WRONG_STATE


def set_parts(rig: PartsRig) -> tuple[int, bytes]:
    """PARTS_SET of a good set."""
    return PARTS_SET, named(0, SET_ID) + build(rig.selecting(1))


COMMANDS: dict[str, Command] = {
    "stop": lambda _: (MODE_SET, STOPPED),
    "resume": lambda _: (MODE_SET, RUNNING),
    "set": set_parts,
}
EACH = pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)


def answered(rig: PartsRig, start: Start, command: Command) -> tuple[tuple[int, int], int, bytes]:
    """How a command is answered that is sent while an operation is under way; and the command."""
    opcode, data = command(rig)
    under_way = start(rig)
    return until_done(rig, rig.send(opcode, data), under_way).code, opcode, data


@EACH
@pytest.mark.spec("P-DEV-55", "P-DEV-59")
def test_commands_wait_for_a_function_reset(rig: PartsRig, command: Command) -> None:
    """Answered after it, by what it left: a VF that runs takes no parts, and can be stopped."""
    answer, opcode, data = answered(rig, flr, command)
    assert answer == (WRONG_STATE if opcode == PARTS_SET else OK)
    assert runs(rig) is (data != STOPPED)
    assert rig.device.status == 0


@EACH
@pytest.mark.spec("P-DEV-56")
def test_commands_wait_for_a_device_reset(rig: PartsRig, command: Command) -> None:
    """Answered when the status reads 0; a VF that was stopped takes parts then."""
    answer, _, data = answered(rig, device_reset, command)
    assert answer == OK
    assert runs(rig) is (data == RUNNING)


@EACH
@pytest.mark.spec("P-DEV-57")
@pytest.mark.parametrize("start", [power_down, power_up], ids=["down", "up"])
def test_commands_wait_for_a_power_state(rig: PartsRig, start: Start, command: Command) -> None:
    """Answered when the new state is read; parts are kept in D3hot."""
    answer, _, data = answered(rig, start, command)
    assert answer == OK
    assert runs(rig) is (data == RUNNING)


@pytest.mark.spec("P-DEV-55", "P-DEV-21")
def test_what_stands_behind_a_waiting_command_waits_with_it(rig: PartsRig) -> None:
    """One queue, one order: parts that are read behind MODE_SET show what it left."""
    under_way = flr(rig)
    first = rig.send(MODE_SET, STOPPED)
    second = rig.send(DESTROY, named(0, GET_ID))
    assert until_done(rig, second, under_way).code == OK
    assert rig.done(first)
    assert rig.answer(first).code == OK


@pytest.mark.spec("P-DEV-55")
def test_commands_of_another_member_do_not_wait(rig: PartsRig) -> None:
    """An FLR of VF 1 holds up no command about VF 2."""
    flr(rig)
    mark = rig.server.mark()
    for mode in (STOPPED, RUNNING):
        assert rig.adm(MODE_SET, mode, vf=2).code == OK
    assert rig.create(SET_ID + 1, TO_SET, vf=2) == OK
    assert rig.destroy(SET_ID + 1, vf=2) == OK
    assert "waits" not in rig.server.log[mark:]


@pytest.mark.parametrize("start", [flr, device_reset, power_down], ids=["flr", "reset", "pm"])
def test_objects_are_destroyed_meanwhile(rig: PartsRig, start: Start) -> None:
    """Linux destroys an object while the VF is being reset, and never uses an id whose DESTROY failed."""
    start(rig)
    mark = rig.server.mark()
    for id_ in (GET_ID, SET_ID):
        assert rig.destroy(id_) == OK
    assert rig.create(GET_ID, TO_SET) == OK
    assert "waits" not in rig.server.log[mark:]


@pytest.mark.spec("P-DEV-55")
def test_a_client_that_leaves_meanwhile(rig: PartsRig) -> None:
    """The VF's client hangs up during FLR: the command is answered all the same."""
    flr(rig)
    pending = rig.send(MODE_SET, STOPPED)
    rig.device.close()
    assert rig.answer(pending).code == OK
    assert not runs(rig)
    rig.resume()
