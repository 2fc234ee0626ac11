"""Each fuzz target for FUZZ_SECONDS (30 by default), half of them against the model and half at the wire.

A run that finds something prints its seed; `python -m tests.fuzz` repeats it.
"""

from __future__ import annotations

import os

import pytest

from tests.fuzz.__main__ import TARGETS, fuzz

SECONDS = float(os.environ.get("FUZZ_SECONDS", "30"))


@pytest.mark.timeout(SECONDS + 150)
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_arrives_is_survived(target: str) -> None:
    print(fuzz(target, "model", SECONDS / 2))
    print(fuzz(target, "wire", SECONDS / 2))
