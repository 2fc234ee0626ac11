"""TCP from a guest: our VF against QEMU's virtio-net-pci, each on a tap interface, in the same guest."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from bench.measure import BenchError, Benchmark, Progress, Result, alternate, p50_entries
from bench.namespace import Tap, namespace
from bench.processes import running, scratch, server, vfio_user
from vfu_images.machine import Machine
from vfu_images.workspace import IMAGES

ROUNDS = 5
SECONDS = 1
PATIENCE_SECONDS = 30
PORT = 5201
GOAL = 1.0

OURS = Tap("ours", "198.18.1.1", "198.18.1.2")
THEIRS = Tap("theirs", "198.18.2.1", "198.18.2.2")
"""A network each, of the range for benchmarks (RFC 2544); the host's end is reached by its tap only."""

REFERENCE = "QEMU's virtio-net-pci on a tap interface of the same kind in the same guest"
NETBENCH = IMAGES / "netbench"

_STREAM = (
    "the driver has Linux map each buffer, as a device with ACCESS_PLATFORM asks for: against QEMU's own "
    "with iommu_platform=on it is 0.97 to 1.0; and there is a process more to share the processors"
)
_REQUEST = (
    "the way of one frame there and one back: a message that wakes the server for the kick, an eventfd that "
    "wakes QEMU for the interrupt, and some 28 us of the server, where QEMU's own device wakes nobody else"
)


@dataclass(frozen=True)
class Case:
    """What netbench is told, and which of its figures counts."""

    benchmark: Benchmark
    command: str
    figure: str


def _stream(name: str, options: str) -> Case:
    benchmark = Benchmark(name, REFERENCE, "MiB/s", "higher", GOAL, _STREAM)
    return Case(benchmark, f"stream{options}", "mib_per_s")


CASES = (
    _stream("net-stream-tx", ""),
    _stream("net-stream-rx", " --reverse"),
    Case(Benchmark("net-rr", REFERENCE, "per s", "higher", GOAL, _REQUEST), "request", "per_s"),
)


@dataclass(frozen=True)
class Network:
    """The group of network benchmarks: one guest with both devices, in a network namespace."""

    benchmarks: Sequence[Benchmark] = field(default=tuple(case.benchmark for case in CASES))

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Boot once, then take the cases in turn. Raises NotPossibleError where `namespace` does."""
        wanted = [case for case in CASES if case.benchmark.name in names]
        progress.step(wanted[0].benchmark.name, "booting the guest")
        with scratch() as folder, _guest(folder) as guest:
            for case in wanted:
                yield _measure(guest, case, progress)


@contextlib.contextmanager
def _guest(folder: Path) -> Iterator[Machine]:
    """A guest with both interfaces up, and the other end of both networks."""
    if not NETBENCH.exists():
        raise BenchError(f"{NETBENCH.name} is missing: `python3 -m images guest` makes it")
    devices = [vfio_user(folder / "s" / "vf1.sock"), QEMU_NET]
    with contextlib.ExitStack() as started:
        within = started.enter_context(namespace(folder, (OURS, THEIRS)))
        options = ("--vfs", "1", "--net", f"vf1=tap:{OURS.name}")
        started.enter_context(server(folder / "s", *options, device="net", within=within))
        started.enter_context(_other_end(folder, within))
        guest = started.enter_context(Machine(devices=devices, arguments=NETDEV, within=within))
        guest.wait_ready()
        for port, tap in enumerate((OURS, THEIRS)):
            give_address(guest, port, f"{tap.guest}/{tap.prefix}")
            guest.check(f"netbench request --address {tap.address} --port {PORT} --seconds 1")
        yield guest


@contextlib.contextmanager
def _other_end(folder: Path, within: Sequence[str]) -> Iterator[None]:
    """The host's netbench, which answers what the guest's asks for."""
    # It listens long before a guest has booted.
    listening = f"echo ready; exec {NETBENCH} serve --port {PORT}"
    with running(["sh", "-c", listening], folder / "netbench.log", within=within):
        yield


def _measure(guest: Machine, case: Case, progress: Progress) -> Result:
    ours, theirs = alternate(
        ROUNDS,
        partial(netbench, guest, case.command, OURS.address),
        partial(netbench, guest, case.command, THEIRS.address),
        progress=progress,
        name=case.benchmark.name,
    )
    return Result(
        case.benchmark,
        [float(run[case.figure]) for run in ours],
        [float(run[case.figure]) for run in theirs],
        p50_entries(ours, theirs) if "latency_us" in ours[0] else {},
    )


def netbench(guest: Machine, command: str, address: str) -> dict[str, Any]:
    """One run in the guest. Raises MachineError when a connection failed."""
    line = guest.check(
        f"netbench {command} --address {address} --port {PORT} --seconds {SECONDS}",
        timeout=SECONDS + PATIENCE_SECONDS,
    )
    found: dict[str, Any] = json.loads(line.splitlines()[-1])
    return found


QEMU_NET: dict[str, Any] = {"driver": "virtio-net-pci", "id": "theirs", "netdev": "reference", "romfile": ""}
NETDEV = [
    "-netdev",
    f"tap,id=reference,ifname={THEIRS.name},script=no,downscript=no,vhost=off",
]


def give_address(guest: Machine, port: int, address: str) -> None:
    """Set up the interface behind a root port, with an address and its prefix."""
    found = guest.check(f"ls /sys/bus/pci/devices/0000:{port + 1:02x}:00.0/virtio*/net").split()
    if not found:
        raise BenchError(f"the guest has no interface behind root port {port}")
    guest.check(f"ip address add {address} dev {found[-1]} && ip link set {found[-1]} up")
