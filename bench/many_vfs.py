"""1024 VFs: what an admin command costs beside as many, how long they take to start, and what they take."""

from __future__ import annotations

import contextlib
import os
import re
import resource
import statistics
import subprocess
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import Benchmark, NotPossibleError, Progress, Result, alternate
from bench.processes import on_processor, scratch, server
from vfu_client.owner.owner import OwnerDriver
from vfu_server import budget

VFS = 1024
DISK = "ram:1M"
VECTORS = 3
"""Of a PF with one request queue: that, the admin queue, configuration changes."""

STARTS = 5
PAIRS = 41
COMMANDS = 200
WARM_UP = 500
IDLE_SECONDS = 1.0
PATIENCE = 60.0

START_GOAL_S = 3.0
KIB_GOAL = 150

MANY = Benchmark(
    f"vfs-{VFS}",
    reference="MODE_GET at a server of one VF",
    unit="us",
    better="lower",
    goal=1.2,
    limit="what is kept of so many VFs does not fit into the processor's nearest caches",
)


@dataclass(frozen=True)
class ManyVfs:
    """The group of what depends on the number of VFs."""

    benchmarks: Sequence[Benchmark] = (MANY,)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Start and stop a server of many VFs and one of one VF in turn, then let both answer in turn."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        try:
            budget.check(VFS + 1, VECTORS, hard)
        except budget.TooFewError as error:
            raise NotPossibleError(str(error)) from None
        with scratch() as folder:
            many, one = alternate(
                STARTS,
                lambda: _life(folder / "many", VFS),
                lambda: _life(folder / "one", 1),
                progress=progress,
                name=MANY.name,
            )
            ours, theirs = _commands(folder, progress)
        kib = statistics.median(
            (left.kib - right.kib) / (VFS - 1) for left, right in zip(many, one, strict=True)
        )
        start_s = statistics.median(life.start_s for life in many)
        stop_s = statistics.median(life.stop_s for life in many)
        idle_ms = statistics.median(life.idle_ms for life in many)
        extra = {
            "start_s": round(start_s, 3),
            "start_goal_s": START_GOAL_S,
            "stop_s": round(stop_s, 3),
            "kib_per_vf": round(kib, 1),
            "kib_per_vf_goal": KIB_GOAL,
            "idle_cpu_ms_per_s": round(idle_ms, 3),
        }
        late = ", missed" if start_s > START_GOAL_S else ""
        large = ", missed" if kib > KIB_GOAL else ""
        notes = [
            f"{VFS} VFs start in {start_s:.2f} s (goal: at most {START_GOAL_S:g}{late}), end in {stop_s:.2f}",
            f"{kib:.0f} KiB a VF (goal: at most {KIB_GOAL}{large}), {idle_ms:.1f} ms of CPU in an idle s",
        ]
        yield Result(MANY, ours, theirs, extra, notes)


@dataclass(frozen=True)
class _Life:
    """A server from its start to its end, and what it took while nobody came."""

    start_s: float
    stop_s: float
    kib: int
    idle_ms: float


def _life(folder: Path, vfs: int) -> _Life:
    with contextlib.ExitStack() as stack:
        begun = time.monotonic()
        process = stack.enter_context(server(folder, "--vfs", str(vfs), "--disk", DISK))
        start_s = time.monotonic() - begun
        kib = _resident_kib(process)
        before = _cpu_ms(process)
        time.sleep(IDLE_SECONDS)
        idle_ms = (_cpu_ms(process) - before) / IDLE_SECONDS
        ended = time.monotonic()
        stack.close()
        return _Life(start_s, time.monotonic() - ended, kib, idle_ms)


def _resident_kib(process: subprocess.Popen[bytes]) -> int:
    found = re.search(r"VmRSS:\s+(\d+) kB", Path(f"/proc/{process.pid}/status").read_text())
    assert found is not None, "a process that runs has memory"
    return int(found[1])


def _cpu_ms(process: subprocess.Popen[bytes]) -> float:
    """What the process has computed so far: user and system time are the 14th and 15th field of proc(5)."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * 1000 / os.sysconf("SC_CLK_TCK")


def _commands(folder: Path, progress: Progress) -> tuple[list[float], list[float]]:
    """Microseconds of MODE_GET at a server of many VFs and at one of one VF: each run is a median."""
    with contextlib.ExitStack() as stack:
        with on_processor(1):
            stack.enter_context(server(folder / "many", "--vfs", str(VFS), "--disk", DISK))
            stack.enter_context(server(folder / "one", "--vfs", "1", "--disk", DISK))
        stack.enter_context(on_processor(0))
        many, one = (
            stack.enter_context(OwnerDriver.open(folder / name / "pf.sock", timeout=PATIENCE))
            for name in ("many", "one")
        )
        _mode_get_us(many, VFS, WARM_UP)
        _mode_get_us(one, 1, WARM_UP)
        return alternate(
            PAIRS,
            lambda: _mode_get_us(many, VFS, COMMANDS),
            lambda: _mode_get_us(one, 1, COMMANDS),
            progress=progress,
            name=MANY.name,
        )


def _mode_get_us(owner: OwnerDriver, vfs: int, commands: int) -> float:
    """The median of MODE_GET of VFs all over the device."""
    taken = []
    for number in range(commands):
        vf = number * 101 % vfs + 1
        begun = time.perf_counter_ns()
        owner.mode_get(vf)
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1e3
