"""A guest whose VFs are VFIO's, and what it does with them (images/guest/vfiomove.c)."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any, Final

from tests.guest.sriov.guest_sriov import Owned
from vfu_images.machine import Machine

DRIVER: Final = "virtio_vfio_pci"
STREAM: Final = "/tmp/stream"


@dataclass(frozen=True)
class Report:
    """What vfiomove told: each step, those that it refused, and the figures at its end."""

    start: dict[str, Any]
    steps: list[dict[str, Any]]
    done: dict[str, Any]

    @property
    def refusals(self) -> list[tuple[str, str, str]]:
        """Step, what of it was refused, and the error."""
        return [(step["step"], step["by"], step["failed"]) for step in self.steps if step["failed"]]

    def step(self, name: str) -> list[dict[str, Any]]:
        """All steps of a kind."""
        return [step for step in self.steps if step["step"].partition("=")[0] == name]


def give_to(guest: Machine, owned: Owned, number: int, driver: str) -> None:
    """Take a VF from the driver that it has, if any, and give it to another."""
    address, folder = owned.address(number), owned.folder(number)
    guest.check(f"[ ! -e {folder}/driver ] || echo {address} > {folder}/driver/unbind")
    guest.check(f"echo {driver} > {folder}/driver_override")
    guest.check(f"echo {address} > /sys/bus/pci/drivers_probe")
    assert owned.driver(guest, number) == driver


@dataclass(frozen=True)
class VfioGuest:
    """Disks and network cards of two servers each: VFs 1 and 2 of the first, VF 1 of the second.

    The three disks are one file; the networks are joined, and `peer` is an interface there.
    """

    guest: Machine
    disks: tuple[Owned, Owned]
    networks: tuple[Owned, Owned]
    peer: str

    def addresses(self, load: str) -> list[str]:
        """The VFs that carry a load."""
        first, second = self.disks if load == "blk" else self.networks
        return [first.address(1), first.address(2), second.address(1)]

    def command(self, load: str, *steps: str, options: str = "", functions: int = 3) -> str:
        """What takes steps with the first VFs of a load."""
        peer = f"--peer {self.peer}" if load == "net" else ""
        addresses = " ".join(self.addresses(load)[:functions])
        return f"vfiomove {options} {peer} {load} {addresses} -- {' '.join(steps)}"

    def run(self, load: str, *steps: str, options: str = "", functions: int = 3) -> Report:
        """Take steps; nothing that they look at is wrong."""
        command = self.command(load, *steps, options=options, functions=functions)
        result = self.guest.run(command, timeout=200)
        assert result.status == 0, f"{command}\n{result.output}"
        lines = [json.loads(line) for line in result.output.splitlines() if line]
        assert [line["event"] for line in lines] == ["start", *["step"] * len(steps), "done"], result.output
        report = Report(lines[0], lines[1:-1], lines[-1])
        assert report.done["faults"] == 0
        return report

    def stream(self, load: str, options: str = "") -> bytes:
        """The stream of a VF that was busy and is stopped. It goes on, and is as it was."""
        report = self.run(
            load, "io=100", "fill", "note", "state=stop_copy", f"save={STREAM}", "state=running", "drain",
            "same", "io=100", options=options, functions=1,
        )  # fmt: skip
        assert not report.refusals
        return base64.b64decode(self.guest.check(f"base64 {STREAM}"))

    def keep(self, name: str, stream: bytes) -> str:
        """Put a stream into a file of the guest."""
        path = f"/tmp/{name}"
        self.guest.check(f"echo {base64.b64encode(stream).decode()} | base64 -d > {path}")
        return path

    def requests(self) -> int:
        """How many requests the disks of all VFs have carried out."""
        first, second = (owned.server.ask("query-functions") for owned in self.disks)
        found = [*first, *second]
        return sum(each["counters"]["requests"] for each in found if each["name"] != "pf")
