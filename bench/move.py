"""How long a guest stands still while it is moved: our move, of a guest with a VF, against QEMU's own.

Both guests are alike, and write and verify on their disk all the time. Each is booted once and then moved to
and fro, in turn with the other.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from bench.block import QEMU_BLOCK, block_device, drive
from bench.measure import BenchError, Benchmark, Progress, Result, alternate
from bench.processes import make_disk, scratch, server, vfio_user
from vfu_client.move.move import DOWNTIME_LIMIT_MS, MAX_BANDWIDTH, Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.qemu import Qemu
from vfu_client.move.ram_channel import UnixChannel
from vfu_client.move.side import Side
from vfu_images.machine import Machine

PAIRS = 5
DISK_SIZE = 32 << 20
IO = "--length 16M --depth 4"
IO_SECONDS = 0.7
MOVE_SECONDS = 60.0

DOWNTIME = Benchmark(
    "move-downtime",
    reference="QEMU's own migration of the same guest with virtio-blk-pci, within the same limits",
    unit="ms",
    better="lower",
    goal=0.9,
    limit="the image's last flush while the VF stops, and the context's steps beside the end of RAM",
)


@dataclass(frozen=True)
class Moved:
    """One move: how long the guest stood still; beside that, the longest gap in its disk's answers."""

    stopped_ms: float
    guest_gap_ms: float
    qemu_says_ms: float | None = None


class Guest:
    """A guest that is moved from one machine to the next; `machine` is where it is."""

    def __init__(self, folder: Path, disk: Path) -> None:
        self.folder = folder
        self.disk = disk
        self.machine: Machine
        self._moves = 0
        self._machines: list[Machine] = []

    def __enter__(self) -> Self:
        self.machine = self._start(incoming=False)
        try:
            self.machine.wait_ready()
            self.device = block_device(self.machine, 0)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """End every QEMU of this guest."""
        while self._machines:
            self._machines.pop().close()

    def moved(self) -> Moved:
        """Move it, while it writes and verifies. Raises BenchError when what it read was wrong."""
        self._moves += 1
        job = self.machine.start(f"ioverify --device {self.device} {IO}")
        time.sleep(IO_SECONDS)
        source, destination = self.machine, self._start(incoming=True)
        begun = time.time()
        said = self.move(source, destination)
        stopped = _time_of(source, "STOP", begun)
        resumed = _time_of(destination, "RESUME", begun)
        self._machines.remove(source)
        source.close()
        self.machine = destination
        job = job.moved(destination.check)
        time.sleep(IO_SECONDS)
        job.stop()
        ended = job.wait()
        report: dict[str, Any] = json.loads(ended.output.splitlines()[-1])
        if ended.status or report["lost"] or report["corrupt"]:
            raise BenchError(f"the guest's disk was not whole after the move: {report}")
        return Moved((resumed - stopped) * 1e3, float(report["longest_gap_ms"]), said)

    def move(self, source: Machine, destination: Machine) -> float | None:
        """Make the move; what QEMU says of the downtime, in ms, if it says anything."""
        raise NotImplementedError

    def _start(self, *, incoming: bool) -> Machine:
        """A machine for this guest, new or as the target of a move."""
        machine = self.make(incoming=incoming)
        machine.__enter__()
        self._machines.append(machine)
        return machine

    def make(self, *, incoming: bool) -> Machine:
        """A machine with the guest's disk."""
        raise NotImplementedError


class GuestOfQemu(Guest):
    """With QEMU's virtio-blk-pci."""

    def make(self, *, incoming: bool) -> Machine:
        return Machine(devices=[QEMU_BLOCK], arguments=drive(self.disk), incoming=incoming)

    def move(self, source: Machine, destination: Machine) -> float | None:
        uri = f"unix:{self.folder / f'ram{self._moves}.sock'}"
        limits = {"max-bandwidth": MAX_BANDWIDTH, "downtime-limit": DOWNTIME_LIMIT_MS}
        source.qmp("migrate-set-parameters", limits)
        destination.qmp("migrate-incoming", {"uri": uri})
        source.qmp("migrate", {"uri": uri})
        deadline = time.monotonic() + MOVE_SECONDS
        while True:
            state = source.qmp("query-migrate")
            if state["status"] == "completed":
                return float(state["downtime"])
            if state["status"] == "failed" or time.monotonic() > deadline:
                raise BenchError(f"QEMU's migration: {state}")
            time.sleep(0.05)


class GuestOfOurs(Guest):
    """With a VF, which goes from one server to another."""

    def make(self, *, incoming: bool) -> Machine:
        socket = self._server(self._moves) / "vf1.sock"
        return Machine(devices=[vfio_user(socket)], incoming=incoming)

    def _server(self, number: int) -> Path:
        return self.folder / f"server{number % 2}"

    def move(self, source: Machine, destination: Machine) -> float | None:
        asyncio.run(self._move(source, destination))
        return None

    async def _move(self, source: Machine, destination: Machine) -> None:
        here = self._side("source", source, self._moves - 1)
        there = self._side("destination", destination, self._moves)
        socket = self.folder / f"ram{self._moves}.sock"
        await Move(here, there, [MovedVf(Vf(1), Vf(1))], ram=UnixChannel(socket)).run()

    def _side(self, name: str, machine: Machine, number: int) -> Side:
        return Side(name, Qemu(name, machine.qmp_path, machine.qtest_path), {"": self._server(number)})


@dataclass(frozen=True)
class MoveDowntime:
    """The group of moves."""

    benchmarks: Sequence[Benchmark] = (DOWNTIME,)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Boot both guests, then move them in turn."""
        progress.step(DOWNTIME.name, "booting the guests")
        with contextlib.ExitStack() as started:
            folder = started.enter_context(scratch())
            disks = [make_disk(folder / f"{name}.raw", DISK_SIZE) for name in ("ours", "theirs")]
            for number in (0, 1):
                options = ("--vfs", "1", "--disk", f"vf1={disks[0]}")
                started.enter_context(server(folder / f"server{number}", *options))
            ours = started.enter_context(GuestOfOurs(folder, disks[0]))
            theirs = started.enter_context(GuestOfQemu(folder, disks[1]))
            left, right = alternate(PAIRS, ours.moved, theirs.moved, progress=progress, name=DOWNTIME.name)
        yield _result(left, right)


def _result(ours: Sequence[Moved], theirs: Sequence[Moved]) -> Result:
    extra = {
        "ours_guest_gap_ms": [round(move.guest_gap_ms, 3) for move in ours],
        "theirs_guest_gap_ms": [round(move.guest_gap_ms, 3) for move in theirs],
        "theirs_downtime_by_query_migrate_ms": [move.qemu_says_ms for move in theirs],
    }
    return Result(DOWNTIME, [move.stopped_ms for move in ours], [move.stopped_ms for move in theirs], extra)


def _time_of(machine: Machine, event: str, begun: float) -> float:
    """When QEMU emitted the first such event since then, in seconds; both QEMUs read the same clock."""
    while True:
        stamp = machine.wait_event(event)["timestamp"]
        found = float(stamp["seconds"]) + float(stamp["microseconds"]) / 1e6
        if found >= begun:
            return found
