"""Each fuzz target for FUZZ_SECONDS (4 by default), half of them against the model and half at the wire.

A run that finds something prints its seed; `python -m tests.fuzz` repeats it.
"""

from __future__ import annotations

import os
import random

import pytest

from tests.fuzz.__main__ import TARGETS, fuzz
from tests.fuzz.context import ContextTarget, encode
from vfu_server.datapath import COMPILED

SECONDS = float(os.environ.get("FUZZ_SECONDS", "4"))


@pytest.mark.timeout(SECONDS + 150)
@pytest.mark.parametrize("target", TARGETS)
def test_whatever_arrives_is_survived(target: str) -> None:
    if target == "frames" and not COMPILED:
        pytest.skip("without compiled modules all frames meet the interpreter")
    print(fuzz(target, "model", SECONDS / 2))
    print(fuzz(target, "wire", SECONDS / 2))


def test_a_field_that_announces_the_largest_length_can_be_mutated_again() -> None:
    """Its header has no room for one more."""
    for seed in range(100):
        encode(ContextTarget._length(random.Random(seed), [(0x17, 0, (1 << 64) - 1, b"")], 0))
