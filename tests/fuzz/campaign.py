"""Runs a target against a world for a while: cases by seed, findings made small and kept."""

from __future__ import annotations

import contextlib
import json
import random
import signal
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tests.fuzz.world import Finding, World

FOLDER: Final = Path("build/fuzz")
# Time to make a finding smaller.
SHRINKING: Final = 60.0
# Processor time for one case in this process; the model has no other way to be interrupted.
HANG: Final = 20.0

# An action's name and its arguments, as JSON has them; bytes are hexadecimal.
Step = tuple[str, list[Any]]


class Target(Protocol):
    """What is attacked, and how."""

    def generate(self, source: random.Random) -> list[Step]:
        """The steps of one case. Depends on `source` alone."""
        ...

    def play(self, step: Step) -> None:
        """Do one step. Raises `Finding`, or whatever comes out of the device."""
        ...

    def finish(self) -> None:
        """The case is over: the function must be as good as new. Raises `Finding`."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


MakeTarget = Callable[[World], Target]
MakeWorld = Callable[[], World]


@dataclass
class Report:
    """What a campaign did."""

    name: str
    seed: int
    cases: int = 0
    steps: int = 0
    seconds: float = 0.0
    note: str = ""

    def __str__(self) -> str:
        rate = self.steps / self.seconds if self.seconds else 0.0
        return (
            f"{self.name}: seed {self.seed}, {self.cases} cases, {self.steps} steps, {rate:.0f} steps/s"
            + (f", {self.note}" if self.note else "")
        )


def run(name: str, target: MakeTarget, world: MakeWorld, seconds: float, seed: int) -> Report:
    """Attack for `seconds`. Raises `Finding` that says how to repeat it, after saving a reproducer."""
    report = Report(name, seed)
    begin = time.monotonic()
    device = world()
    try:
        attack = target(device)
        while time.monotonic() - begin < seconds:
            steps = attack.generate(random.Random(f"{seed}:{report.cases}"))
            try:
                _case(attack, device, steps)
            except Exception as error:
                raise _found(report, target, world, steps, error) from error
            report.cases += 1
            report.steps += len(steps)
        report.seconds = time.monotonic() - begin
        attack.close()
    finally:
        device.close()
    idle, most = getattr(device, "idle", 0), getattr(device, "most", 0)
    if most:
        slowest = getattr(device, "slowest", 0.0)
        report.note = f"{(most - idle) >> 20} MiB above idle, neighbour's slowest answer {slowest:.3f} s"
    return report


def _hangs(*_: object) -> None:
    raise Finding(f"a case took more than {HANG} s of processor time")


def _case(attack: Target, device: World, steps: list[Step]) -> None:
    before = signal.signal(signal.SIGVTALRM, _hangs)
    signal.setitimer(signal.ITIMER_VIRTUAL, HANG)
    try:
        for step in steps:
            attack.play(step)
        attack.finish()
        device.check()
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def replay(target: MakeTarget, world: MakeWorld, steps: list[Step]) -> Exception | None:
    """Play one case on a fresh device; what it found."""
    device = world()
    try:
        attack = target(device)
        _case(attack, device, steps)
        attack.close()
    except Exception as error:  # noqa: BLE001 - that is what is looked for
        return error
    finally:
        with contextlib.suppress(Finding):
            device.close()
    return None


def _found(
    report: Report, target: MakeTarget, world: MakeWorld, steps: list[Step], error: Exception
) -> Finding:
    """Make a finding small, save it, and tell how to repeat it."""
    kind = type(error)
    alone = type(replay(target, world, steps)) is kind
    if alone:
        steps = _smaller(steps, lambda fewer: type(replay(target, world, fewer)) is kind)
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{report.name}-{report.seed}-{report.cases}.json"
    trace = "".join(traceback.format_exception(error))
    path.write_text(json.dumps({"target": report.name, "steps": steps, "error": trace}, indent=1))
    how = f"--replay {path}" if alone else f"--seed {report.seed} (case {report.cases}, not on its own)"
    return Finding(f"{report.name}, seed {report.seed}, case {report.cases}: {error!r}; repeat with {how}")


def _smaller(steps: list[Step], fails: Callable[[list[Step]], bool]) -> list[Step]:
    """Leave out steps, halves first, as long as it still fails."""
    deadline = time.monotonic() + SHRINKING
    size = len(steps) // 2
    while size and time.monotonic() < deadline:
        at = 0
        while at < len(steps) and time.monotonic() < deadline:
            fewer = steps[:at] + steps[at + size :]
            if fails(fewer):
                steps = fewer
            else:
                at += size
        size //= 2
    return steps
