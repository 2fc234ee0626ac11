"""Disk requests from a guest: our VF against two devices of QEMU, on the same file, in the same guest."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Benchmark, NotPossibleError, Progress, Result, p50_entries, take_turns
from bench.processes import make_disk, running, scratch, server, vfio_user
from vfu_images.machine import Machine
from vfu_images.workspace import IMAGES

ROUNDS = 5
SECONDS = 1
WARM_UP = 200
DISK_SIZE = 64 << 20
GOAL = 1.0
P50_GOAL = 1.0
"""The most that the median latency may be, as a multiple of the reference's, with one request in flight."""

SEQUENTIAL_BLOCK = 256 << 10
SEQUENTIAL_DEPTH = 8
QUEUE_SIZE = 256
HUGE_PAGES = 1
"""Pages of 2 MiB that the guest keeps for blkbench: all that is in flight at once."""

REFERENCE = "QEMU's virtio-blk-pci on the same file in the same guest"
VHOST_REFERENCE = (
    "qemu-storage-daemon's vhost-user-blk export of the same file, as vhost-user-blk-pci in the same guest"
)
VHOST_SUFFIX = "-vs-vhost-user"

DAEMON = IMAGES / "qemu-storage-daemon"

_LATENCY = (
    "the way of one request: a message that wakes the server for the kick, an eventfd that wakes QEMU for "
    "the interrupt, and five system calls in the server, where QEMU's own device has no other process to wake"
)
_DEPTH = "a write is copied before it is made where the file system can't tell that it need not wait (ext4)"
_SEQUENTIAL = f"{_DEPTH}: some 20 us of the server for 256 KiB, with both copies"


@dataclass(frozen=True)
class Case:
    """What blkbench is told, and the benchmarks that come of it: against QEMU's device, and vhost-user's."""

    benchmark: Benchmark
    kind: str
    block: int
    depth: int

    @property
    def against_vhost(self) -> Benchmark:
        """The same against the storage daemon."""
        name = self.benchmark.name + VHOST_SUFFIX
        return replace(self.benchmark, name=name, reference=VHOST_REFERENCE)

    @property
    def figure(self) -> str:
        """Which of blkbench's figures counts."""
        return "iops" if self.kind.startswith("rand") else "mib_per_s"


def _case(name: str, kind: str, block: int, depth: int) -> Case:
    limit = _LATENCY if depth == 1 else _DEPTH
    return Case(Benchmark(name, REFERENCE, "IOPS", "higher", GOAL, limit), kind, block, depth)


def _sequential(name: str, kind: str) -> Case:
    benchmark = Benchmark(name, REFERENCE, "MiB/s", "higher", GOAL, _SEQUENTIAL)
    return Case(benchmark, kind, SEQUENTIAL_BLOCK, SEQUENTIAL_DEPTH)


CASES = (
    _case("blk-4k-read-qd1", "randread", 4096, 1),
    _case("blk-4k-write-qd1", "randwrite", 4096, 1),
    _case("blk-4k-randread-qd32", "randread", 4096, 32),
    _case("blk-4k-randwrite-qd32", "randwrite", 4096, 32),
    _case("blk-64k-read", "randread", 65536, 1),
    _case("blk-64k-write", "randwrite", 65536, 1),
    _case("blk-64k-read-qd32", "randread", 65536, 32),
    _case("blk-64k-write-qd32", "randwrite", 65536, 32),
    _sequential("blk-seq-read", "read"),
    _sequential("blk-seq-write", "write"),
)


