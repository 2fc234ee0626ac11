"""A VF with a driver goes from one server to another: the time of it, by its context and by its parts."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from bench.measure import BenchError, Benchmark, Progress, Result, alternate
from bench.mmio import read_us
from bench.processes import make_disk, on_processor, scratch, server
from pymodel.spec import admin, context
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.owner import OwnerDriver
from vfu_client.owner.parts import DeviceParts
from vfu_client.vfio.memory import Buffer, GuestMemory
from vfu_client.virtio.function import MEMORY_SIZE, VirtioPci

VF = 1
MIB = 1 << 20
ROOM = 64 << 10
"""For a context, and for parts."""
PATIENCE = 60.0

CYCLES = 31
REPEATS = 20

CYCLE = Benchmark(
    "ctx-cycle",
    reference="one MMIO read",
    unit="us",
    better="lower",
    goal=12,
    limit="five commands are Python in servers and client, and an MMIO read is little more than two wake-ups",
)
PARTS_CYCLE = Benchmark(
    "parts-cycle",
    reference="ctx-cycle",
    unit="us",
    better="lower",
    goal=1.2,
    limit="the standard's parts are many small ones, and what they leave out is told in ours behind them",
)


@dataclass(frozen=True)
class Cycles:
    """The group of cycles."""

    benchmarks: Sequence[Benchmark] = (CYCLE, PARTS_CYCLE)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """One server for each of two hosts, both on one processor, and this process on the other."""
        with contextlib.ExitStack() as stack:
            source, destination, driver = _set_up(stack)
            buffer = driver.device.memory.allocate(ROOM)
            by_context = _ByContext(source, destination, buffer)
            _run(by_context, driver)
            if CYCLE.name in names:
                runs = []
                for number in range(CYCLES):
                    progress.step(CYCLE.name, f"run {number + 1} of {CYCLES}")
                    runs.append(_run(by_context, driver))
                yield Result(CYCLE, [ours for ours, _ in runs], [theirs for _, theirs in runs])
            if PARTS_CYCLE.name in names:
                by_parts = _ByParts(source, destination, buffer)
                _run(by_parts, driver)
                parts, contexts = alternate(
                    CYCLES,
                    lambda: _run(by_parts, driver)[0],
                    lambda: _run(by_context, driver)[0],
                    progress=progress,
                    name=PARTS_CYCLE.name,
                )
                yield Result(PARTS_CYCLE, parts, contexts)


def _set_up(stack: contextlib.ExitStack) -> tuple[OwnerDriver, OwnerDriver, BlockDriver]:
    """The owners of source and destination, and the driver of the source's VF: all with one memory."""
    memory = GuestMemory()
    memory.add_region(MEMORY_SIZE)
    folder = stack.enter_context(scratch())
    disk = make_disk(folder / "disk", MIB)
    with on_processor(1):
        for name in ("a", "b"):
            stack.enter_context(server(folder / name, "--vfs", "1", "--disk", f"vf{VF}={disk}"))
    stack.enter_context(on_processor(0))
    owners = []
    for name in ("a", "b"):
        device = VirtioPci.open(folder / name / "pf.sock", memory=memory, posted_writes=True)
        owners.append(OwnerDriver(stack.enter_context(device), timeout=PATIENCE))
    driver = stack.enter_context(BlockDriver.open(folder / "a" / f"vf{VF}.sock", memory=memory))
    stack.enter_context(VirtioPci.open(folder / "b" / f"vf{VF}.sock", memory=memory))
    driver.read(0)
    return owners[0], owners[1], driver


class _Way(Protocol):
    """How a VF goes from one server to another."""

    def prepare(self) -> None:
        """Have the destination wait."""

    def move(self) -> None:
        """What is measured: from a VF that runs to one that runs."""

    def bring_back(self) -> None:
        """Have the source run again."""


def _run(way: _Way, driver: BlockDriver) -> tuple[float, float]:
    """Microseconds of a cycle, and of an MMIO read ahead of each: the median over some of them."""
    mmio = driver.device.connection
    taken, reads = [], []
    for _ in range(REPEATS):
        way.prepare()
        reads.append(read_us(mmio, 1))
        begun = time.perf_counter_ns()
        way.move()
        taken.append(time.perf_counter_ns() - begun)
        way.bring_back()
        # So that there is something new to read, and the source is seen to work.
        driver.read(0)
    return statistics.median(taken) / 1e3, statistics.median(reads)


@dataclass(frozen=True)
class _ByContext:
    """Stop, Freeze and READ at the source, WRITE and Active at the destination."""

    source: OwnerDriver
    destination: OwnerDriver
    buffer: Buffer

    def prepare(self) -> None:
        self.destination.mode_set(VF, context.MODE_FREEZE)

    def move(self) -> None:
        size, left = self.source.freeze_and_read_into(VF, self.buffer)
        self.destination.write_and_activate(VF, self.buffer.part(0, size))
        if left:
            raise BenchError(f"{left} bytes of the context did not fit into {self.buffer.size}")

    def bring_back(self) -> None:
        self.source.context_discard(VF)
        self.source.mode_set(VF, context.MODE_ACTIVE)


class _ByParts:
    """Stop and PARTS_GET at the source, PARTS_SET and resume at the destination."""

    def __init__(self, source: OwnerDriver, destination: OwnerDriver, buffer: Buffer) -> None:
        self.source, self.destination = DeviceParts(source), DeviceParts(destination)
        self.buffer = buffer

    def prepare(self) -> None:
        self.got = self.source.create(VF, admin.DEV_PARTS_OBJ_GET)
        self.given = self.destination.create(VF, admin.DEV_PARTS_OBJ_SET)
        if self.source.size(self.got) > self.buffer.size:
            raise BenchError(f"the parts do not fit into {self.buffer.size}")
        self.destination.stop(VF)

    def move(self) -> None:
        size = self.source.stop_and_get_into(self.got, self.buffer)
        self.destination.set_and_resume(self.given, self.buffer.part(0, size))

    def bring_back(self) -> None:
        self.source.destroy(self.got)
        self.destination.destroy(self.given)
        self.source.resume(VF)
