"""`python -m tests.soak --minutes N [--seed S] [--kind NAME]`: moves of a guest, and kills at random.

Leaves build/soak.json and build/soak.svg, and logs of what failed in build/soak. A run with the same seed
makes the same choices, of what happens and when; what comes of them is a matter of time.

Exit status: 0 all that must hold held, 1 not, 2 wrong options, 130 it was interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.soak.hosts import World
from tests.soak.kinds import KINDS, LOST, MOVED, STAYED, BrokenError
from tests.soak.samples import QUANTITIES, Sampler, svg
from tests.soak.trial import Outcome, Trial
from vfu_demo.network import NetworkError, open_network
from vfu_demo.show import LostError
from vfu_demo.stage import StageError
from vfu_images.machine import MachineError
from vfu_images.program import die_with_parent
from vfu_images.qmp import QMPError
from vfu_images.workspace import BUILD, SetupError, shown

FAILED = "FAILED"
KEPT = BUILD / "soak"
"""Where logs of what failed are, of the last run."""

OUTCOMES = (MOVED, STAYED, LOST, FAILED)
TOO_LATE = "too late"
"""Beside an outcome: the move was over before the signal."""

VERIFY_EVERY = 6
"""After so many trials that a guest lived through it reads back all that it wrote."""
FAILURES = (
    BrokenError, LostError, MachineError, NetworkError, QMPError, StageError, TimeoutError, OSError,
    subprocess.SubprocessError, ValueError,
)  # fmt: skip
"""What a trial may fail with; what is printed in part is a ValueError."""


class Soak:
    """Trial after trial, and what became of them."""

    def __init__(self, seed: int, names: Sequence[str]) -> None:
        self.seed = seed
        self.names = list(names)
        self.counts: dict[str, Counter[str]] = {name: Counter() for name in names}
        self.failures: list[dict[str, Any]] = []
        self.downtimes: list[float] = []
        self.verified = 0
        self.guests = 0
        self.trials = 0
        self.began = time.monotonic()
        self._seconds = 3.0
        self._world: World | None = None
        self._sampler = Sampler(self._processes)

    def run(self, seconds: float) -> None:
        """Go on until then; after a failure in a new world. Raises as `open_network` does."""
        with self._sampler:
            while self._left(seconds) > 0:
                with contextlib.ExitStack() as until:
                    folder = Path(until.enter_context(tempfile.TemporaryDirectory(prefix="vfu-soak-")))
                    lan = until.enter_context(open_network(folder, ("a", "b")))
                    world = self._world = World(folder, lan, lambda: self._chance("guest", self.guests))
                    until.callback(world.close)
                    self._live(world, seconds)

    def _chance(self, what: str, number: int) -> random.Random:
        """That of one trial or guest: however the others went, its choices are those of the seed."""
        return random.Random(f"{self.seed} {what} {number}")

    def _processes(self) -> dict[str, int]:
        return self._world.processes() if self._world is not None else {}

    def _left(self, seconds: float) -> float:
        return seconds - (time.monotonic() - self.began)

    def _live(self, world: World, seconds: float) -> None:
        """Until the time is over, or something fails."""
        lived = 0
        name = "start"
        try:
            while self._left(seconds) > 0:
                name = "start"
                self.guests += world.guest is None
                world.restore()
                self.trials += 1
                chance = self._chance("trial", self.trials)
                name = chance.choices(self.names, [KINDS[name].weight for name in self.names])[0]
                outcome = self._try(world, name, chance)
                lived = 0 if outcome.where == LOST else lived + 1
                if lived >= VERIFY_EVERY:
                    lived = 0
                    name = "read back"
                    world.verify()
                    self.verified += 1
            if world.guest is not None:
                name = "read back"
                world.verify()
                self.verified += 1
        except FAILURES as error:
            self._failed(world, name, error)

    def _try(self, world: World, name: str, chance: random.Random) -> Outcome:
        began = time.monotonic()
        outcome = Trial(world, KINDS[name], chance, self._seconds).run()
        for host in (world.here, world.there):
            host.check_logs()
        took = time.monotonic() - began
        if outcome.where == LOST:
            world.lose_guest()
        if outcome.downtime_ms is not None:
            self.downtimes.append(outcome.downtime_ms)
        self.counts[name][outcome.where] += 1
        self.counts[name][TOO_LATE] += outcome.too_late
        if name == "move" and outcome.move_seconds:
            self._seconds = outcome.move_seconds
        self._tell(f"{name}: {outcome.where} [{took:.1f} s] {outcome.about}")
        return outcome

    def _failed(self, world: World, name: str, error: Exception) -> None:
        """Keep what there is to look at."""
        kept = KEPT / f"failure-{len(self.failures)}"
        kept.mkdir(parents=True)
        for file in (*world.folder.rglob("*.log"), *world.folder.glob("*.json")):
            shutil.copy(file, kept / "-".join(file.relative_to(world.folder).parts))
        what = f"{type(error).__name__}: {error}"
        (kept / "error.txt").write_text(f"{name}\n{what}\n")
        self.failures.append({"kind": name, "what": what})
        self.counts.setdefault(name, Counter())[FAILED] += 1
        self._tell(f"{name}: FAILED, see {shown(kept)}: {what}")

    def _tell(self, line: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - self.began), 60)
        count = sum(map(tried, self.counts.values()))
        print(f"{minutes:3}:{seconds:02} #{count} {line}", flush=True)

    # -- the end

    def table(self) -> str:
        """A row for each kind."""
        lines = [f"  {'':28}{'count':>7}" + "".join(f"{name:>9}" for name in (*OUTCOMES, TOO_LATE))]
        for name, counts in self.counts.items():
            row = "".join(f"{counts[outcome] or '-':>9}" for outcome in (*OUTCOMES, TOO_LATE))
            lines.append(f"  {name:28}{tried(counts):7}{row}")
        return "\n".join(lines)

    def picture(self) -> str:
        """What the processes had."""
        minutes = (time.monotonic() - self.began) / 60
        return svg(self._sampler.found, f"{minutes:.0f} minutes of moves and kills")

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "minutes": round((time.monotonic() - self.began) / 60, 1),
            "kinds": {name: dict(counts) for name, counts in self.counts.items()},
            "guests": self.guests,
            "verified": self.verified,
            "downtime_ms": {
                "median": round(statistics.median(self.downtimes), 1),
                "most": max(self.downtimes),
            }
            if self.downtimes
            else None,
            "longest_lives": self._sampler.longest_lives(),
            "failures": self.failures,
        }


def tried(counts: Counter[str]) -> int:
    """How many there were, whatever became of them."""
    return sum(counts[outcome] for outcome in OUTCOMES)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10, help="how long (default: 10)")
    parser.add_argument("--seed", type=int, help="make the choices of another run")
    parser.add_argument("--kind", action="append", choices=KINDS, help="this kind alone; repeats")
    options = parser.parse_args(arguments)
    if "MAKELEVEL" in os.environ:
        die_with_parent()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    seed = random.randrange(1 << 32) if options.seed is None else options.seed
    print(f"soak: {options.minutes:g} minutes, seed {seed}", flush=True)
    shutil.rmtree(KEPT, ignore_errors=True)
    soak = Soak(seed, options.kind or list(KINDS))
    status = 0
    try:
        soak.run(options.minutes * 60)
    except KeyboardInterrupt:
        status = 130
    except (SetupError, *FAILURES) as error:
        print(f"soak: no hosts to begin with: {error}", file=sys.stderr)
        status = 1
    print(f"\n{soak.table()}")
    _leave(soak)
    return 1 if soak.failures else status


def _leave(soak: Soak) -> None:
    found = soak.plain()
    BUILD.mkdir(exist_ok=True)
    (BUILD / "soak.json").write_text(json.dumps(found, indent=2) + "\n")
    (BUILD / "soak.svg").write_text(soak.picture())
    print(f"\n  {found['guests']} guests; all that they wrote was read back {found['verified']} times")
    if found["downtime_ms"]:
        print(
            "  a guest that moved stood still for {median} ms (median), {most} ms at most".format(
                **found["downtime_ms"]
            )
        )
    print("  of those that lived longest, early and late in their lives:")
    for name, life in found["longest_lives"].items():
        pairs = "; ".join(
            f"{quantity} {life[f'{quantity}_early']:g} → {life[f'{quantity}_late']:g}"
            for quantity in QUANTITIES
        )
        print(f"    {name:10} {life['seconds']:5} s: {pairs}")
    print(f"{shown(BUILD / 'soak.json')} has the figures, {shown(BUILD / 'soak.svg')} the picture")


if __name__ == "__main__":
    sys.exit(main())