@dataclass(frozen=True)
class Block:
    """The group of disk benchmarks: one guest with all three devices."""

    benchmarks: Sequence[Benchmark] = field(
        default=tuple(benchmark for case in CASES for benchmark in (case.benchmark, case.against_vhost))
    )

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Boot once, then take the cases in turn. Raises NotPossibleError after all that is possible."""
        possible = names if DAEMON.exists() else [name for name in names if not name.endswith(VHOST_SUFFIX)]
        if possible:
            progress.step(possible[0], "booting the guest")
            against_daemon = any(name.endswith(VHOST_SUFFIX) for name in possible)
            with scratch() as folder, disks_in_guest(folder, with_daemon=against_daemon) as disks:
                for case in CASES:
                    if {case.benchmark.name, case.against_vhost.name} & set(possible):
                        yield from _measure(disks, case, possible, progress)
        if len(possible) < len(names):
            raise daemon_missing()


@dataclass(frozen=True)
class Disks:
    """A guest that has the same file as a disk several times, the guest's names of them, and who serves them.

    `vhost` and `daemon` are missing where nothing is against them.
    """

    guest: Machine
    ours: str
    theirs: str
    vhost: str | None
    server: subprocess.Popen[bytes]
    daemon: subprocess.Popen[bytes] | None


@contextlib.contextmanager
def disks_in_guest(folder: Path, *, with_daemon: bool) -> Iterator[Disks]:
    """A guest with ours, QEMU's and, if asked for, the storage daemon's disk, each warm."""
    disk = make_disk(folder / "disk.raw", DISK_SIZE)
    devices = [vfio_user(folder / "s" / "vf1.sock"), QEMU_BLOCK]
    arguments = drive(disk)
    with contextlib.ExitStack() as started:
        serving = started.enter_context(server(folder / "s", "--vfs", "1", "--disk", f"vf1={disk}"))
        daemon = None
        if with_daemon:
            socket = folder / "vhost.sock"
            daemon = started.enter_context(storage_daemon(socket, disk))
            devices.append(VHOST_BLOCK)
            arguments += ["-chardev", f"socket,id=daemon,path={socket}"]
        guest = started.enter_context(Machine(devices=devices, arguments=arguments))
        guest.wait_ready()
        guest.check(f"echo {HUGE_PAGES} > /proc/sys/vm/nr_hugepages")
        names = [block_device(guest, port) for port in range(len(devices))]
        for name in names:
            guest.check(f"blkbench --device {name} --rw randread --count {WARM_UP}")
        yield Disks(guest, names[0], names[1], names[2] if daemon else None, serving, daemon)


def daemon_missing() -> NotPossibleError:
    """For a machine without the storage daemon."""
    return NotPossibleError(
        f"{DAEMON.name} is missing: install qemu-utils, then run `python3 -m images all` again"
    )


def _measure(disks: Disks, case: Case, names: Sequence[str], progress: Progress) -> Iterator[Result]:
    """Those of a case's two results that are asked for. Ours runs between the two references."""
    references = (disks.theirs, disks.vhost)
    wanted = [
        (benchmark, disk)
        for benchmark, disk in zip((case.benchmark, case.against_vhost), references, strict=True)
        if benchmark.name in names and disk is not None
    ]
    order = [wanted[0][1], disks.ours, *(disk for _, disk in wanted[1:])]
    taken = take_turns(
        ROUNDS,
        [partial(blkbench, disks.guest, case, disk) for disk in order],
        progress=progress,
        name=wanted[0][0].name,
    )
    runs = dict(zip(order, taken, strict=True))
    for benchmark, disk in wanted:
        yield _result(case, benchmark, runs[disks.ours], runs[disk])


def _result(
    case: Case, benchmark: Benchmark, ours: Sequence[dict[str, Any]], theirs: Sequence[dict[str, Any]]
) -> Result:
    extra = p50_entries(ours, theirs)
    notes = []
    if case.depth == 1:
        ratio = extra["p50_ratio"]
        extra["p50_goal"] = P50_GOAL
        missed = ", missed" if ratio > P50_GOAL else ""
        notes.append(f"median latency {ratio:.3f} of the reference's (goal: at most {P50_GOAL:g}{missed})")
    return Result(
        benchmark,
        [float(run[case.figure]) for run in ours],
        [float(run[case.figure]) for run in theirs],
        extra,
        notes,
    )


def blkbench(guest: Machine, case: Case, device: str, *, requests: int | None = None) -> dict[str, Any]:
    """One run in the guest, of so many requests or SECONDS. Raises MachineError when a request failed."""
    end = f"--duration {SECONDS}" if requests is None else f"--count {requests}"
    line = guest.check(
        f"blkbench --device {device} --rw {case.kind} --block {case.block} --depth {case.depth} {end}"
        " --huge-pages"
    )
    found: dict[str, Any] = json.loads(line.splitlines()[-1])
    return found


QEMU_BLOCK: dict[str, Any] = {"driver": "virtio-blk-pci", "id": "theirs", "drive": "reference"}
VHOST_BLOCK: dict[str, Any] = {
    "driver": "vhost-user-blk-pci",
    "id": "vhost",
    "chardev": "daemon",
    "num-queues": 1,
    "queue-size": QUEUE_SIZE,
}


def drive(disk: Path) -> list[str]:
    """QEMU's arguments for the reference's disk."""
    return ["-blockdev", json.dumps(_node(disk))]


def _node(disk: Path) -> dict[str, Any]:
    """QEMU's block node for a raw file: through the page cache, as our server's, and not locked."""
    options = {"driver": "file", "filename": str(disk), "locking": "off"}
    return {"driver": "raw", "node-name": "reference", "file": options}


@contextlib.contextmanager
def storage_daemon(socket: Path, disk: Path) -> Iterator[subprocess.Popen[bytes]]:
    """qemu-storage-daemon with a vhost-user-blk export of the file at `socket`."""
    address = {"type": "unix", "path": str(socket)}
    export = {"type": "vhost-user-blk", "id": "export", "node-name": "reference", "writable": True}
    command = [str(DAEMON), "--chardev", "stdio,id=monitor", "--monitor", "monitor"]
    command += ["--blockdev", json.dumps(_node(disk)), "--export", json.dumps({**export, "addr": address})]
    # It greets on its monitor when all is there.
    with running(command, socket.with_suffix(".log"), ready='{"QMP"') as process:
        yield process


def block_device(guest: Machine, port: int) -> str:
    """The guest's name of the disk behind a root port."""
    found = guest.check(f"ls /sys/bus/pci/devices/0000:{port + 1:02x}:00.0/virtio*/block").split()
    if not found:
        raise BenchError(f"the guest has no disk behind root port {port}")
    return f"/dev/{found[-1]}"
