"""Which tests show which requirement of the draft: recorded in every run, written to docs/requirements.md.

    python -m tests.requirements --write         make the table from the tests and the last results
    python -m tests.requirements --check         the table names all tests of today and says that all pass
    python -m tests.requirements --check --run   ... and the last run had each of them, and each passed

A test names its requirements with `@pytest.mark.spec("DEV-05")`. Each needs one at the wire ring. The results
are in build/requirements.json: a run of all tests replaces it, any other run brings it up to date.
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

ROOT: Final = Path(__file__).resolve().parent.parent
TABLE: Final = ROOT / "docs" / "requirements.md"
RESULTS: Final = ROOT / "build" / "requirements.json"
ID: Final = re.compile(r"(DEV|DRV)-\d\d")
RINGS: Final = ("wire", "model", "guest")
PROPERTY: Final = "requirements"

# ID: (level, what it asks for)
REQUIREMENTS: Final[Mapping[str, tuple[str, str]]] = {
    "DEV-01": ("MUST", "offer all of the context commands, or none"),
    "DEV-02": ("MUST", "succeed in setting the mode that is in force"),
    "DEV-03": ("MUST", "refuse a mode that is none of the three"),
    "DEV-04": ("MUST", "keep the mode when a MODE_SET fails"),
    "DEV-05": ("MUST", "refuse to leave Freeze while a written context is partial"),
    "DEV-06": ("MUST", "answer READs after the whole context with two zeros"),
    "DEV-07": ("MUST", "let the context be read in every mode"),
    "DEV-08": ("MUST", "drop a partly read context on DISCARD"),
    "DEV-09": ("MUST", "then answer SIZE_GET and READ as if nothing had been read"),
    "DEV-10": ("MUST", "list START_MARKER, END_MARKER and DISCARD in FIELDS_QUERY"),
    "DEV-11": ("MUST", "take a complete context more than once"),
    "DEV-12": ("MUST", "refuse WRITE outside Freeze"),
    "DEV-13": ("MUST NOT", "start a PCI transaction unless Active"),
    "DEV-14": ("MUST", "end all outstanding PCI transactions before MODE_SET is answered"),
    "DEV-15": ("MUST", "accept driver notifications in Stop"),
    "DEV-16": ("MAY", "change context fields in Stop"),
    "DEV-17": ("MUST", "answer PCI reads in Stop with valid data"),
    "DEV-18": ("MUST", "have PCI's own interfaces work alike in every mode"),
    "DEV-19": ("MUST NOT", "raise PME unless Active"),
    "DEV-20": ("MUST NOT", "change a context field in Freeze"),
    "DEV-21": ("MAY", "change context fields on the way from Stop to Freeze"),
    "DEV-22": ("MUST NOT", "touch rings, or what they point to, unless Active"),
    "DEV-23": ("MUST NOT", "send a configuration change notification unless Active"),
    "DEV-24": ("MUST", "drop a partly written context on DISCARD"),
    "DEV-25": ("MUST NOT", "let writes to virtio registers change anything in Freeze"),
    "DEV-26": ("MAY", "answer reads of virtio registers in Freeze with anything (we tell the truth)"),
    "DEV-27": ("MUST", "ignore writes to the PCI_CFG capability in Freeze"),
    "DEV-28": ("MUST", "answer reads of the PCI_CFG capability alike in every mode"),
    "DEV-29": ("MUST", "answer MODE_SET, WRITE and READ after an FLR that is under way"),
    "DEV-30": ("MUST", "answer them after a device reset that is under way"),
    "DEV-31": ("MUST", "answer them after a power state change that is under way"),
    "DEV-32": ("MUST", "refuse a WRITE whose field has another length than the device's"),
    "DEV-33": ("MUST", "begin a context that is read with START_MARKER"),
    "DEV-34": ("MUST", "end a context that is read with END_MARKER"),
    "DEV-35": ("MAY", "send START_MARKER and END_MARKER in different responses"),
    "DEV-36": ("MAY", "send them in one response"),
    "DEV-37": ("MUST", "apply the contexts of one WRITE in their order"),
    "DEV-38": ("MUST", "apply the occurrences of one field in their order"),
    "DRV-01": ("SHOULD", "read a context to its end"),
    "DRV-02": ("MAY", "write a context before leaving Freeze"),
    "DRV-03": ("MUST", "write complete contexts"),
    "DRV-04": ("MUST NOT", "ask for Stop or Active with a partial context"),
    "DRV-05": ("SHOULD NOT", "access device configuration in Stop or Freeze"),
    "DRV-06": ("MUST NOT", "write the PCI_CFG capability in Freeze"),
    "DRV-07": ("MUST", "begin a written context with START_MARKER"),
    "DRV-08": ("MUST", "end a written context with END_MARKER"),
    "DRV-09": ("MUST", "have END_MARKER end the last WRITE of a context"),
}

HEAD: Final = """\
# Requirements of the draft, and their tests

Made by `.venv/bin/python -m tests.requirements --write`; do not edit. The draft is the one that
[architecture.md](architecture.md) names; DEV is what the device owes, DRV what an owner driver owes, in our
words. The tests are those of `tests/wire`: a client over vfio-user against a server process. Tests of the
model, and those with guests, that are marked with the same requirement are counted behind them.

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
    """The items that name a requirement of the draft."""
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
        chosen = config.option.keyword or config.option.markexpr
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
    """The table. A requirement has passed when all its tests have."""
    lines = []
    for name, (level, text) in REQUIREMENTS.items():
        mine = [test for test in tests if name in test.ids]
        worst = {outcomes.get(test.nodeid, "not run") for test in mine} - {"passed"} or {"passed"}
        result = ", ".join(sorted(worst)) if mine else "no test"
        lines.append(f"| {name} | {level} | {text} | {_cell(mine)} | {result} |")
    return HEAD + "\n".join(lines) + "\n"


def _cell(tests: Sequence[Marked]) -> str:
    """The tests of one requirement."""
    files: dict[str, list[str]] = {}
    for test in sorted(tests, key=lambda test: (test.file, test.nodeid)):
        names = files.setdefault(test.file, []) if test.ring == "wire" else []
        if test.function not in names:
            names.append(test.function)
    parts = [f"[{file}](../tests/wire/{file}.py): {', '.join(names)}" for file, names in files.items()]
    for ring in RINGS[1:]:
        count = len({(test.file, test.function) for test in tests if test.ring == ring})
        parts += [f"{count} of the {ring}" if ring == "model" else f"{count} with guests"] if count else []
    return "; ".join(parts)


def complaints(tests: Sequence[Marked], outcomes: Mapping[str, str]) -> list[str]:
    """What is wrong with the tests or their outcomes."""
    at_wire = {name for test in tests if test.ring == "wire" for name in test.ids}
    found = [f"{name} has no test at the wire" for name in REQUIREMENTS if name not in at_wire]
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
