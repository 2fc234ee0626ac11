"""Which tests show which rule of `tests/rules.py`: recorded in every run, written to docs/requirements.md.

    python -m tests.requirements --write         make the table from the tests and the last results
    python -m tests.requirements --check         the table names all tests of today and says that all pass
    python -m tests.requirements --check --run   ... and the last run had each of them, and each passed

A test names its requirements with `@pytest.mark.spec("DEV-05")`. Each needs one at the wire ring, or a reason
why there is none. The results are in build/requirements.json.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from typing import Final

from tests.marked import ROOT, Marked, cells, collect, marked
from tests.recorder import OUTCOMES, load
from tests.rules import DRAFT, REQUIREMENTS, VIRTIO, Requirement

TABLE: Final = ROOT / "docs" / "requirements.md"

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
    reason = [f"none: {asked.untested}"] if asked.untested else []
    cell = "; ".join(reason + cells(mine))
    return f"| {name} | {asked.level} | {asked.text} | {cell} | {result} |\n"


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
    tests = marked(collect())
    # Without a run there is nothing but what the table says, which is to be that all passed.
    outcomes = load(OUTCOMES) if options.write or options.run else {test.nodeid: "passed" for test in tests}
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
