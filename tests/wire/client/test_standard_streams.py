"""The commands' standard streams where nobody takes what is said: the exit status tells the same as ever."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

OWNER = [sys.executable, "-m", "vfu_client.owner.cli"]
MIGRATE = [sys.executable, "-m", "vfu_client.move.cli"]
OTHERS = """
import logging, sys
from vfu_client.standard_streams import prepare
prepare()
logging.error("of a library")
sys.exit(int(sys.argv[1]))
"""


@pytest.fixture(params=["a full disk", "a closed pipe"])
def untaken(request: pytest.FixtureRequest) -> Iterator[int]:
    """Where no text can be written."""
    if request.param == "a full disk":
        writer = os.open("/dev/full", os.O_WRONLY)
    else:
        reader, writer = os.pipe()
        os.close(reader)
    yield writer
    os.close(writer)


@pytest.mark.parametrize(
    ("words", "status"),
    [
        ([*MIGRATE, "--recover"], 0),
        ([*MIGRATE, "--recover", "--json"], 0),
        ([*OWNER, "--pf", "nowhere/pf.sock", "mode", "vf1"], 1),
        ([sys.executable, "-c", OTHERS, "0"], 0),
        ([sys.executable, "-c", OTHERS, "1"], 1),
    ],
)
def test_nobody_is_told(untaken: int, tmp_path: Path, words: list[str], status: int) -> None:
    """What was said in vain changes no status, also not when the program ends, and whoever said it."""
    place = os.environ | {"TMPDIR": str(tmp_path)}  # where no move was left
    done = subprocess.run(words, stdout=untaken, stderr=untaken, env=place, check=False, timeout=50)
    assert done.returncode == status
