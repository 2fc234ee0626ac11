"""Device contexts through the admin queue of a real server: large ones, and peak memory."""

from __future__ import annotations

import contextlib
import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bench.measure import BenchError, Benchmark, Progress, Result, take_turns
from bench.processes import scratch, server
from pymodel.spec import context
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import Buffer, Bytes, GuestMemory
from vfu_client.virtio.function import MEMORY_SIZE, VirtioPci

VF = 1
MIB = 1 << 20
EXTENT = 4 * MIB
"""Bytes of content in one field of the context that fills a disk."""
SLACK = MIB
"""Room for what a context has beside the disk's content."""
PATIENCE = 60.0

# Commands in a run, and pairs of runs, by MiB of content.
REPEATS = {1: 20, 64: 1, 1024: 1}
PAIRS = {1: 15, 64: 15, 1024: 3}

MOVES = 3
MOVED = 1024
PIECE = 32 * MIB

MEMCPY = "numpy's memcpy of the same bytes"


# By MiB of content. Those of the first were measured within the server.
LIMITS = {
    1: "a command that moves nothing takes twice memcpy's time; the copy 1.7 times, as Python is in the"
    " caches too, and Python behind it three times what it takes without a copy",
    64: "fixed costs of the command and of its fields beside the copy",
}


def _large(direction: str, mib: int, goal: float | None) -> Benchmark:
    size = "1GiB" if mib == 1024 else f"{mib}MiB"
    return Benchmark(
        f"ctx-{direction}-{size}",
        reference=MEMCPY,
        unit="GiB/s",
        better="higher",
        goal=goal,
        limit=LIMITS.get(mib, ""),
    )


SIZES = (1, 64, 1024)
GOALS = {1: 0.3, 64: 0.7, 1024: None}
READS = {mib: _large("read", mib, GOALS[mib]) for mib in SIZES}
WRITES = {mib: _large("write", mib, GOALS[mib]) for mib in SIZES}
PEAK = Benchmark(
    "ctx-peak-memory",
    reference="the context's content",
    unit="MiB",
    better="lower",
    goal=1.1,
    limit="what the server keeps beside the content",
)


@dataclass(frozen=True)
class Contexts:
    """The group of context benchmarks."""

    benchmarks: Sequence[Benchmark] = (*READS.values(), *WRITES.values(), PEAK)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Measure peak memory first: this process has little of its own then."""
        if PEAK.name in names:
            yield _peak(progress)
        for mib in SIZES:
            if READS[mib].name in names or WRITES[mib].name in names:
                yield from (result for result in _copies(mib, progress) if result.benchmark.name in names)


# Large contexts.


def _copies(mib: int, progress: Progress) -> Iterator[Result]:
    """READ and WRITE of a full disk in one command each, against memcpy between warm memory."""
    with _frozen(mib) as owner:
        buffer = _region(owner, mib * MIB + SLACK)
        expected = _fill(owner, mib, buffer)
        size = _read_whole(owner, buffer)
        content = buffer.part(0, size)
        first = content.view.copy()
        if size < expected:
            raise BenchError(f"the context has {size} bytes, the disk {mib} MiB")
        copy = first.copy()

        def memcpy() -> float:
            return _rate(size, REPEATS[mib], lambda: np.copyto(copy, first))

        def read() -> float:
            return _rate(
                size,
                REPEATS[mib],
                lambda: _read_whole(owner, buffer),
                between=lambda: owner.context_discard(VF),
            )

        def write() -> float:
            return _rate(size, REPEATS[mib], lambda: owner.context_write_part(VF, content))

        def mode_get() -> float:
            return _median_us(REPEATS[mib], lambda: owner.mode_get(VF))

        for benchmark, ours in ((READS[mib], read), (WRITES[mib], write)):
            progress.step(benchmark.name, "warming up")
            ours()
            left, right, least = take_turns(
                PAIRS[mib], (ours, memcpy, mode_get), progress=progress, name=benchmark.name
            )
            owner.context_discard(VF)
            if _read_whole(owner, buffer) != size or not np.array_equal(content.view, first):
                raise BenchError("the context is not what it was")
            times = {
                "ours_us": round(_us(size, statistics.median(left)), 1),
                "theirs_us": round(_us(size, statistics.median(right)), 1),
                "mode_get_us": round(statistics.median(least), 1),
            }
            note = "it takes {ours_us:.0f} us, memcpy {theirs_us:.0f}, MODE_GET {mode_get_us:.0f}"
            yield Result(benchmark, left, right, times, [note.format(**times)])


@contextlib.contextmanager
def _frozen(mib: int) -> Iterator[OwnerDriver]:
    """A server with a RAM disk, and the owner of its one VF, in Freeze."""
    with (
        scratch() as folder,
        server(folder / "ours", "--vfs", "1", "--disk", f"vf{VF}=ram:{mib}M"),
        OwnerDriver.open(folder / "ours" / "pf.sock", timeout=PATIENCE, posted_writes=True) as owner,
    ):
        owner.mode_set(VF, context.MODE_FREEZE)
        yield owner


def _region(owner: OwnerDriver, size: int) -> Buffer:
    """DMA memory with every page touched."""
    region = owner.device.memory.add_region(size, allocatable=False)
    region.view[:] = 0
    return owner.device.memory.buffer(region.address, region.size)


def _fill(owner: OwnerDriver, mib: int, stage: Buffer) -> int:
    """Fill the frozen VF's disk with what does not compress, piece by piece; returns the bytes of content."""
    block = np.random.default_rng(mib).integers(0, 256, min(EXTENT, mib * MIB), np.uint8)
    offset = 0

    def field(kind: int, length: int = 0) -> Bytes:
        return np.frombuffer(np.array((kind, 0, length), context.FIELD).tobytes(), np.uint8)

    def write(*parts: Bytes) -> None:
        at = 0
        for part in parts:
            stage.view[at : at + part.size] = part
            at += part.size
        owner.context_write_part(VF, stage.part(0, at))

    write(field(context.START_MARKER))
    while offset < mib * MIB:
        block[:8] = np.frombuffer(offset.to_bytes(8, "little"), np.uint8)
        header = np.frombuffer(np.array((offset,), context.BLK_EXTENT_HEADER).tobytes(), np.uint8)
        write(field(context.BLK_EXTENT, header.size + block.size), header, block)
        offset += block.size
    write(field(context.END_MARKER))
    return offset


