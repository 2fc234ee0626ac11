"""For all tests: what becomes of those that show a requirement is recorded (tests/requirements.py)."""

from __future__ import annotations

import pytest

from tests.requirements import Recorder


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(), "requirements")
