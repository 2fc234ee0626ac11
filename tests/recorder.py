"""What tests leave behind in build/ for the tables of docs/: by test, as JSON.

A run of all tests replaces a file, any other run brings it up to date. What is noted of a test travels in its
reports, so that those of pytest-xdist's workers, which run the tests, tell the process that writes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Final

import pytest

from tests.marked import ROOT, marked

OUTCOMES: Final = ROOT / "build" / "requirements.json"
SAYINGS: Final = ROOT / "build" / "rules.json"
NAMED: Final = "requirements"
"""The property of a test that names requirements."""
TOLD: Final = "told"
"""The property of a test that has a rule for drivers, and what the server said of its breach."""


def load(results: Path) -> dict[str, Any]:
    """The last results: what was noted, by test."""
    try:
        found = json.loads(results.read_text())
    except FileNotFoundError:
        return {}
    return {str(nodeid): noted for nodeid, noted in found.items()}


class Recorder:
    """A pytest plugin that notes something of each test, and writes it to `results` at the end of a run."""

    def __init__(self, results: Path) -> None:
        self._results = results
        self.noted: dict[str, Any] = {}

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is known now."""
        config = session.config
        if hasattr(config, "workerinput") or not self.noted:
            return
        chosen = config.option.keyword or config.option.markexpr or config.option.length == "long"
        everything = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not chosen
        known = {} if everything else load(self._results)
        known.update(self.noted)
        self._results.parent.mkdir(exist_ok=True)
        self._results.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


class Outcomes(Recorder):
    """Notes what became of each test that names a requirement."""

    def pytest_itemcollected(self, item: pytest.Item) -> None:
        """Note in the test's reports that it does."""
        item.user_properties += [(NAMED, test.ids) for test in marked([item])]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The worst of setup, call and teardown is what counts."""
        if all(name != NAMED for name, _ in report.user_properties):
            return
        outcome = "xfailed" if hasattr(report, "wasxfail") else report.outcome
        if outcome != "passed" or report.when == "call":
            before = self.noted.get(report.nodeid, "passed")
            self.noted[report.nodeid] = outcome if before == "passed" else before


class Sayings(Recorder):
    """Notes what was said in each test: rules for drivers, and what was seen of their breaches."""

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test may tell of it until its teardown is over."""
        said = [value for name, value in report.user_properties if name == TOLD]
        if said:
            self.noted[report.nodeid] = said
