"""The move to another host: its destination is reached by a byte stream alone, which is cut at each step."""

from __future__ import annotations

import asyncio
import json
import os
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guest.moves.test_recovery import KILLED, check_at_rest, check_settings
from tests.guest.moves.traveller import Traveller, command
from tests.server_process import ServerProcess
from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.ram_channel import TcpChannel
from vfu_client.move.remote import RemoteSide
from vfu_client.move.report import STEPS, MoveError, Report
from vfu_client.owner.owner import CONTEXT_OPCODES
from vfu_images.machine import Machine

AGENT = [sys.executable, "-m", "vfu_client.move.cli", "--agent"]
RELAYED = shlex.join([sys.executable, str(Path(__file__).with_name("relay.py")), *AGENT])

FROM_COPY_RAM = list(STEPS)[list(STEPS).index("copy-ram") + 1 : -1]
"""The steps before which QEMU at the destination has begun to take the guest."""


def remote_side(target: Machine, server: ServerProcess, dialect: str = "context") -> RemoteSide:
    """The other host, as the source sees it."""
    return RemoteSide(
        "destination",
        RELAYED,
        target.qmp_path,
        target.qtest_path,
        {"": server.folder},
        context_opcodes=CONTEXT_OPCODES,
        dialect=dialect,
        say=print,
    )


def move(
    traveller: Traveller, target: Machine, before_step: Callable[[RemoteSide, str], None] | None = None
) -> Report:
    """Move to the other server as if it were another host's."""
    there = remote_side(target, traveller.there)

    def hook(step: str) -> None:
        if before_step is not None:
            before_step(there, step)

    return asyncio.run(
        Move(
            traveller.side("source", traveller.guest, traveller.here),
            there,
            [MovedVf(Vf(1), Vf(1))],
            ram=TcpChannel("127.0.0.1"),
            before_step=hook,
            say=print,
        ).run()
    )


def agent_of(there: RemoteSide) -> int:
    """The process of its agent, below that of the relay."""
    assert there._process is not None
    number = there._process.pid
    return int(Path(f"/proc/{number}/task/{number}/children").read_text().split()[0])


def cut(there: RemoteSide, number: int = signal.SIGKILL) -> int:
    """Cut the way there; the agent lives. A descriptor of its process, for `wait_for_end`."""
    assert there._process is not None
    agent = os.pidfd_open(agent_of(there))
    os.kill(there._process.pid, number)
    return agent


def wait_for_end(process: int) -> None:
    """Until a process has ended; its descriptor is closed."""
    try:
        assert select.select([process], [], [], 60)[0], "the agent does not end"
    finally:
        os.close(process)


def check_there(traveller: Traveller, target: Machine, *, taken: bool) -> None:
    """The agent has put its side right: VF 1 is as it was, a QEMU that took a part of the guest is gone."""
    if taken:
        assert target.wait_exit() == 0
    else:
        assert target.qmp("query-status")["status"] == "inmigrate"
        check_settings(target)
    check_at_rest(traveller.there)


def test_there_and_back(traveller: Traveller, target: Machine) -> None:
    report = move(traveller, target)
    assert report.warnings == []
    assert set(STEPS) <= {step.name for step in report.steps}
    assert report.downtime_ms is not None
    assert 0 < report.downtime_ms < 60_000
    check_at_rest(traveller.here)
    traveller.arrived(target)
    traveller.check_runs()


