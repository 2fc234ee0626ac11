"""The command line: `python -m bench [NAME...]`. Runs benchmarks, prints a table, writes build/bench.json."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.between_vfs import BetweenVfs
from bench.block import Block
from bench.busy import Busy
from bench.context import Contexts
from bench.cpu import Cpu
from bench.cycles import Cycles
from bench.many_vfs import ManyVfs
from bench.measure import BenchError, Group, NotPossibleError, Progress, Result
from bench.mmio import Mmio
from bench.move import MoveDowntime
from bench.network import Network
from bench.pf_probe import Probe
from bench.regions import Regions
from bench.ring import Ring
from bench.watching import Watching
from vfu_images.machine import MachineError
from vfu_images.program import die_with_parent
from vfu_images.workspace import BUILD

GROUPS: tuple[Group, ...] = (
    Mmio(),
    Ring(),
    Busy(),
    Watching(),
    Regions(),
    Contexts(),
    Cycles(),
    ManyVfs(),
    Block(),
    Cpu(),
    Network(),
    BetweenVfs(),
    MoveDowntime(),
    Probe(),
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is named, or all. Returns 1 when one failed.

    A missed goal is no failure, and neither is what this machine does not permit.
    """
    known = [benchmark.name for group in GROUPS for benchmark in group.benchmarks]
    options = _parser(known).parse_args(arguments)
    if options.list:
        print(*known, sep="\n")
        return 0
    unknown = [name for name in options.names if name not in known]
    if unknown:
        print(f"bench: no benchmark {', '.join(unknown)}; there are {', '.join(known)}", file=sys.stderr)
        return 2
    die_with_parent()
    # As an exception, so that everything started is ended and temporary folders are removed.
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    load = os.getloadavg()[0]
    if load > (os.cpu_count() or 1) / 4:
        print(
            f"bench: the machine is busy (load {load:.1f}): take the figures again when it is not",
            file=sys.stderr,
        )
    taken = measure(options.names or known)
    _write(options.json, taken, load)
    print(table(taken.results))
    for name, reason in taken.not_possible.items():
        print(f"bench: {name} not taken: {reason}", file=sys.stderr)
    for name, reason in taken.failed.items():
        print(f"bench: {name} FAILED: {reason}", file=sys.stderr)
    print(f"bench: {options.json} written")
    return 1 if taken.failed else 0


def _parser(known: Sequence[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure ours against a reference, in turn, and show the ratios (docs/benchmarks.md).",
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"default: all of {', '.join(known)}")
    parser.add_argument("--list", action="store_true", help="print the names and end")
    parser.add_argument("--json", type=Path, default=BUILD / "bench.json", help="default: build/bench.json")
    return parser


@dataclass
class Taken:
    """What was taken, and the reasons of what was not: `not_possible` is not permitted or not there."""

    results: list[Result] = field(default_factory=list)
    not_possible: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def measure(names: Sequence[str]) -> Taken:
    """Take the named benchmarks, one group after another."""
    taken = Taken()
    progress = Progress()
    for group in GROUPS:
        wanted = [benchmark.name for benchmark in group.benchmarks if benchmark.name in names]
        if not wanted:
            continue
        try:
            for result in group.run(wanted, progress):
                taken.results.append(result)
        except Exception as error:  # noqa: BLE001 - whatever it is, the others are still to be taken
            expected = isinstance(error, BenchError | MachineError | OSError)
            reason = str(error) if expected else f"{type(error).__name__}: {error}"
            done = {result.benchmark.name for result in taken.results}
            reasons = taken.not_possible if isinstance(error, NotPossibleError) else taken.failed
            reasons.update({name: reason for name in wanted if name not in done})
        finally:
            progress.clear()
    return taken


def table(results: Sequence[Result]) -> str:
    """The results for people."""
    rows = [("name", "ratio", "min", "max", "spread", "goal", "better", "ours", "theirs", "unit")]
    for result in results:
        benchmark = result.benchmark
        entry = result.as_json()
        goal = "-" if benchmark.goal is None else f"{benchmark.goal:g}{' missed' if result.missed else ''}"
        rows.append(
            (
                benchmark.name,
                f"{result.ratio:.3f}",
                f"{entry['min']:.3f}",
                f"{entry['max']:.3f}",
                f"{result.spread:.2f}{'?' if result.doubt else ' '}",
                goal,
                benchmark.better,
                _figure(entry["ours"]),
                _figure(entry["theirs"]),
                benchmark.unit,
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    text = [False, True, True, True, True, True, False, True, True, False]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if right else cell.ljust(width)
            for cell, width, right in zip(row, widths, text, strict=True)
        ]
        lines.append("  ".join(cells).rstrip())
    lines += [f"{result.benchmark.name}: {note}" for result in results for note in result.notes]
    lines += _shared({result.benchmark.name: result.limit for result in results})
    lines += _shared({result.benchmark.name: result.doubt for result in results})
    return "\n".join(lines)


def _shared(words: Mapping[str, str]) -> Iterator[str]:
    """Each text that there is once, behind the names that it is said of."""
    for text in dict.fromkeys(filter(None, words.values())):
        yield f"{', '.join(name for name, said in words.items() if said == text)}: {text}"


def _figure(value: float) -> str:
    """An absolute figure with what of it is worth reading."""
    return f"{value:.1f}" if value >= 100 else f"{value:.3f}"


def _write(path: Path, taken: Taken, load: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "results": [result.as_json() for result in taken.results],
        "not_possible": taken.not_possible,
        "failed": taken.failed,
        "taken": {"at": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "cpus": os.cpu_count(), "load": round(load, 2)},
    }
    fresh = path.with_name(f".{path.name}.new")
    fresh.write_text(json.dumps(content, indent=2) + "\n")
    fresh.replace(path)


if __name__ == "__main__":
    sys.exit(main())
