"""What it costs a function that somebody watches: the rules for drivers, a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from bench.load import DISK_MIB, Load
from bench.measure import Benchmark, Progress, Result, alternate
from bench.processes import scratch, server

ROUNDS = 7
SECONDS = 0.4

_THROUGH = (
    "requests of a function that is watched go through the interpreter one by one, and each is looked at; "
    "other functions do not notice"
)


def _benchmark(name: str) -> Benchmark:
    reference = "the same 4-KiB reads at depth 32 while nobody watches"
    return Benchmark(name, reference=reference, unit="1/s", better="higher", limit=_THROUGH)


CHECK = _benchmark("watch-check-driver")
TRACE = _benchmark("watch-trace")


@dataclass(frozen=True)
class Watching:
    """The group of what is watched: a server with the option, and one without."""

    benchmarks: Sequence[Benchmark] = (CHECK, TRACE)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Each against the same server without."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch())
            options = {CHECK: ("--check-driver",), TRACE: ("--trace", str(folder / "trace"))}
            wanted = {benchmark: more for benchmark, more in options.items() if benchmark.name in names}
            if not wanted:
                return
            progress.step(next(iter(wanted)).name, "filling the disks")
            plain = self._load(stack, "plain", ())
            for benchmark, more in wanted.items():
                watched = self._load(stack, benchmark.name, more)
                ours, theirs = alternate(ROUNDS, watched, plain, progress=progress, name=benchmark.name)
                yield Result(benchmark, ours, theirs)

    @staticmethod
    def _load(stack: contextlib.ExitStack, name: str, more: Sequence[str]) -> partial[float]:
        """One run of a VF of a server with these options: its requests in a second."""
        folder = stack.enter_context(scratch()) / name
        stack.enter_context(server(folder, "--vfs", "1", "--disk", f"ram:{DISK_MIB}M", *more))
        load = Load(stack, folder, 1)
        return partial(_per_second, load)


def _per_second(load: Load) -> float:
    return load.run("read", 1, SECONDS).per_second
