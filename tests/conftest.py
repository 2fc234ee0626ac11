"""For all tests: what becomes of those that stand in a table of docs/ is recorded (tests/recorder.py)."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.recorder import OUTCOMES, SAYINGS, Outcomes, Sayings

# As users have it: with it no stream keeps text that could not be written, and what that does is not seen.
os.environ.pop("PYTHONUNBUFFERED", None)

# How long a case takes is the machine's matter.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--length",
        choices=("short", "long", "any"),
        default="short",
        help="run the tests that are marked as long and no others, or all but those, or all",
    )
    parser.addoption(
        "--checked",
        action="store_true",
        help="guests' servers hold their drivers to the rules (--check-driver)",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Long tests have a run of their own."""
    long = [item for item in items if item.get_closest_marker("long") is not None]
    short = [item for item in items if item.get_closest_marker("long") is None]
    chosen, left_out = (long, short) if config.getoption("--length") == "long" else (short, long)
    if left_out and config.getoption("--length") != "any":
        config.hook.pytest_deselected(items=left_out)
        items[:] = chosen


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Outcomes(OUTCOMES), "outcomes")
    config.pluginmanager.register(Sayings(SAYINGS), "sayings")
