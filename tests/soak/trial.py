"""One thing that happens: a move with somebody killed at some time of it, or a kill without a move."""

from __future__ import annotations

import contextlib
import json
import os
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from tests.guest.moves import relay
from tests.soak import client
from tests.soak.hosts import FILE_VF, SERVERS, World, runs
from tests.soak.kinds import LOST, MOVED, STAYED, BrokenError, Found, Kind, Victim, verdict
from vfu_images.machine import Machine
from vfu_images.program import DIE_WITH_PARENT, kill

MIGRATE: Final = (sys.executable, "-m", "vfu_client.move.cli")
MOVE_SECONDS: Final = 150.0
STANDSTILL_SECONDS: Final = 0.15
"""As long as a guest stands still at most, about: half of all kills fall into this."""
CLIENT_SECONDS: Final = 3.0


@dataclass
class Outcome:
    """Where the guest is now, and what is worth telling."""

    where: str
    about: str = ""
    downtime_ms: float | None = None
    move_seconds: float = 0.0
    """How long vfu-migrate ran."""
    too_late: bool = False
    """Whether somebody was to be killed, and the move was over before."""


class Trial:
    """`seconds` is how long a move takes, as far as is known."""

    def __init__(self, world: World, kind: Kind, chance: random.Random, seconds: float) -> None:
        self._world = world
        self._kind = kind
        self._chance = chance
        self._seconds = seconds
        self._struck = False
        self._killed_server = ""
        self._homes = {"source": world.folder / "tmp-source", "destination": world.folder / "tmp-destination"}
        for home in self._homes.values():
            home.mkdir(exist_ok=True)

    def run(self) -> Outcome:
        """Do it. The world may lack servers or the guest then. Raises BrokenError, and what its parts do."""
        if self._kind.moves:
            return self._move()
        if self._kind.victim is Victim.CLIENT:
            return self._client()
        number = self._victim()
        assert number is not None
        os.kill(number, signal.SIGKILL)
        time.sleep(self._chance.uniform(0, 1))
        return Outcome(LOST, self._killed_server)

    # -- without a move

    def _client(self) -> Outcome:
        """Kill one, and see that the next one is served as if there had been none."""
        host = self._chance.choice((self._world.here, self._world.there))
        command = [sys.executable, "-m", client.__name__, str(host.servers["disk"].folder)]
        with _started(command, self._world.folder / "client.log") as process:
            delay = self._chance.uniform(0.2, CLIENT_SECONDS)
            with contextlib.suppress(subprocess.TimeoutExpired):
                raise BrokenError(f"a client ended with {process.wait(delay)}: {self._said('client.log')}")
        done = subprocess.run([*command, "--once"], capture_output=True, text=True, timeout=60, check=False)
        if done.returncode:
            raise BrokenError(f"the client after one that was killed: {done.stderr}")
        return Outcome(STAYED, f"after {delay:.1f} s")

    # -- with one

    def _move(self) -> Outcome:
        world = self._world
        remote = self._kind.victim in {Victim.AGENT, Victim.WAY} or self._chance.random() < 0.4
        dialect = self._chance.choice(("context", "parts")) if world.disk_vf == FILE_VF else "context"
        with world.incoming() as target:
            command = self._command(target, remote=remote, dialect=dialect)
            with (
                (world.folder / "move.json").open("wb") as result,
                _started(command, world.folder / "move.log", result, self._homes["source"]) as process,
            ):
                began = time.monotonic()
                when = self._strike(process)
                status = process.wait(MOVE_SECONDS)
                seconds = time.monotonic() - began
            self._await_agents()
            said = self._recover(status)
            where = self._look(target, said)
            if where == MOVED:
                world.arrived(target)
            about = ", ".join(filter(None, (dialect, "to another host" if remote else "", when)))
        if where != LOST:
            assert world.traffic is not None
            world.traffic.await_more()
        return Outcome(
            where,
            about,
            said.get("downtime_ms") if where == MOVED else None,
            seconds,
            not self._struck and self._kind.victim is not Victim.NOBODY,
        )

    def _command(self, target: Machine, *, remote: bool, dialect: str) -> list[str]:
        world = self._world
        assert world.guest is not None
        words = [
            *MIGRATE,
            "--json",
            "--dialect",
            dialect,
            "--vf",
            f"disk/vf{world.disk_vf}",
            "--vf",
            "net/vf1",
        ]
        for end, machine, host in (("from", world.guest, world.here), ("to", target, world.there)):
            words += [f"--{end}-qmp", str(machine.qmp_path), f"--{end}-qtest", str(machine.qtest_path)]
            for name in SERVERS:
                words += [f"--{end}-server", f"{name}={host.servers[name].folder}"]
        if remote:
            way = ["env", f"TMPDIR={self._homes['destination']}", sys.executable, relay.__file__]
            words += ["--to-command", shlex.join([*way, *MIGRATE, "--agent"]), "--ram-address", "127.0.0.1"]
        return words

    def _strike(self, process: subprocess.Popen[bytes]) -> str:
        """Wait for some moment of the move, and kill; when that was."""
        if self._kind.victim is Victim.NOBODY:
            return ""
        if self._chance.random() < 0.5:
            when = self._await_standstill(process)
        else:
            delay = self._chance.uniform(0.2, 1.1 * self._seconds)
            _wait(process, delay)
            when = f"after {delay:.2f} s"
        number = self._victim(process)
        if process.poll() is not None or number is None:
            return f"too late, {when}"
        self._struck = True
        with contextlib.suppress(ProcessLookupError):
            os.kill(number, signal.SIGTERM if self._kind.gentle else signal.SIGKILL)
        return f"{self._killed_server} {when}".strip()

    def _await_standstill(self, process: subprocess.Popen[bytes]) -> str:
        """Until some moment after the guest stopped, or the move ended without."""
        guest = self._world.guest
        assert guest is not None
        since = time.time()
        while process.poll() is None:
            with contextlib.suppress(TimeoutError):
                stop = guest.wait_event("STOP", timeout=0.2)["timestamp"]
                if stop["seconds"] + stop["microseconds"] / 1e6 < since:
                    continue  # of a move before this one
                delay = self._chance.uniform(0, STANDSTILL_SECONDS)
                _wait(process, delay)
                return f"{delay * 1e3:.0f} ms after the stop"
        return "for the stop"

    def _victim(self, process: subprocess.Popen[bytes] | None = None) -> int | None:
        """Its process id, if it lives."""
        world = self._world
        match self._kind.victim:
            case Victim.SOURCE_SERVER | Victim.DESTINATION_SERVER:
                host = world.here if self._kind.victim is Victim.SOURCE_SERVER else world.there
                self._killed_server = self._chance.choice(SERVERS)
                return host.servers[self._killed_server].pid
            case Victim.SOURCE_QEMU:
                return world.guest.pid if world.guest is not None else None
            case Victim.DESTINATION_QEMU:
                return world.target.pid if world.target is not None else None
            case Victim.MIGRATE:
                return process.pid if process is not None else None
            case Victim.AGENT:
                return next(iter(self._agents(lambda words: "relay.py" not in words)), None)
            case Victim.WAY:
                return next(iter(self._agents(lambda words: "relay.py" in words)), None)
            case _:
                return None

    def _agents(self, which: Callable[[str], bool] = lambda _: True) -> list[int]:
        """The processes of the other host's side, by what is in their command lines."""
        mark = f"TMPDIR={self._homes['destination']}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                words = (folder / "cmdline").read_bytes().decode(errors="replace")
                if "--agent" in words and mark in (folder / "environ").read_bytes() and which(words):
                    found.append(int(folder.name))
        return found

    def _await_agents(self) -> None:
        deadline = time.monotonic() + 60
        while self._agents():
            if time.monotonic() > deadline:
                raise BrokenError("an agent does not end")
            time.sleep(0.1)

    def _recover(self, status: int) -> dict[str, Any]:
        """What vfu-migrate said; where it or an agent was killed, `--recover` puts right what is left."""
        said: dict[str, Any] = {}
        if status >= 0:
            said = json.loads(self._said("move.json") or "{}")
        for end in ("source", "destination"):
            home = self._homes[end]
            if any(home.iterdir()):
                done = subprocess.run(
                    [*MIGRATE, "--recover", "--json"],
                    env={**os.environ, "TMPDIR": str(home)},
                    capture_output=True,
                    text=True,
                    timeout=MOVE_SECONDS,
                    check=False,
                )
                if done.returncode and not self._struck:
                    raise BrokenError(f"--recover at the {end}: {done.stderr}")
                self._recovered(end, done)
        return said

    def _recovered(self, end: str, done: subprocess.CompletedProcess[str]) -> None:
        """Raise BrokenError where something is left that nobody but the victim is to blame for."""
        victim = self._kind.victim
        if done.returncode and not (self._kind.takes_guest or self._kind.takes_destination):
            raise BrokenError(f"--recover at the {end}, after {victim.value} was killed: {done.stderr}")
        if done.returncode:
            # A journal whose QEMU or server is gone is kept: a person decides.
            for folder in self._homes[end].iterdir():
                shutil.rmtree(folder)
        elif left := list(self._homes[end].iterdir()):
            raise BrokenError(f"--recover left {left}")

    def _look(self, target: Machine, said: dict[str, Any]) -> str:
        """Where the guest is."""
        world = self._world
        assert world.guest is not None
        running = runs(world.guest), runs(target)
        whole = [
            run and all(server.alive for server in host.servers.values())
            for run, host in zip(running, (world.here, world.there), strict=True)
        ]
        found = Found(
            self._struck,
            source=whole[0],
            destination=whole[1],
            both_run=all(running),
            moved=said.get("moved"),
            state=str(said.get("state", "")),
        )
        try:
            return verdict(self._kind, found)
        except BrokenError as error:
            raise BrokenError(
                f"{error}\nrunning: {running}\nvfu-migrate: {said}\n{self._said('move.log')}"
            ) from None

    def _said(self, name: str) -> str:
        return (self._world.folder / name).read_text(errors="replace")


@contextlib.contextmanager
def _started(
    command: list[str], log: Path, output: int | IO[bytes] = subprocess.DEVNULL, home: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that ends with the context; `home` is where it has what is temporary."""
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            env=os.environ | ({"TMPDIR": str(home)} if home is not None else {}),
        )
    try:
        yield process
    finally:
        kill(process)


def _wait(process: subprocess.Popen[bytes], seconds: float) -> None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