@pytest.mark.long
def test_by_command_line(traveller: Traveller, target: Machine, tmp_path: Path) -> None:
    """What a login says first is skipped; --agent is appended; nothing is left in TMPDIR."""
    script = tmp_path / "login"
    script.write_text(f'#!/bin/sh\necho "Welcome to b"\nshift\nexec {shlex.join(AGENT[:-1])} "$@"\n')
    script.chmod(0o755)
    folder = tmp_path / "tmp"
    folder.mkdir()
    words = command(traveller, target, "--to-command", str(script), "--ram-address", "127.0.0.1", "--json")
    done = subprocess.run(
        words,
        env={**os.environ, "TMPDIR": str(folder)},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["moved"]
    assert list(folder.iterdir()) == []
    traveller.arrived(target)
    traveller.check_runs()


@pytest.mark.parametrize(
    "step",
    [
        pytest.param(step, marks=[] if step == "move-contexts" else pytest.mark.long)
        for step in STEPS
        if step not in {"check", "release"}
    ],
)
def test_cut_at_each_step(traveller: Traveller, target: Machine, step: str) -> None:
    """The guest runs at the source, and what was touched at the other host the agent there puts right."""
    agents = []

    def hook(there: RemoteSide, name: str) -> None:
        if name == step:
            agents.append(cut(there))

    with pytest.raises(MoveError, match="the connection to the destination is cut") as caught:
        move(traveller, target, hook)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    wait_for_end(agents[0])
    check_there(traveller, target, taken=step in FROM_COPY_RAM)


@pytest.mark.long
def test_a_silent_network(traveller: Traveller, target: Machine) -> None:
    """Both sides notice by themselves, each that it hears nothing."""
    agents = []

    def hook(there: RemoteSide, name: str) -> None:
        if name == "finish-ram":
            agents.append(cut(there, signal.SIGUSR1))

    with pytest.raises(MoveError, match="nothing was heard of the other side for 10 s") as caught:
        move(traveller, target, hook)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    wait_for_end(agents[0])
    check_there(traveller, target, taken=True)


def cut_over(monkeypatch: pytest.MonkeyPatch, last: str, *, heard: bool) -> list[RemoteSide]:
    """Have the way cut over a request, or a command of QEMU, before it is heard or before its answer."""
    real = RemoteSide.request
    cuts: list[RemoteSide] = []

    async def request(side: RemoteSide, do: str, progress: Any = None, **arguments: Any) -> Any:
        if last in (do, arguments.get("command")) and not cuts:
            cuts.append(side)
            if heard:
                await real(side, do, **arguments)
            os.close(cut(side))
            assert side._process is not None
            await side._process.wait()
        return await real(side, do, progress, **arguments)

    monkeypatch.setattr(RemoteSide, "request", request)
    return cuts


@pytest.mark.long
@pytest.mark.parametrize("heard", [False, True])
def test_cut_over_the_last_command(
    traveller: Traveller, target: Machine, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    """`cont` is not answered, and was carried out or not: the guest is asked for anew, and runs there."""
    cuts = cut_over(monkeypatch, "cont", heard=heard)
    report = move(traveller, target)
    assert len(cuts) == 1
    assert report.warnings == []
    check_at_rest(traveller.here)
    traveller.arrived(target)
    traveller.check_runs()


@pytest.mark.long
@pytest.mark.parametrize("heard", [False, True])
def test_cut_before_the_last_command(
    traveller: Traveller, target: Machine, monkeypatch: pytest.MonkeyPatch, *, heard: bool
) -> None:
    """The agent leaves all as it is, or goes back by itself: nobody knows, so it is told anew to go back."""
    cuts = cut_over(monkeypatch, "ready", heard=heard)
    with pytest.raises(MoveError, match="the connection to the destination is cut") as caught:
        move(traveller, target)
    assert len(cuts) == 1
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    check_there(traveller, target, taken=True)


@pytest.mark.long
@pytest.mark.parametrize("asked", ["settle", "restore"])
def test_cut_on_the_way_back(
    traveller: Traveller, target: Machine, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    """The move fails when the VFs there run already: those stop first, asked by another agent."""
    real = RemoteSide.request
    cuts: list[RemoteSide] = []

    async def request(side: RemoteSide, do: str, progress: Any = None, **arguments: Any) -> Any:
        if do == asked and not cuts:
            cuts.append(side)
            os.close(cut(side))
        return await real(side, do, progress, **arguments)

    monkeypatch.setattr(RemoteSide, "request", request)

    def fail(_there: RemoteSide, name: str) -> None:
        if name == "continue":
            raise RuntimeError("made to fail")

    with pytest.raises(MoveError, match="made to fail") as caught:
        move(traveller, target, fail)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    check_there(traveller, target, taken=True)


@pytest.mark.long
@pytest.mark.parametrize("step", ["copy-ram", "move-contexts", "continue"])
def test_the_source_is_killed(traveller: Traveller, target: Machine, tmp_path: Path, step: str) -> None:
    """The agent puts its side right, and `--recover` has the guest run at the source."""
    words = command(traveller, target, "--to-command", RELAYED, "--ram-address", "127.0.0.1")
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    program = [sys.executable, "-c", KILLED, step, "", *words[3:]]
    done = subprocess.run(program, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL, done.stderr
    recover = [*words[:3], "--recover", "--json", "--from-qmp", str(traveller.guest.qmp_path)]
    done = subprocess.run(recover, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    (found,) = json.loads(done.stdout)
    assert found["runs_at"] == "source"
    traveller.check_runs()
    check_settings(traveller.guest)
    check_there(traveller, target, taken=step != "copy-ram")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize("step", ["copy-ram", "move-contexts"])
def test_the_agent_is_killed(
    traveller: Traveller, target: Machine, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, step: str
) -> None:
    """The guest runs at the source, and `--recover` on the other host puts that right."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def hook(there: RemoteSide, name: str) -> None:
        if name == step:
            os.kill(agent_of(there), signal.SIGKILL)

    with pytest.raises(MoveError, match=r"`vfu-migrate --recover` on that host does") as caught:
        move(traveller, target, hook)
    assert caught.value.source_runs, caught.value
    traveller.check_runs()
    recover = [*AGENT[:-1], "--recover"]
    done = subprocess.run(recover, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "what a move from another host had touched here is as it should be" in done.stderr
    check_there(traveller, target, taken=step in FROM_COPY_RAM)
    assert not list(tmp_path.glob("vfu-migrate-*"))


@pytest.mark.long
def test_memory_over_tls(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """Both QEMUs have credentials of the same id; one without them at the destination takes no memory."""
    (tmp_path / "keys.psk").write_text("qemu:" + "5a" * 32 + "\n")

    def credentials(endpoint: str) -> tuple[str, str]:
        return "-object", f"tls-creds-psk,id=tls,dir={tmp_path},endpoint={endpoint}"

    here, there = (server("--vfs", "1", "--disk", "ram:1M") for _ in range(2))
    guest = machine(devices=[here.qemu_device("vf1")], arguments=credentials("client"))
    traveller = Traveller(guest, guest.start("true"), here, there)
    for endpoint in ("client", "server"):
        target = machine(
            devices=[there.qemu_device("vf1")], arguments=credentials(endpoint), incoming=True, ready=False
        )
        moving = Move(
            traveller.side("source", guest, here),
            remote_side(target, there),
            [MovedVf(Vf(1), Vf(1))],
            ram=TcpChannel("127.0.0.1", tls="tls"),
        )
        if endpoint == "client":
            with pytest.raises(MoveError, match=r"(?i)tls|credentials|endpoint") as caught:
                asyncio.run(moving.run())
            assert caught.value.source_runs, caught.value
        else:
            assert asyncio.run(moving.run()).warnings == []
            assert target.qmp("query-status")["status"] == "running"
            assert target.qmp("query-migrate-parameters").get("tls-creds", "") == ""
        assert guest.qmp("query-migrate-parameters").get("tls-creds", "") == ""


def test_other_machines_are_refused(traveller: Traveller) -> None:
    """Another machine type is found before anything is touched."""
    device = traveller.there.qemu_device("vf1")
    with (
        Machine(devices=[device], incoming=True, arguments=("-machine", "pc-q35-9.0")) as target,
        pytest.raises(MoveError, match=r"the destination a pc-q35-9\.0") as caught,
    ):
        move(traveller, target)
    assert caught.value.state == "Nothing was touched."
    traveller.check_runs()
