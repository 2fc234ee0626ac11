"""Which tests break which rule for drivers (`pymodel/rules`), and what was said: docs/rules.md.

    python -m tests.driver_rules --write   make the table from the tests and what was said in their last run
    python -m tests.driver_rules --check   the table has all rules and all tests of today

A rule's tests are the `Mistake`s that break it (tests/wire/rules) and those that are marked with its ID. Each
rule needs one, and something that was said. What was said is in build/rules.json.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import Final

import pytest

from pymodel.rules.changes import Changes
from pymodel.rules.checker import RULES, TOPICS
from pymodel.rules.checksums import Checksums
from pymodel.rules.commands import Commands
from pymodel.rules.disks import Disks
from pymodel.rules.initialization import Initialization
from pymodel.rules.network_commands import NetworkCommands
from pymodel.rules.networks import Networks
from pymodel.rules.notifications import Notifications
from pymodel.rules.queues import Queues
from pymodel.rules.registers import Registers
from pymodel.rules.rings import Rings
from pymodel.rules.topic import Topic
from tests.driver_statements.inventory import statements
from tests.driver_statements.statement import REASONS
from tests.marked import ROOT, Marked, cells, collect, marked
from tests.recorder import SAYINGS, load
from tests.wire.rules.author import Mistake

TABLE: Final = ROOT / "docs" / "rules.md"
TITLES: Final[Mapping[type[Topic], str]] = {
    Registers: "Accesses to registers",
    Initialization: "Bringing a device up",
    Queues: "Setting queues up",
    Notifications: "Notifications",
    Rings: "Rings",
    Disks: "Requests to a disk",
    Networks: "Frames",
    Checksums: "Checksums in frames",
    NetworkCommands: "Commands to a network device",
    Changes: "After a configuration change",
    Commands: "Admin commands",
}
HEAD: Final = """\
# Rules for drivers, and their tests

Made by `.venv/bin/python -m tests.driver_rules --write`; do not edit. This is what `--check-driver` of
`vfu-server` [tells of](monitor.md#rules-for-drivers), in our words. A section is virtio 1.4's, but for those
of the draft. `HINT` is the level of what no rule forbids, and which is hardly meant. The tests break the
rule, or keep it and are told nothing; behind them is what was said in their last run, without addresses.
"""
COLUMNS: Final = """
| ID | level | a driver ... | section | the device sees | the device ... | tests | was said |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
UNSEEN: Final = """
## What no rule sees

Virtio 1.4 also asks this of drivers, under basic facilities, PCI, block and network devices.
"""
UNSEEN_COLUMNS: Final = """
| section | level | a driver ... |
| --- | --- | --- |
"""

# Where a driver's rings and buffers are differs from run to run; what features there are does not.
_ADDRESS: Final = re.compile(r"(?<!features )0x[0-9a-f]{6,}")

_RULE_LINES: Final = tuple(f"| {name} |" for name in RULES)


def mistakes(items: Iterable[pytest.Item]) -> list[Marked]:
    """The items that break a rule as a `Mistake` says."""
    found = []
    for item in items:
        parameters = item.callspec.params if hasattr(item, "callspec") else {}
        mistake = parameters.get("mistake")
        if isinstance(mistake, Mistake):
            found.append(Marked(item.nodeid, (mistake.rule,), mistake.make.__name__.strip("_")))
    return found


def render(tests: Sequence[Marked], said: Mapping[str, list[list[str]]]) -> str:
    """The tables: rules by topic, and what none sees by reason."""
    parts = [HEAD]
    for topic in TOPICS:
        rows = [_row(name, tests, said) for name in topic.RULES]
        parts += [f"\n## {TITLES[topic]}\n", COLUMNS, *rows]
    parts.append(UNSEEN)
    for reason in REASONS:
        parts.append(f"\n### {reason[0].upper()}{reason[1:]}\n{UNSEEN_COLUMNS}")
        parts += [
            f"| {title} | {statement.level} | {statement.text} |\n"
            for title, statement in statements()
            if statement.reason == reason
        ]
    return "".join(parts)


def _row(name: str, tests: Sequence[Marked], said: Mapping[str, list[list[str]]]) -> str:
    """The line of one rule."""
    rule = RULES[name]
    mine = [test for test in tests if name in test.ids]
    sayings = _sayings(name, mine, said)
    columns = [
        name,
        rule.level,
        rule.text,
        rule.section,
        rule.sees,
        rule.does,
        "; ".join(cells(mine)),
        sayings,
    ]
    return f"| {' | '.join(column.replace('|', chr(92) + '|') for column in columns)} |\n"


def _sayings(name: str, tests: Sequence[Marked], said: Mapping[str, list[list[str]]]) -> str:
    """What was said of each mistake. Other tests share a server, which says a thing once: one is enough."""
    found = [
        f"`{_ADDRESS.sub('0x…', words)}`"
        for test in tests
        for rule, words in said.get(test.nodeid, ())
        if rule == name
    ]
    distinct = list(dict.fromkeys(found))
    return "<br>".join(distinct if any(test.called for test in tests) else distinct[:1])


def complaints(tests: Sequence[Marked], table: str) -> list[str]:
    """What is wrong with the tests, or with what the table has of them."""
    named = {name for test in tests for name in test.ids}
    found = [f"{name} has no test" for name in RULES if name not in named]
    found += [
        f"{test.nodeid} breaks {name}: there is no such rule"
        for test in tests
        if test.called
        for name in test.ids
        if name not in RULES
    ]
    silent = [line.split(" ")[1] for line in table.splitlines() if line.endswith(" |  |")]
    return found + [f"of {name} nothing was said" for name in silent]


def _without_sayings(table: str) -> list[str]:
    """The lines of a table, those of rules without their last column, which only a run can tell."""
    return [
        line.rsplit(" | ", maxsplit=1)[0] if line.startswith(_RULE_LINES) else line
        for line in table.splitlines()
    ]


def main(arguments: Sequence[str] | None = None) -> int:
    """Write or check the table. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.driver_rules", description="The table of rules for drivers."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--write", action="store_true", help=f"make {TABLE.relative_to(ROOT)}")
    what.add_argument("--check", action="store_true", help="fail where it is stale, or a rule has no test")
    options = parser.parse_args(arguments)
    items = collect()
    tests = mistakes(items) + marked(items)
    table = render(tests, load(SAYINGS))
    if options.write:
        TABLE.write_text(table)
    written = TABLE.read_text() if TABLE.exists() else ""
    found = complaints(tests, written)
    if _without_sayings(written) != _without_sayings(table):
        found.append(f"{TABLE.relative_to(ROOT)} is stale: python -m tests.driver_rules --write")
    for line in found:
        print(line, file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
