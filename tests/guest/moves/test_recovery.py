"""`vfu-migrate` is killed at each step of a move, and of its way back: `--recover` has the guest go on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pymodel.spec import context
from tests.guest.moves.traveller import Traveller, command
from tests.server_process import ServerProcess
from vfu_client.move.report import STEPS
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_images.machine import Machine

WAY_BACK = ("restore-destination", "activate-source", "continue-source", "end-destination")

COMMANDS = ("query-migrate-capabilities", "migrate-set-parameters", "migrate-incoming", "migrate-continue")

KILLED = """
# A vfu-migrate that ends as by SIGKILL where a step, or a command to a QEMU, would begin.
import os, signal, sys
from vfu_client.move import cli, move, qemu

fatal, fails = sys.argv[1:3]

def perhaps_die(name):
    if name == fatal:
        os.kill(os.getpid(), signal.SIGKILL)

class KilledQemu(qemu.Qemu):
    async def execute(self, command, arguments=None):
        perhaps_die(command)
        return await super().execute(command, arguments)

class KilledMove(move.Move):
    def _step(self, name):
        perhaps_die(name)
        if name == fails:
            raise RuntimeError("made to fail")
        return super()._step(name)

cli.Qemu, cli.Move = KilledQemu, KilledMove
sys.exit(cli.main(sys.argv[3:]))
"""


def kill_and_recover(
    traveller: Traveller, target: Machine, folder: Path, fatal: str, fails: str = "", *options: str
) -> subprocess.CompletedProcess[str]:
    """Have a move killed, and recover it; nothing is left of it then."""
    words = command(traveller, target, *options)
    program = [sys.executable, "-c", KILLED, fatal, fails, *words[3:]]
    environment = {**os.environ, "TMPDIR": str(folder)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert len(list(folder.iterdir())) == 1
    recover = [*words[:3], "--recover", "--json"]
    done = subprocess.run(recover, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert list(folder.iterdir()) == []
    return done


def check_settings(machine: Machine) -> None:
    """Capabilities and limits are QEMU's own."""
    states = {row["capability"]: row["state"] for row in machine.qmp("query-migrate-capabilities")}
    assert not states["events"]
    assert not states["pause-before-switchover"]
    parameters = machine.qmp("query-migrate-parameters")
    assert (parameters["downtime-limit"], parameters["max-bandwidth"]) == (300, 128 << 20)


def check_at_rest(server: ServerProcess) -> None:
    """VF 1 is active, has no write record, and takes a context from its beginning."""
    with OwnerDriver.open(server.socket("pf")) as owner:
        assert owner.mode_get(1) == context.MODE_ACTIVE
        with pytest.raises(AdminError):
            owner.write_record_read(1)


@pytest.mark.long
@pytest.mark.parametrize(
    ("fatal", "fails"),
    [
        *((step, "") for step in STEPS if step not in {"check", "release"}),
        *((command, "") for command in COMMANDS),
        *((step, "activate") for step in WAY_BACK),
    ],
)
def test_goes_back(traveller: Traveller, target: Machine, tmp_path: Path, fatal: str, fails: str) -> None:
    """From each step until `cont`, and from each of the way back."""
    done = kill_and_recover(traveller, target, tmp_path, fatal, fails)
    (found,) = json.loads(done.stdout)
    nothing = fatal == "prepare"
    assert (found["recovered"], found["runs_at"]) == (True, None if nothing else "source"), done.stderr
    assert found.get("warnings", []) == []
    traveller.check_runs()
    check_settings(traveller.guest)
    check_at_rest(traveller.there)
    if fatal in {"prepare", "query-migrate-capabilities", "migrate-set-parameters", "copy-ram"}:
        # The destination had taken nothing yet: it can be used.
        check_settings(target)
        assert target.qmp("query-status")["status"] == "inmigrate"
        assert traveller.move(target).warnings == []
        traveller.arrived(target)
        traveller.check_runs()
    else:
        assert target.wait_exit() == 0


def test_goes_back_by_parts(traveller: Traveller, target: Machine, tmp_path: Path) -> None:
    """The same with device parts, where the destination's VF ran already."""
    done = kill_and_recover(traveller, target, tmp_path, "continue", "", "--dialect", "parts")
    (found,) = json.loads(done.stdout)
    assert (found["recovered"], found["runs_at"], found["warnings"]) == (True, "source", []), done.stderr
    traveller.check_runs()
    check_at_rest(traveller.there)
    (found,) = traveller.there.ask("query-functions", function="vf1")
    assert found["status"] == 0


@pytest.mark.parametrize("fatal", ["cont", "release"])
def test_goes_on(traveller: Traveller, target: Machine, tmp_path: Path, fatal: str) -> None:
    """Where the destination has all of the guest, or runs it already."""
    old = traveller.guest
    done = kill_and_recover(traveller, target, tmp_path, fatal)
    (found,) = json.loads(done.stdout)
    assert (found["recovered"], found["runs_at"], found["warnings"]) == (True, "destination", []), done.stderr
    check_settings(old)
    traveller.arrived(target)
    traveller.check_runs()
    check_settings(target)
    check_at_rest(traveller.there)
