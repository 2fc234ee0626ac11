"""Which tests show which rule of `tests/rules.py`: recorded in every run, written to docs/requirements.md.

    python -m tests.requirements --write         make the table from the tests and the last results
    python -m tests.requirements --check         the table names all tests of today and says that all pass
    python -m tests.requirements --check --run   ... and the last run had each of them, and each passed

A test names its requirements with `@pytest.mark.spec("DEV-05")`. Each needs one at the wire ring, or a reason
why there is none. The results are in build/requirements.json: a run of all tests replaces it, any other run
brings it up to date.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from tests.rules import DRAFT, REQUIREMENTS, VIRTIO, Requirement

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "docs" / "requirements.md"
RESULTS: Final = ROOT / "build" / "requirements.json"
ID: Final = re.compile(r"(P-)?(DEV|DRV)-\d\d")
RINGS: Final = ("wire", "model", "guest")
PROPERTY: Final = "requirements"

HEAD: Final = """\
# Requirements, and their tests

Made by `.venv/bin/python -m tests.requirements --write`; do not edit. DEV is what the device owes, DRV what
an owner driver owes, in our words. The tests are those of `tests/wire`: a client over vfio-user against a
server process. Tests of the model, and those with guests, that are marked with the same requirement are
counted behind them. Where no test can show a rule, the table says why.
"""
SECTIONS: Final[Mapping[str, Mapping[str, Requirement]]] = {
    """
## The draft

The one that [architecture.md](architecture.md) names.
""": DRAFT,
    """
## Virtio 1.4

