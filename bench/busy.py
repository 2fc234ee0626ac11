"""Many VFs that are busy at once: what they do together, and how long an admin command takes beside them."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from bench.load import DISK_MIB, Kind, Load, Report
from bench.measure import Benchmark, Progress, Result, alternate
from bench.processes import cpu_seconds, scratch, server
from vfu_client.owner.owner import OwnerDriver

COUNTS = (8, 32)

ROUNDS = 7
SECONDS = 0.4

COMMANDS = 40
PACE_SECONDS = 0.005
"""From one command to the next: one after the other, most would come when the server happens to be free."""

GOAL_MS = 0.3
"""The most that a command may take beside busy VFs."""

ONE = 1
"""The VF that is busy alone, and that is asked about."""

_TOGETHER = (
    "the interpreter's lock, as far as requests need the interpreter, and on few processors the load itself, "
    "which takes what the note says"
)


@dataclass(frozen=True)
class Together:
    """So many VFs with requests of one kind, in all, against one of them."""

    benchmark: Benchmark
    vfs: int
    kind: Kind


@dataclass(frozen=True)
class Command:
    """MODE_GET of a VF beside so many busy ones: of the first of those, or of one that nobody drives."""

    benchmark: Benchmark
    vfs: int
    member: int


def _together(vfs: int, kind: Kind) -> Together:
    benchmark = Benchmark(
        f"blk-vfs-{vfs}-{kind}",
        reference="one of the same VFs, busy alone",
        unit="1/s",
        better="higher",
        goal=1.7 if vfs == min(COUNTS) else None,
        limit=_TOGETHER,
    )
    return Together(benchmark, vfs, kind)


def _commands(vfs: int) -> tuple[Command, Command]:
    benchmark = Benchmark(
        f"admin-busy-{vfs}",
        reference="the same command while no VF has requests",
        unit="ms",
        better="lower",
    )
    of_idle = replace(benchmark, name=f"{benchmark.name}-of-idle")
    return Command(benchmark, vfs, ONE), Command(of_idle, vfs, vfs + 1)


CASES: dict[int, tuple[Together | Command, ...]] = {
    vfs: (_together(vfs, "read"), _together(vfs, "write"), *_commands(vfs)) for vfs in COUNTS
}


@dataclass(frozen=True)
class Busy:
    """The group of busy VFs: a server for each number of them, with one more that stays idle."""

    benchmarks: Sequence[Benchmark] = tuple(case.benchmark for cases in CASES.values() for case in cases)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Set each server's VFs up once, then take its cases in turn."""
        for vfs, cases in CASES.items():
            wanted = [case for case in cases if case.benchmark.name in names]
            if not wanted:
                continue
            progress.step(wanted[0].benchmark.name, "filling the disks")
            with contextlib.ExitStack() as stack:
                folder = stack.enter_context(scratch()) / "ours"
                options = ("--vfs", str(vfs + 1), "--disk", f"ram:{DISK_MIB}M")
                process = stack.enter_context(server(folder, *options))
                load = Load(stack, folder, vfs)
                owner = stack.enter_context(OwnerDriver.open(folder / "pf.sock", posted_writes=True))
                for case in wanted:
                    if isinstance(case, Together):
                        yield _requests(case, load, process, progress)
                    else:
                        yield _mode_gets(case, load, owner, progress)


def _requests(case: Together, load: Load, process: subprocess.Popen[bytes], progress: Progress) -> Result:
    def run(vfs: int) -> tuple[Report, float]:
        begun = cpu_seconds(process)
        report = load.run(case.kind, vfs, SECONDS)
        return report, (cpu_seconds(process) - begun) / report.requests * 1e6

    all_runs, one_runs = alternate(
        ROUNDS, partial(run, case.vfs), partial(run, ONE), progress=progress, name=case.benchmark.name
    )
    extra = {**_costs("ours", all_runs), **_costs("theirs", one_runs)}
    extra["slowest"] = round(statistics.median(report.slowest for report, _ in all_runs), 3)
    note = (
        "a request takes {ours_server_us:.2f} us of a processor in the server and {ours_load_us:.2f} in the "
        "load, {ours_per_kick:.0f} come with a kick; of one VF {theirs_server_us:.2f}, {theirs_load_us:.2f} "
        "and {theirs_per_kick:.0f}; the slowest VF did {slowest:.2f} of the average"
    )
    return Result(
        case.benchmark,
        [report.per_second for report, _ in all_runs],
        [report.per_second for report, _ in one_runs],
        extra,
        [note.format(**extra)],
    )


def _costs(side: str, runs: Sequence[tuple[Report, float]]) -> dict[str, float]:
    """Medians of one side: what a request took of both programs, and how many came at a time."""
    return {
        f"{side}_server_us": round(statistics.median(server_us for _, server_us in runs), 3),
        f"{side}_load_us": round(statistics.median(report.load_us for report, _ in runs), 3),
        f"{side}_per_kick": round(statistics.median(report.per_kick for report, _ in runs), 1),
    }


def _mode_gets(case: Command, load: Load, owner: OwnerDriver, progress: Progress) -> Result:
    def busy() -> tuple[float, float]:
        with load.busy("read", case.vfs):
            return _mode_get_ms(owner, case.member)

    _mode_get_ms(owner, case.member)
    ours, theirs = alternate(
        ROUNDS,
        busy,
        lambda: _mode_get_ms(owner, case.member),
        progress=progress,
        name=case.benchmark.name,
    )
    taken, waited = (statistics.median(figures) for figures in zip(*ours, strict=True))
    missed = ", missed" if taken > GOAL_MS else ""
    note = (
        f"{taken:.3f} ms (goal: at most {GOAL_MS:g}{missed}), in {waited:.3f} of which the client itself is"
        " ready to run and others have the processors"
    )
    extra = {"ours_goal_ms": GOAL_MS, "ours_client_waits_ms": round(waited, 3)}
    return Result(case.benchmark, [ms for ms, _ in ours], [ms for ms, _ in theirs], extra, [note])


def _mode_get_ms(owner: OwnerDriver, vf: int) -> tuple[float, float]:
    """Medians of some MODE_GETs, at a pace: how long one takes, and how much of it this thread had no
    processor.
    """
    taken, waited = [], []
    for _ in range(COMMANDS):
        time.sleep(PACE_SECONDS)
        waits = _waits_ns()
        begun = time.perf_counter_ns()
        owner.mode_get(vf)
        taken.append(time.perf_counter_ns() - begun)
        waited.append(_waits_ns() - waits)
    return statistics.median(taken) / 1e6, statistics.median(waited) / 1e6


def _waits_ns() -> int:
    """How long this thread was ready to run and had no processor, ever (/proc/PID/schedstat)."""
    return int(Path("/proc/thread-self/schedstat").read_text().split()[1])
