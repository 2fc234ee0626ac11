"""`vfu-owner` as a process: where its output goes, and what it says of a socket that is not a PF's."""

from __future__ import annotations

import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.client.test_context import BLOCK

COMMAND = [sys.executable, "-m", "vfu_client.owner.cli"]


def owner(*words: str | Path, **settings: int) -> subprocess.CompletedProcess[str]:
    """Run it, and have it write when it sees fit: PYTHONUNBUFFERED hides what is left for the end."""
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **settings}
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    return subprocess.run([*COMMAND, *map(str, words)], text=True, check=False, env=environment, **streams)  # type: ignore[call-overload, no-any-return]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A context in a file."""
    path = tmp_path / "saved.ctx"
    path.write_bytes(BLOCK)
    return path


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_a_reader_that_has_seen_enough(saved: Path, options: list[str]) -> None:
    """`show F | head`: no traceback, and no failure."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = owner(*options, "show", saved, stdout=writer)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("words", [["show", "{saved}"], ["--json", "show", "{saved}"]])
def test_a_full_disk(saved: Path, words: list[str]) -> None:
    """A result that is not there is a failure, told in one line."""
    full = os.open("/dev/full", os.O_WRONLY)
    try:
        done = owner(*(word.format(saved=saved) for word in words), stdout=full)
    finally:
        os.close(full)
    assert done.returncode == 1
    assert done.stderr == "vfu-owner: standard output: No space left on device\n"


def test_a_closed_stream(saved: Path) -> None:
    """As with /dev/null; the context that is read does not become the standard output."""
    words = ["sh", "-c", 'exec "$@" >&- 2>&- <&-', "sh", *COMMAND, "--json", "show", str(saved)]
    assert subprocess.run(words, check=False).returncode == 0


@pytest.mark.parametrize("existing", [False, True])
def test_contexts_are_for_their_owner(shared: ServerProcess, tmp_path: Path, existing: bool) -> None:
    """Mode 0600, also of a file that was there before: a context holds what is on the disk."""
    path = tmp_path / "vf1.ctx"
    if existing:
        path.touch(0o644)
    assert owner("--pf", shared.socket("pf"), "context", "read", "vf1", path).returncode == 0
    assert path.stat().st_mode & 0o777 == 0o600
    assert owner("show", path).returncode == 0


@pytest.mark.parametrize("behind", [False, True])
def test_options_before_the_subcommand_and_behind_it(shared: ServerProcess, behind: bool) -> None:
    """And the server's folder, where the PF's socket in it is meant."""
    options = ["--pf", str(shared.folder), "--json", "--context-opcodes", "0x40"]
    done = owner("mode", "vf1", *options) if behind else owner(*options, "mode", "vf1")
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["mode"] == "active"


def test_what_is_behind_counts(shared: ServerProcess) -> None:
    assert owner("--pf", "nowhere", "mode", "vf1", "--pf", shared.folder).returncode == 0


@pytest.mark.parametrize(
    ("place", "why"),
    [
        ("monitor.sock", r"monitor\.sock: what listens there does not speak vfio-user"),
        ("vf1.sock", r"vf1\.sock is not a PF with an admin queue: .*Look at --pf"),
        ("log", r"no server listens on .*log"),
        ("datagrams", r"datagrams: Protocol wrong type for socket"),
    ],
)
def test_what_is_no_pf(shared: ServerProcess, tmp_path: Path, place: str, why: str) -> None:
    """It says what it found, and not that somebody else has the PF."""
    path = shared.folder / place
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        if place == "datagrams":
            path = tmp_path / place
            listener.bind(str(path))
        done = owner("--pf", path, "mode", "vf1")
    assert done.returncode == 1
    assert re.search(why, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert "usage" not in done.stderr


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--context-opcodes", "0x10000", "commands"], "'0x10000': give an opcode from 0x13 to 0xfff6"),
        (["--context-opcodes", "5", "commands"], "'5': give an opcode from 0x13 to 0xfff6"),
        (["--context-opcodes", "x", "commands"], "'x': give an opcode"),
        (["context", "read", "vf1", "f", "--buffer", "0"], "'0': give a number of bytes above 0"),
        (
            ["context", "read", "vf1", "f", "--buffer", "-1"],
            "'-1': give a number of bytes above 0|expected one",
        ),
        (["--json", "context", "read", "vf1", "-"], "both on standard output"),
    ],
)
def test_wrong_options(words: list[str], why: str) -> None:
    """Status 2 and a usage line, which nothing else has."""
    done = owner("--pf", "nowhere/pf.sock", *words)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: vfu-owner")
    assert re.search(why, done.stderr), done.stderr