Its rules for group administration commands, the queue that carries them, capabilities, resource objects,
device parts and the legacy interface. Where it says two things, [wire.md](wire.md#device-parts) has our
reading.
""": VIRTIO,
}
COLUMNS: Final = """
| ID | level | requirement | tests | result |
| --- | --- | --- | --- | --- |
"""


@dataclass(frozen=True)
class Marked:
    """One test case that names requirements."""

    nodeid: str
    ids: tuple[str, ...]

    @property
    def ring(self) -> str:
        """The folder under tests/."""
        return self.nodeid.split("/")[1]

    @property
    def file(self) -> str:
        """The file's path below its ring, without suffix."""
        return self.nodeid.split("::", maxsplit=1)[0].split("/", maxsplit=2)[-1].removesuffix(".py")

    @property
    def function(self) -> str:
        """The test function's name without `test_` and parameters."""
        return self.nodeid.split("::", maxsplit=1)[1].split("[", maxsplit=1)[0].removeprefix("test_")


def marked(items: Iterable[pytest.Item]) -> list[Marked]:
    """The items that name a requirement."""
    found = []
    for item in items:
        names = [str(name) for mark in item.iter_markers("spec") for name in mark.args]
        ids = tuple(sorted({name for name in names if ID.fullmatch(name)}))
        if ids:
            found.append(Marked(item.nodeid, ids))
    return found


class Recorder:
    """The pytest plugin: keeps the outcome of every marked test, and writes RESULTS at the end of a run.

    What a test is marked with travels in its reports, so that those of pytest-xdist's workers, which run the
    tests, tell the process that writes.
    """

    def __init__(self) -> None:
        self._outcomes: dict[str, str] = {}

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note in the test's reports that it names requirements."""
        item.user_properties += [(PROPERTY, test.ids) for test in marked([item])]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of setup, call and teardown is what counts."""
        if all(name != PROPERTY for name, _ in report.user_properties):
            return
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if outcome != "passed" or report.when == "call":
            before = self._outcomes.get(report.nodeid, "passed")
            self._outcomes[report.nodeid] = outcome if before == "passed" else before

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is known now."""
        config = session.config
        if hasattr(config, "workerinput") or not self._outcomes:
            return
        chosen = config.option.keyword or config.option.markexpr or config.option.long
        everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen
        known = {} if everything else load()
        known.update(self._outcomes)
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


@dataclass
class _Collector:
    """Takes the tests of a run that only collects."""

    items: list[pytest.Item] = field(default_factory=list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collect() -> list[Marked]:
    """All marked tests of today. Raises SystemExit with pytest's words where they cannot be collected."""
    collector, said = _Collector(), io.StringIO()
    with contextlib.redirect_stdout(said):
        arguments = [
            "--collect-only",
            "-qq",
            "-p",
            "no:cacheprovider",
            "--rootdir",
            str(ROOT),
            str(ROOT / "tests"),
        ]
        status = pytest.main(arguments, plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"{said.getvalue()}\nthe tests cannot be collected")
    return marked(collector.items)


def load() -> dict[str, str]:
    """The last results: outcome by test."""
    try:
        found = json.loads(RESULTS.read_text())
    except FileNotFoundError:
        return {}
    return {str(nodeid): str(outcome) for nodeid, outcome in found.items()}


def render(tests: Sequence[Marked], outcomes: Mapping[str, str]) -> str:
    """The tables. A requirement has passed when all its tests have."""
    parts = [HEAD]
    for title, requirements in SECTIONS.items():
        rows = [_row(name, requirement, tests, outcomes) for name, requirement in requirements.items()]
        parts += [title, COLUMNS, *rows]
    return "".join(parts)


def _row(name: str, asked: Requirement, tests: Sequence[Marked], outcomes: Mapping[str, str]) -> str:
    """The line of one requirement."""
    mine = [test for test in tests if name in test.ids]
    worst = {outcomes.get(test.nodeid, "not run") for test in mine} - {"passed"} or {"passed"}
    result = ", ".join(sorted(worst)) if mine else "no test"
    cells = [f"none: {asked.untested}"] if asked.untested else []
    cell = "; ".join(cells + _cells(mine))
    return f"| {name} | {asked.level} | {asked.text} | {cell} | {result} |\n"


def _cells(tests: Sequence[Marked]) -> list[str]:
    """The tests of one requirement: those of each file, and how many there are elsewhere."""
    files: dict[str, list[str]] = {}
    for test in sorted(tests, key=lambda test: (test.file, test.nodeid)):
        names = files.setdefault(test.file, []) if test.ring == "wire" else []
        if test.function not in names:
            names.append(test.function)
    parts = [f"[{file}](../tests/wire/{file}.py): {', '.join(names)}" for file, names in files.items()]
    for ring in RINGS[1:]:
        count = len({(test.file, test.function) for test in tests if test.ring == ring})
        parts += [f"{count} of the {ring}" if ring == "model" else f"{count} with guests"] if count else []
    return parts


def complaints(tests: Sequence[Marked], outcomes: Mapping[str, str]) -> list[str]:
    """What is wrong with the tests or their outcomes."""
    at_wire = {name for test in tests if test.ring == "wire" for name in test.ids}
    found = []
    for name, requirement in REQUIREMENTS.items():
        if name not in at_wire and not requirement.untested:
            found.append(f"{name} has no test at the wire")
        elif name in at_wire and requirement.untested:
            found.append(f"{name} has a test at the wire, and a reason why there is none")
    for test in tests:
        unknown = [name for name in test.ids if name not in REQUIREMENTS]
        if unknown:
            found.append(f"{test.nodeid} names {', '.join(unknown)}: there is no such requirement")
        outcome = outcomes.get(test.nodeid, "not run")
        if outcome != "passed":
            found.append(f"{test.nodeid} of {', '.join(test.ids)}: {outcome}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.requirements", description="The requirement table."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help=f"make {TABLE.relative_to(ROOT)}")
    what.add_argument(
        "--check", action="store_true", help="fail where it is stale, or a requirement has no test"
    )
    parser.add_argument("--run", action="store_true", help="also check the last run of the tests")
    options = parser.parse_args(arguments)
    tests = collect()
    # Without a run there is nothing but what the table says, which is to be that all passed.
    outcomes = load() if options.write or options.run else {test.nodeid: "passed" for test in tests}
    found = complaints(tests, outcomes)
    table = render(tests, outcomes)
    if options.write:
        TABLE.write_text(table)
    elif not TABLE.exists() or TABLE.read_text() != table:
        found.append(f"{TABLE.relative_to(ROOT)} is stale: python -m tests.requirements --write")
    for line in found:
        print(line, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
