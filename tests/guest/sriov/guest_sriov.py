"""A guest with PFs and VFs: QEMU's devices, the guest's names of them, and VFs switched on and off."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from tests.guest import guest_disk
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

DRIVERS: Final = "/sys/bus/pci/drivers"
DENSE_FROM: Final = 32
"""From so many VFs on they have functions of devices; below, each a device of its own."""


def guest_options(total: int, *more: str, ecam: str = "") -> list[str]:
    """Options of a server whose SR-IOV is for a guest, with so many VFs."""
    return ["--sriov", "guest", "--total-vfs", str(total), *(("--ecam", ecam) if ecam else ()), *more]


@dataclass(frozen=True)
class Owned:
    """A PF and its VFs below the root port `port` of a machine; their names there begin with `prefix`."""

    server: ServerProcess
    total: int
    port: int = 0
    prefix: str = ""

    def devices(self, *, vf_sockets: Sequence[str] = ()) -> list[dict[str, Any]]:
        """QEMU's devices; the last VFs may have other sockets than the server's."""
        found = [self._device("pf", 0)]
        sockets = [*[""] * (self.total - len(vf_sockets)), *vf_sockets]
        for number, path in enumerate(sockets, 1):
            device = self._device(f"vf{number}", self._devfn(number))
            if path:
                device["socket"] = {"type": "unix", "path": path}
            found.append(device)
        return found

    def _device(self, function: str, devfn: int) -> dict[str, Any]:
        return {
            **self.server.qemu_device(function),
            "id": f"{self.prefix}{function}",
            "bus": f"port{self.port}",
            "addr": f"{devfn >> 3:02x}.{devfn & 7}",
            **({"multifunction": True} if devfn and self.total >= DENSE_FROM else {}),
        }

    def _devfn(self, number: int) -> int:
        return 8 * number if self.total < DENSE_FROM else 7 + number

    def address(self, number: int) -> str:
        """The guest's address of VF `number`, or of the PF, which is 0."""
        devfn = self._devfn(number) if number else 0
        return f"0000:{self.port + 1:02x}:{devfn >> 3:02x}.{devfn & 7}"

    def folder(self, number: int) -> str:
        """The guest's folder of VF `number`, or of the PF, which is 0."""
        return f"/sys/bus/pci/devices/{self.address(number)}"

    def enable(self, guest: Machine, number: int) -> None:
        """Have so many VFs; their drivers are bound when this returns."""
        guest.check(f"echo {number} > {self.folder(0)}/sriov_numvfs", timeout=120)

    def enabled(self, guest: Machine) -> int:
        """How many VFs the guest has: as it counts them, and as it has devices of them."""
        count = int(guest.check(f"cat {self.folder(0)}/sriov_numvfs"))
        links = guest.check(f"ls {self.folder(0)} | grep -c ^virtfn || true")
        assert int(links) == count
        return count

    def driver(self, guest: Machine, number: int) -> str:
        """The driver of a function; empty where it has none."""
        found = guest.run(f"readlink {self.folder(number)}/driver").output
        return found.strip().rpartition("/")[2]

    def disk(self, guest: Machine, number: int) -> str:
        """The block device of a function, which has one."""
        return f"/dev/{guest.check(f'ls {self.folder(number)}/virtio*/block').strip()}"

    def verify(self, guest: Machine, *numbers: int, count: int = 60) -> None:
        """I/O on the disks of these functions, all at once; nothing is wrong."""
        disks = [self.disk(guest, number) for number in numbers]
        command = guest_disk.IOVERIFY + " --count {count} --block 4096 --report-ms 100000"
        jobs = [
            guest.start(command.format(disk=disk, offset="0", length="1M", depth=4, count=count))
            for disk in disks
        ]
        for job in jobs:
            done = guest_disk.checked(*job.wait(timeout=180))
            assert done["sectors_written"] == count * 8

    def bars(self, number: int) -> list[tuple[int, int]]:
        """Where each BAR of a VF is to be, and where it is, as the monitor has it."""
        answer = self.server.ask("query-functions", function=f"vf{number}")
        return [(bar["wanted"], bar["found"]) for bar in answer[0]["bars"]]

    def ask(self) -> dict[str, int]:
        """What the monitor says of the SR-IOV."""
        found: dict[str, int] = self.server.ask("query-functions", function="pf")[0]["sriov"]
        return found


def misplace(guest: Machine, owned: Owned, number: int, *, by: int = 0x100000) -> None:
    """Move the BARs of a VF that is not enabled by so many bytes, as firmware may put them elsewhere.

    Linux knows nothing of a function there, so this goes by the ports of PCI configuration.
    """
    for register in ("BASE_ADDRESS_0", "BASE_ADDRESS_2"):
        setpci = f"setpci -A intel-conf1 -H1 -s {owned.address(number)} {register}.l"
        found = int(guest.check(setpci), 16) & ~0xF
        guest.check(f"{setpci}={found + by:x}")


def complaints(guest: Machine) -> list[str]:
    """What the kernel's log has of warnings and worse."""
    return guest.run("dmesg -r | grep '^<[0-4]>'").output.splitlines()
