"""How long Linux takes to probe the PF, beside QEMU's own virtio-blk-pci in the same guest.

The figures are those of the kernel itself (initcall_debug): from the start of virtio_pci's probe to
its end, in which virtio_blk has found the disk and read its partition table.
"""

from __future__ import annotations

import json
import re
import statistics
from dataclasses import dataclass

from bench.processes import scratch, server, vfio_user
from vfu_images.machine import Machine

DRIVER = "/sys/bus/pci/drivers/virtio-pci"
DISK_SIZE = 64 << 20


@dataclass(frozen=True)
class ProbeTimes:
    """Milliseconds of each probe, in the order in which they took turns."""

    ours: list[float]
    reference: list[float]

    @property
    def ours_ms(self) -> float:
        """Median of our PF's."""
        return statistics.median(self.ours)

    @property
    def reference_ms(self) -> float:
        """Median of those of QEMU's virtio-blk-pci."""
        return statistics.median(self.reference)


def measure(runs: int = 7) -> ProbeTimes:
    """Probe each function `runs` times by turns, in one guest, after one probe that does not count."""
    with scratch() as folder:
        image = folder / "disk.img"
        with image.open("wb") as file:
            file.truncate(DISK_SIZE)
        drive = {"driver": "file", "node-name": "disk", "filename": str(image)}
        with (
            server(folder / "s", "--vfs", "1", "--disk", str(image)),
            Machine(
                devices=[
                    vfio_user(folder / "s" / "pf.sock"),
                    {"driver": "virtio-blk-pci", "drive": "disk", "id": "own"},
                ],
                arguments=["-blockdev", json.dumps({**drive, "locking": "off"})],
            ) as guest,
        ):
            guest.wait_ready(timeout=120)
            guest.check("echo 1 > /sys/module/kernel/parameters/initcall_debug")
            # The first two root ports, in this order.
            addresses = ("0000:01:00.0", "0000:02:00.0")
            times: dict[str, list[float]] = {address: [] for address in addresses}
            for _ in range(runs + 1):
                for address in addresses:
                    times[address].append(_probe(guest, address))
            return ProbeTimes(times[addresses[0]][1:], times[addresses[1]][1:])


def _probe(guest: Machine, address: str) -> float:
    guest.check(f"echo {address} > {DRIVER}/unbind; dmesg -c > /dev/null; echo {address} > {DRIVER}/bind")
    log = guest.check("dmesg")
    found = re.search(rf"probe of {address} with driver virtio-pci returned 0 after (\d+) usecs", log)
    if found is None:
        raise ValueError(f"the kernel did not say how long the probe of {address} took:\n{log}")
    return int(found[1]) / 1000
