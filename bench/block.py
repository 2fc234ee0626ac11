"""Disk requests from a guest: our VF against QEMU's virtio-blk-pci, on the same file, in the same guest."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Benchmark, Progress, Result, alternate
from bench.processes import make_disk, scratch, server, vfio_user
from images.machine import Machine

PAIRS = 7
SECONDS = 1
DISK_SIZE = 64 << 20
GOAL = 0.8

REFERENCE = "QEMU's virtio-blk-pci on the same file in the same guest"

_LATENCY = (
    "the way of one request: a message that wakes the server for the kick, an eventfd that wakes QEMU for "
    "the interrupt, seven system calls between them, and Python that takes as long as all that"
)
_DEPTH = (
    "Python's work for each request (ring, chain, views, file call): the guest waits for it, on one thread"
)


@dataclass(frozen=True)
class Case:
    """What blkbench is told."""

    benchmark: Benchmark
    kind: str
    block: int
    depth: int


def _case(name: str, kind: str, block: int, depth: int) -> Case:
    limit = _LATENCY if depth == 1 else _DEPTH
    return Case(Benchmark(name, REFERENCE, "IOPS", "higher", GOAL, limit), kind, block, depth)


CASES = (
    _case("blk-4k-read-qd1", "randread", 4096, 1),
    _case("blk-4k-write-qd1", "randwrite", 4096, 1),
    _case("blk-4k-read-qd32", "randread", 4096, 32),
    _case("blk-4k-write-qd32", "randwrite", 4096, 32),
    _case("blk-64k-read", "randread", 65536, 1),
    _case("blk-64k-write", "randwrite", 65536, 1),
    _case("blk-64k-read-qd32", "randread", 65536, 32),
    _case("blk-64k-write-qd32", "randwrite", 65536, 32),
)


@dataclass(frozen=True)
class Block:
    """The group of disk benchmarks: one guest with both devices."""

    benchmarks: Sequence[Benchmark] = field(default=tuple(case.benchmark for case in CASES))

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Boot once, then take the cases in turn."""
        wanted = [case for case in CASES if case.benchmark.name in names]
        progress.step(wanted[0].benchmark.name, "booting the guest")
        with scratch() as folder:
            disk = make_disk(folder / "disk.raw", DISK_SIZE)
            socket = folder / "s" / "vf1.sock"
            with (
                server(folder / "s", "--vfs", "1", "--disk", f"vf1={disk}"),
                Machine(devices=[vfio_user(socket), QEMU_BLOCK], arguments=drive(disk)) as guest,
            ):
                guest.wait_ready()
                ours, theirs = block_device(guest, 0), block_device(guest, 1)
                for device in (ours, theirs):
                    guest.check(f"blkbench --device {device} --rw randread --count 200")
                for case in wanted:
                    yield _measure(guest, case, ours, theirs, progress)


def _measure(guest: Machine, case: Case, ours: str, theirs: str, progress: Progress) -> Result:
    left, right = alternate(
        PAIRS,
        lambda: blkbench(guest, case, ours),
        lambda: blkbench(guest, case, theirs),
        progress=progress,
        name=case.benchmark.name,
    )
    return Result(
        case.benchmark,
        [float(run["iops"]) for run in left],
        [float(run["iops"]) for run in right],
        {"ours_p50_us": _median_latency(left), "theirs_p50_us": _median_latency(right)},
    )


def _median_latency(runs: Sequence[dict[str, Any]]) -> float:
    return statistics.median(float(run["latency_us"]["p50"]) for run in runs)


def blkbench(guest: Machine, case: Case, device: str) -> dict[str, Any]:
    """One run in the guest. Raises MachineError when a request failed."""
    line = guest.check(
        f"blkbench --device {device} --rw {case.kind} --block {case.block} --depth {case.depth} "
        f"--duration {SECONDS}"
    )
    found: dict[str, Any] = json.loads(line.splitlines()[-1])
    return found


QEMU_BLOCK: dict[str, Any] = {"driver": "virtio-blk-pci", "id": "theirs", "drive": "reference"}


def drive(disk: Path) -> list[str]:
    """QEMU's arguments for the reference's disk: through the page cache, as our server's, and not locked."""
    options = {"driver": "file", "filename": str(disk), "locking": "off"}
    return ["-blockdev", json.dumps({"driver": "raw", "node-name": "reference", "file": options})]


def block_device(guest: Machine, port: int) -> str:
    """The guest's name of the disk behind a root port."""
    found = guest.check(f"ls /sys/bus/pci/devices/0000:{port + 1:02x}:00.0/virtio*/block").split()
    if not found:
        raise BenchError(f"the guest has no disk behind root port {port}")
    return f"/dev/{found[-1]}"
