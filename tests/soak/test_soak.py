"""The soak: what it calls a failure, what it draws, and a short one."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.soak import __main__ as soak
from tests.soak import client
from tests.soak.kinds import KINDS, LOST, MOVED, STAYED, BrokenError, Found, verdict
from tests.soak.samples import Sample, Sampler, sample, svg
from vfu_client.owner.owner import OwnerDriver

AS_BEFORE = "The guest runs at the source as before."
UNKNOWN = "It is not known whether the guest runs at the destination, so nothing more was touched."


@pytest.mark.parametrize(
    ("kind", "found", "where"),
    [
        ("move", Found(struck=False, source=False, destination=True, moved=True), MOVED),
        ("kill vfu-migrate", Found(struck=True, source=True, destination=False), STAYED),
        ("kill vfu-migrate", Found(struck=True, source=False, destination=True), MOVED),
        ("kill agent", Found(struck=True, source=True, destination=False, moved=False), STAYED),
        ("kill agent", Found(True, source=False, destination=True, moved=False, state=UNKNOWN), MOVED),
        ("kill source's QEMU", Found(struck=True, source=False, destination=False, moved=False), LOST),
        ("kill destination's server", Found(True, source=False, destination=False, moved=True), LOST),
    ],
)
def test_what_may_become_of_a_guest(kind: str, found: Found, where: str) -> None:
    assert verdict(KINDS[kind], found) == where


@pytest.mark.parametrize(
    ("kind", "found", "why"),
    [
        ("move", Found(struck=False, source=True, destination=True, both_run=True), "two guests run"),
        ("kill source's QEMU", Found(True, source=False, destination=False, both_run=True), "two guests run"),
        ("move", Found(struck=False, source=False, destination=False), "runs nowhere"),
        ("kill vfu-migrate", Found(struck=True, source=False, destination=False), "runs nowhere"),
        ("kill source's QEMU", Found(struck=False, source=False, destination=False), "runs nowhere"),
        ("move", Found(struck=False, source=True, destination=False, moved=True), "said that .* has moved"),
        ("cut connection", Found(True, False, destination=True, moved=False, state=AS_BEFORE), "did not say"),
        ("kill destination's QEMU", Found(True, False, False, moved=False, state=AS_BEFORE), "though"),
    ],
)
def test_what_may_not(kind: str, found: Found, why: str) -> None:
    with pytest.raises(BrokenError, match=why):
        verdict(KINDS[kind], found)


def test_samples() -> None:
    """Of this process, by what it sees itself; one that is gone has none."""
    files = len(os.listdir("/proc/self/fd"))
    found = sample(os.getpid(), 1.0)
    assert (found.at, found.pid, found.files) == (1.0, os.getpid(), files)
    assert found.rss > 1
    with subprocess.Popen(["true"]) as gone:
        # A zombie, which has no memory.
        while Path(f"/proc/{gone.pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z":
            time.sleep(0.01)
        with pytest.raises(ProcessLookupError):
            sample(gone.pid, 1.0)


def test_the_picture() -> None:
    """A line for each quantity and name, which breaks where another process took the place."""
    lives = [
        Sample(at, pid, 50.0 + at, 8, 20)
        for at, pid in ((2.0, 1), (4.0, 1), (6.0, 2), (8.0, 2), (20.0, 2), (28.0, 1))
    ]
    picture = svg({"disk a": lives}, "a <title>")
    assert "a &lt;title&gt;" in picture
    paths = re.findall(r'<path d="([^"]*)"', picture)
    assert len(paths) == 3
    assert all(re.fullmatch(r"M[\d. ]+ L[\d. ]+ M[\d. ]+ L[\d. ]+ L[\d. ]+ M[\d. ]+", path) for path in paths)
    sampler = Sampler(dict)
    sampler.found = {"disk a": lives}
    # The number of the first was given to another one at the end.
    life = sampler.longest_lives()["disk a"]
    assert (life["seconds"], life["rss_early"], life["rss_late"]) == (14, 56.0, 70.0)


@pytest.mark.parametrize("mode", [0, 1, 2])
def test_the_client(mode: int) -> None:
    """It leaves the VF active, in whatever mode it found it."""
    with ServerProcess("--vfs", "3", "--disk", "ram:1M") as server:
        with OwnerDriver.open(server.socket("pf")) as owner:
            for step in range(1, mode + 1):
                owner.mode_set(client.VF, step)
        client.turn(server.folder)
        with OwnerDriver.open(server.socket("pf")) as owner:
            assert owner.mode_get(client.VF) == 0


@pytest.mark.long
def test_a_short_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A move, and a client that is killed: nothing fails, and nothing is left."""
    monkeypatch.setattr(soak, "BUILD", tmp_path)
    assert (
        soak.main(["--minutes", "0.2", "--seed", "1", "--kind", "move", "--kind", "kill client, no move"])
        == 0
    )
    said = capsys.readouterr().out
    found = json.loads((tmp_path / "soak.json").read_text())
    assert found["failures"] == []
    assert sum(sum(counts.values()) for counts in found["kinds"].values()) >= 1
    assert (found["guests"], found["verified"] > 0) == (1, True)
    assert re.search(r"^  move +\d+ +[\d-]+ +- +- +- +-$", said, re.MULTILINE)
    assert (tmp_path / "soak.svg").stat().st_size > 1000