def _read_whole(owner: OwnerDriver, buffer: Buffer) -> int:
    size, left = owner.context_read_into(VF, buffer)
    if left:
        raise BenchError(f"{left} bytes of the context did not fit into {buffer.size}")
    return size


def _rate(
    size: int, repeats: int, work: Callable[[], object], *, between: Callable[[], object] | None = None
) -> float:
    """GiB/s of `work` on `size` bytes: the median over some repeats."""
    return _us(size, _median_us(repeats, work, between=between))


def _us(size: int, rate: float) -> float:
    """Microseconds for `size` bytes at a rate in GiB/s, and the other way round."""
    return size / (1 << 30) / rate * 1e6


def _median_us(
    repeats: int, work: Callable[[], object], *, between: Callable[[], object] | None = None
) -> float:
    """Microseconds that `work` takes: the median over some repeats."""
    taken = []
    for _ in range(repeats):
        if between is not None:
            between()
        begun = time.perf_counter_ns()
        work()
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1e3


# Peak memory.


def _peak(progress: Progress) -> Result:
    """Move a full disk in pieces to a server that is new each time."""
    ours: list[float] = []
    sides: dict[str, list[float]] = {"source": [], "destination": [], "owner": []}
    for run in range(MOVES):
        progress.step(PEAK.name, f"run {run + 1} of {MOVES}")
        above = _move()
        ours.append(max(above.values()))
        for side, value in above.items():
            sides[side].append(value)
    extra = {f"{side}_mib": round(statistics.median(values), 1) for side, values in sides.items()}
    return Result(PEAK, ours, [float(MOVED)] * MOVES, extra)


def _move() -> dict[str, float]:
    """MiB above idle that each process took at most."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(scratch())
        processes: dict[str, int] = {}
        owners = []
        memory = GuestMemory()
        memory.add_region(MEMORY_SIZE)
        for name in ("source", "destination"):
            process = stack.enter_context(
                server(folder / name, "--vfs", "1", "--disk", f"vf{VF}=ram:{MOVED}M")
            )
            processes[name] = process.pid
            device = stack.enter_context(VirtioPci.open(folder / name / "pf.sock", memory=memory))
            owners.append(OwnerDriver(device, timeout=PATIENCE))
            owners[-1].mode_set(VF, context.MODE_FREEZE)
        source, destination = owners
        stage = memory.allocate(EXTENT + SLACK, 4096)
        expected = _fill(source, MOVED, stage)
        memory.free(stage)
        processes["owner"] = os.getpid()
        idle = {name: _forget_peak(pid) for name, pid in processes.items()}
        region = memory.add_region(PIECE, allocatable=False)
        buffer = memory.buffer(region.address, region.size)
        moved, left = 0, 1
        while left:
            size, left = source.context_read_into(VF, buffer)
            destination.context_write_part(VF, buffer.part(0, size))
            moved += size
        if moved < expected:
            raise BenchError(f"the context has {moved} bytes, the disk {MOVED} MiB")
        return {name: (_memory(pid, "VmHWM") - idle[name]) / MIB for name, pid in processes.items()}


def _forget_peak(pid: int) -> int:
    """Have the peak begin with what the process holds now, and return that (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")
    return _memory(pid, "VmRSS")


def _memory(pid: int, name: str) -> int:
    """A figure of /proc/PID/status in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) << 10
    raise BenchError(f"/proc/{pid}/status has no {name}")
