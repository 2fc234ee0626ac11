"""TCP between two guests: VFs at one server's switch, against QEMU's virtio-net-pci joined by a socket."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.measure import Benchmark, Progress, Result, alternate
from bench.network import GOAL, PORT, give_address, netbench
from bench.processes import scratch, server, vfio_user
from vfu_images.machine import Machine

ROUNDS = 5

OURS = ("198.18.1.1", "198.18.1.2")
THEIRS = ("198.18.2.1", "198.18.2.2")
"""The two guests' addresses: a network for each pair of interfaces."""

STREAM = Benchmark(
    "net-vf-to-vf",
    reference="QEMU's virtio-net-pci in the same two guests, joined by -netdev stream",
    unit="MiB/s",
    better="higher",
    goal=GOAL,
    limit="the way of a frame through the switch: two threads of the server, each with a wake-up and a copy",
)


@dataclass(frozen=True)
class BetweenVfs:
    """The group of networks between guests."""

    benchmarks: Sequence[Benchmark] = (STREAM,)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Boot two guests, and have the second send to the first."""
        progress.step(STREAM.name, "booting the guests")
        with scratch() as folder, _guests(folder) as (receiver, sender):
            receiver.start(f"netbench serve --port {PORT}")
            receiver.check(f"while ! grep -q ':{PORT:04X} ' /proc/net/tcp; do :; done")
            # Once that does not count: both ends know the other's address then.
            for address in (OURS[0], THEIRS[0]):
                netbench(sender, "stream", address)
            ours, theirs = alternate(
                ROUNDS,
                lambda: _mib_per_s(sender, OURS[0]),
                lambda: _mib_per_s(sender, THEIRS[0]),
                progress=progress,
                name=STREAM.name,
            )
        yield Result(STREAM, ours, theirs)


@contextlib.contextmanager
def _guests(folder: Path) -> Iterator[tuple[Machine, Machine]]:
    """Two guests, each with a VF and a network card of QEMU's, all up."""
    wire = folder / "wire.sock"
    with contextlib.ExitStack() as started:
        started.enter_context(server(folder / "s", "--vfs", "2", "--net", "switch", device="net"))
        # The first one listens, and all is there before the second starts.
        machines = [
            started.enter_context(_machine(folder / "s" / f"vf{number}.sock", number, wire))
            for number in (1, 2)
        ]
        for machine, ours, theirs in zip(machines, OURS, THEIRS, strict=True):
            machine.wait_ready()
            give_address(machine, 0, f"{ours}/24")
            give_address(machine, 1, f"{theirs}/24")
        yield machines[0], machines[1]


def _machine(socket: Path, number: int, wire: Path) -> Machine:
    """A guest that is not started yet."""
    end = {"type": "stream", "id": "wire", "server": number == 1, "addr": {"type": "unix", "path": str(wire)}}
    card: dict[str, Any] = {"driver": "virtio-net-pci", "id": "theirs", "netdev": "wire", "romfile": ""}
    card["mac"] = f"52:54:00:12:34:{number:02x}"
    return Machine(devices=[vfio_user(socket), card], arguments=["-netdev", json.dumps(end)])


def _mib_per_s(sender: Machine, address: str) -> float:
    """What the receiving guest has read."""
    return float(netbench(sender, "stream", address)["mib_per_s"])
