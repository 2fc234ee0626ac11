"""What a benchmark is, how two sides are measured in turn, and what the figures become."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeVar

Better = Literal["higher", "lower"]
T = TypeVar("T")

SPREAD_BOUND = 0.2
"""Of the middle half of the pairs, as a part of their median: beyond it a figure says little."""

DOUBT = "not to be believed, half of the pairs lie too far apart (spread): take it again on a quiet machine"


class BenchError(Exception):
    """A benchmark could not be taken; the message says why."""


class NotPossibleError(BenchError):
    """The machine lacks what the benchmark needs, or does not permit it: no fault of what is measured."""


@dataclass(frozen=True)
class Benchmark:
    """One figure: `ratio` of ours to the reference's.

    `limit` says in words what holds the figure back, for when it misses its goal.
    """

    name: str
    reference: str
    unit: str
    better: Better
    goal: float | None = None
    limit: str = ""


@dataclass(frozen=True)
class Result:
    """What one benchmark gave. `ours` and `theirs` are the runs in the order in which they were taken.

    `notes` are further lines for people, `extra` further entries for programs.
    """

    benchmark: Benchmark
    ours: Sequence[float]
    theirs: Sequence[float]
    extra: dict[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()

    @property
    def ratios(self) -> list[float]:
        """One for each pair of neighbouring runs."""
        return [ours / theirs for ours, theirs in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median over the pairs."""
        return statistics.median(self.ratios)

    @property
    def spread(self) -> float:
        """How wide the middle half of the pairs is, as a part of the ratio; 0 of one pair.

        The smallest and the largest do not count: where there are many pairs, one has always met something.
        """
        if len(self.ratios) == 1:
            return 0.0
        first, _, third = statistics.quantiles(self.ratios, n=4, method="inclusive")
        return (third - first) / abs(self.ratio)

    @property
    def doubt(self) -> str:
        """Why the figure is not to be believed, where it is not."""
        return DOUBT if self.spread > SPREAD_BOUND else ""

    @property
    def missed(self) -> bool:
        """Whether there is a goal and it is not reached."""
        goal = self.benchmark.goal
        if goal is None:
            return False
        return self.ratio < goal if self.benchmark.better == "higher" else self.ratio > goal

    @property
    def limit(self) -> str:
        """What holds the figure back, where it misses its goal."""
        return self.benchmark.limit if self.missed else ""

    def as_json(self) -> dict[str, Any]:
        """The entry in bench.json."""
        benchmark = self.benchmark
        return {
            "name": benchmark.name,
            "ratio": round(self.ratio, 4),
            "reference": benchmark.reference,
            "better": benchmark.better,
            "goal": benchmark.goal,
            "runs": len(self.ratios),
            "min": round(min(self.ratios), 4),
            "max": round(max(self.ratios), 4),
            "spread": round(self.spread, 4),
            "doubt": self.doubt,
            "limit": self.limit,
            "unit": benchmark.unit,
            "ours": round(statistics.median(self.ours), 4),
            "theirs": round(statistics.median(self.theirs), 4),
            **self.extra,
        }


class Progress:
    """Says on stderr what is being done: one changing line on a terminal, else a line a benchmark."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._said = ""

    def step(self, name: str, what: str) -> None:
        """Show what is being done for one benchmark."""
        if self._live:
            print(f"\r\x1b[Kbench: {name}: {what}", end="", file=sys.stderr, flush=True)
        elif name != self._said:
            print(f"bench: {name}", file=sys.stderr, flush=True)
        self._said = name

    def clear(self) -> None:
        """Leave the line to others."""
        if self._live:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


class Group(Protocol):
    """Benchmarks that share a set-up. `run` yields the results of those asked for, one after another."""

    @property
    def benchmarks(self) -> Sequence[Benchmark]: ...

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]: ...


def alternate(
    pairs: int, ours: Callable[[], T], theirs: Callable[[], T], *, progress: Progress, name: str
) -> tuple[list[T], list[T]]:
    """Take `pairs` runs of both sides in turn, so that what else the machine does meets both alike."""
    left, right = take_turns(pairs, (ours, theirs), progress=progress, name=name)
    return left, right


def take_turns(
    rounds: int, sides: Sequence[Callable[[], T]], *, progress: Progress, name: str
) -> list[list[T]]:
    """Take `rounds` runs of each side, a run of each in every round. The runs of each side."""
    taken: list[list[T]] = [[] for _ in sides]
    for number in range(rounds):
        progress.step(name, f"run {number + 1} of {rounds}")
        for side, runs in zip(sides, taken, strict=True):
            runs.append(side())
    return taken


def p50_entries(ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """For `Result.extra`: the median latencies that the runs of a guest's program report, in microseconds.

    `p50_ratio` is the median over the pairs, as `ratio` is.
    """
    left, right = ([float(run["latency_us"]["p50"]) for run in runs] for runs in (ours, theirs))
    ratio = statistics.median(mine / other for mine, other in zip(left, right, strict=True))
    return {
        "ours_p50_us": statistics.median(left),
        "theirs_p50_us": statistics.median(right),
        "p50_ratio": round(ratio, 4),
    }
