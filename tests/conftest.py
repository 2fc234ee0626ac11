"""For all tests: what becomes of those that show a requirement is recorded (tests/requirements.py)."""

from __future__ import annotations

import os

import hypothesis
import pytest

from tests.requirements import Recorder

# As users have it: with it no stream keeps text that could not be written, and what that does is not seen.
os.environ.pop("PYTHONUNBUFFERED", None)

# How long a case takes is the machine's matter.
hypothesis.settings.register_profile("untimed", deadline=None)
hypothesis.settings.load_profile("untimed")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Recorder(), "requirements")
