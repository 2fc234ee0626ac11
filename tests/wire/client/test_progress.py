"""Large states of disks in memory: how far they are is told, in a move on one host as in one between two."""

from __future__ import annotations

import os

import pytest

from tests.server_process import ServerProcess
from vfu_client.drivers.block import BlockDriver
from vfu_client.move import progress
from vfu_client.move.pf import Former, Pf
from vfu_client.move.progress import Progress


def test_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once a second, with the time that is left by what was done so far; nothing of what is small."""
    now = 100.0
    monkeypatch.setattr("vfu_client.move.progress.time.monotonic", lambda: now)
    said: list[str] = []
    large, small = Progress("reading it", said.append), Progress("reading another", said.append)
    for seconds, done in ((0.5, 1), (1.0, 256), (1.5, 300), (2.0, 512), (5.0, 1024)):
        now = 100.0 + seconds
        large(done << 20, 1024 << 20)
        small(done, (64 << 20) - 1)
    assert said == [
        "reading it: 256 of 1024 MiB, about 3 s more",
        "reading it: 512 of 1024 MiB, about 2 s more",
        "reading it: 1024 of 1024 MiB, about 0 s more",
    ]


def test_each_part_of_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LARGE_BYTES", 4 << 20)
    monkeypatch.setattr(progress, "PERIOD_SECONDS", 0.0)
    said: list[str] = []
    options = ("--vfs", "1", "--disk", "ram:9M")
    with ServerProcess(*options) as here, ServerProcess(*options) as there:
        for server in (here, there):
            with BlockDriver.open(server.socket("vf1")) as disk:
                for sector in range(0, 9 << 11, 2048):
                    disk.write(sector, os.urandom(1 << 20))
        source = Pf("source", here.folder, 0x40, say=said.append)
        destination = Pf("destination", there.folder, 0x40, say=said.append)
        try:
            source.open()
            destination.open()
            former = Former(destination.mode(1))
            destination.prepare(1, former, source.read_first(1))
            destination.restore(1, former)
        finally:
            source.close()
            destination.close()
    assert [line.rpartition(",")[0] for line in said] == [
        "reading VF 1 of the source: 9 of 9 MiB",
        "keeping what is in VF 1 of the destination: 9 of 9 MiB",
        *(f"writing VF 1 of the destination: {count} of 9 MiB" for count in (4, 8, 9)),
        *(f"restoring VF 1 of the destination: {count} of 9 MiB" for count in (4, 8, 9)),
    ]
