"""Processor time of a disk request from a guest: in our server, against that in QEMU's storage daemon."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial

from bench.block import (
    DAEMON,
    SEQUENTIAL_BLOCK,
    SEQUENTIAL_DEPTH,
    Case,
    Disks,
    blkbench,
    daemon_missing,
    disks_in_guest,
)
from bench.measure import Benchmark, Progress, Result, alternate
from bench.processes import cpu_seconds, scratch

ROUNDS = 5
REQUESTS = {1: 3000, 32: 12000, SEQUENTIAL_DEPTH: 1000}
"""In a run, by how many are in flight."""

REFERENCE = "that of qemu-storage-daemon's vhost-user-blk export for the same requests of the same guest"


def _case(name: str, kind: str, block: int, depth: int) -> Case:
    return Case(Benchmark(f"cpu-{name}", REFERENCE, "us", "lower"), kind, block, depth)


CASES = (
    _case("4k-read-qd1", "randread", 4096, 1),
    _case("4k-write-qd1", "randwrite", 4096, 1),
    _case("4k-randread-qd32", "randread", 4096, 32),
    _case("4k-randwrite-qd32", "randwrite", 4096, 32),
    _case("seq-read", "read", SEQUENTIAL_BLOCK, SEQUENTIAL_DEPTH),
    _case("seq-write", "write", SEQUENTIAL_BLOCK, SEQUENTIAL_DEPTH),
)


@dataclass(frozen=True)
class Cpu:
    """The group of processor times: one guest with the two disks."""

    benchmarks: Sequence[Benchmark] = field(default=tuple(case.benchmark for case in CASES))

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Boot once, then take the cases in turn. Raises NotPossibleError without the storage daemon."""
        if not DAEMON.exists():
            raise daemon_missing()
        wanted = [case for case in CASES if case.benchmark.name in names]
        progress.step(wanted[0].benchmark.name, "booting the guest")
        with scratch() as folder, disks_in_guest(folder, with_daemon=True) as disks:
            assert disks.vhost is not None
            assert disks.daemon is not None
            for case in wanted:
                ours, theirs = alternate(
                    ROUNDS,
                    partial(_request_us, disks, case, disks.ours, disks.server),
                    partial(_request_us, disks, case, disks.vhost, disks.daemon),
                    progress=progress,
                    name=case.benchmark.name,
                )
                yield Result(case.benchmark, ours, theirs)


def _request_us(disks: Disks, case: Case, disk: str, process: subprocess.Popen[bytes]) -> float:
    """Microseconds of a processor that the process had for each request of a run."""
    begun = cpu_seconds(process)
    run = blkbench(disks.guest, case, disk, requests=REQUESTS[case.depth])
    return (cpu_seconds(process) - begun) / int(run["requests"]) * 1e6
