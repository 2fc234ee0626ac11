"""Tests that stand in a table of docs/: those that show a requirement, or break a rule for drivers."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

ROOT: Final = Path(__file__).resolve().parent.parent
ID: Final = re.compile(r"(P-)?(DEV|DRV)-\d\d")
"""Of a requirement; other marks name sections of the standard."""
RINGS: Final = ("wire", "model", "guest")


@dataclass(frozen=True)
class Marked:
    """One test case, and the requirements or rules that it names."""

    nodeid: str
    ids: tuple[str, ...]
    called: str = ""
    """What it is called in a table, where that is not its function's name."""

    @property
    def ring(self) -> str:
        """The folder under tests/."""
        return self.nodeid.split("/")[1]

    @property
    def file(self) -> str:
        """The file's path below its ring, without suffix."""
        return self.nodeid.split("::", maxsplit=1)[0].split("/", maxsplit=2)[-1].removesuffix(".py")

    @property
    def name(self) -> str:
        """The test function's name without `test_` and parameters, or what else it is called."""
        function = self.nodeid.split("::", maxsplit=1)[1].split("[", maxsplit=1)[0]
        return self.called or function.removeprefix("test_")


def marked(items: Iterable[pytest.Item]) -> list[Marked]:
    """The items that name a requirement: `@pytest.mark.spec("DEV-05")`."""
    found = []
    for item in items:
        names = [str(name) for mark in item.iter_markers("spec") for name in mark.args]
        ids = tuple(sorted({name for name in names if ID.fullmatch(name)}))
        if ids:
            found.append(Marked(item.nodeid, ids))
    return found


@dataclass
class _Collector:
    """Takes the tests of a run that only collects."""

    items: list[pytest.Item] = field(default_factory=list)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self.items = list(session.items)


def collect() -> list[pytest.Item]:
    """All tests of today. Raises SystemExit with pytest's words where they cannot be collected."""
    collector, said = _Collector(), io.StringIO()
    with contextlib.redirect_stdout(said):
        arguments = ["--collect-only", "-qq", "-p", "no:cacheprovider", "--rootdir", str(ROOT)]
        status = pytest.main([*arguments, str(ROOT / "tests")], plugins=[collector])
    if status != pytest.ExitCode.OK:
        raise SystemExit(f"{said.getvalue()}\nthe tests cannot be collected")
    return collector.items


def cells(tests: Sequence[Marked]) -> list[str]:
    """The tests of one row: those of each file at the wire, and how many there are elsewhere."""
    files: dict[str, list[str]] = {}
    for test in sorted(tests, key=lambda test: (test.file, test.nodeid)):
        names = files.setdefault(test.file, []) if test.ring == "wire" else []
        if test.name not in names:
            names.append(test.name)
    parts = [f"[{file}](../tests/wire/{file}.py): {', '.join(names)}" for file, names in files.items()]
    for ring in RINGS[1:]:
        count = len({(test.file, test.name) for test in tests if test.ring == ring})
        parts += [f"{count} of the {ring}" if ring == "model" else f"{count} with guests"] if count else []
    return parts
