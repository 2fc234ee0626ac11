"""QEMU in a guest gives VFs to a guest of its own, and migrates it from VF to VF.

Nothing in the guest knows of this project: Linux and its driver virtio_vfio_pci, QEMU, vfio-pci. Leaves
demo-nested.json in BUILD.
"""

from __future__ import annotations

import contextlib
import json
import socket
import tempfile
from pathlib import Path
from typing import Any

from vfu_demo import show
from vfu_demo.inner import PLACE, Inner, ports
from vfu_demo.show import LostError
from vfu_demo.stage import Server, for_a_guest
from vfu_images import nested, variants
from vfu_images.machine import Machine
from vfu_images.qmp import QMP
from vfu_images.workspace import BUILD, SetupError, shown

PORT = "port0"
PF = "/sys/bus/pci/devices/0000:01:00.0"
VFS = {"vf1": "0000:01:01.0", "vf2": "0000:01:02.0"}
MODULES = ("vfio_iommu_type1", "virtio_vfio_pci")
VFS_AS_SEEN = (
    f"cd {PF}; for vf in virtfn*; do f() {{ basename $(readlink -f $vf/$1); }};"
    ' echo "$vf $(f): driver $(f driver), IOMMU group $(f iommu_group)"; done'
)
IOMMU = ["-device", "intel-iommu,intremap=on,caching-mode=on"]
MEMORY_MIB = 768
DISK_SIZE = 16 << 20
SECTORS_STEP = 400
"""What is to be written before and after the move."""


def play() -> None:
    """Play it."""
    # The name of a socket has at most 107 bytes, so the folder has a short one.
    with tempfile.TemporaryDirectory(prefix="vfu-demo-") as folder, contextlib.ExitStack() as until:
        _demo(Path(folder), until)


def _demo(folder: Path, until: contextlib.ExitStack) -> None:
    server, host = _host(folder, until)
    with show.step("virtio_vfio_pci takes 2 VFs of that guest's Linux"):
        _give(host)
    show.lines(host.check(VFS_AS_SEEN))
    with show.step("QEMU in the guest starts, and in it a small Linux that waits for a disk"):
        source = Inner(host, "source", folder)
        until.callback(source.close)
        source.resume(PLACE / nested.FOLDER / nested.STATE)
    with show.step("it is given VF 1, which is its disk"):
        source.ask("device_add", **_device("vf1"))
        source.expect("start")
    show.lines("device_add " + ",".join(f"{name}={value}" for name, value in _device("vf1").items()))
    with show.step("it writes numbered, checksummed sectors, and reads some back"):
        source.write(SECTORS_STEP)
    with show.step("another QEMU in the guest starts, with VF 2, and waits"):
        target = Inner(host, "target", folder, [_device("vf2")])
        until.callback(target.close)
    with show.step("QEMU migrates the small Linux, and VF 1 to VF 2, while sectors are written"):
        before = source.report()["sectors_written"]
        log = len(server.log)
        told = source.move(target)
    show.lines("\n".join(line for line in server.log[log:].splitlines() if " -> " in line))
    with show.step("it goes on there"):
        target.write(before + SECTORS_STEP)
    with show.step("it stops writing, and reads back all that it wrote"):
        disk = target.stop()
    figures = _figures(told, before, disk, _requests(server))
    BUILD.joinpath("demo-nested.json").write_text(json.dumps(figures, indent=2) + "\n")
    _conclude(figures)


def _host(folder: Path, until: contextlib.ExitStack) -> tuple[Server, Machine]:
    """A server, and a guest with its PF and places for its VFs, which is to be a host itself."""
    if not nested.DISK.exists():
        raise SetupError(f"{nested.DISK} is missing; run `make demo-nested`, which makes it")
    disk = folder / "disk.raw"
    with disk.open("wb") as file:
        file.truncate(DISK_SIZE)
    options = ["--sriov", "guest", "--total-vfs", str(len(VFS)), "--disk", f"pf={nested.DISK},readonly"]
    for vf in VFS:
        options += ["--disk", f"{vf}={disk}"]
    with show.step("a server: the PF's disk has a QEMU for the guest, its VFs have one file"):
        server = Server(folder / "device", "blk", options)
        until.callback(server.close)
    show.lines(" ".join(server.command))
    _, devices = for_a_guest(server, PORT)
    with show.step("a guest boots that has an IOMMU, the PF and places for its VFs"):
        host = until.enter_context(
            Machine(
                images=variants.VIRTIO_VFIO,
                devices=devices,
                spare_ports=1,
                memory_mib=MEMORY_MIB,
                cpus=2,
                append="intel_iommu=on",
                arguments=[*IOMMU, *ports(folder)],
            )
        )
        host.wait_ready()
        host.check(f"mkdir {PLACE} && mount -t ext4 -o ro /dev/vda {PLACE}")
    show.lines(host.check(f"uname -sr; {PLACE / nested.FOLDER}/qemu-system-x86_64 --version | head -n 1"))
    return server, host


def _give(host: Machine) -> None:
    """Enable the VFs, and have virtio_vfio_pci take them. No other driver of the guest sees them."""
    host.check(" && ".join(f"modprobe {module}" for module in MODULES))
    host.check(f"cd {PF} && echo 0 > sriov_drivers_autoprobe && echo {len(VFS)} > sriov_numvfs")
    for address in VFS.values():
        host.check(f"echo virtio_vfio_pci > /sys/bus/pci/devices/{address}/driver_override")
        host.check(f"echo {address} > /sys/bus/pci/drivers_probe")


def _device(vf: str) -> dict[str, str]:
    """What attaches the QEMU in the guest to a VF."""
    return {"driver": "vfio-pci", "host": VFS[vf], "id": "disk", "bus": "port0", "enable-migration": "on"}


def _requests(server: Server) -> dict[str, int]:
    """How many requests each VF has served."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(server.folder / "monitor.sock"))
        monitor = QMP(connection)
        monitor.negotiate()
        told = {function["name"]: function for function in monitor.execute("query-functions", {})}
    return {vf: int(told[vf]["counters"]["requests"]) for vf in VFS}


def _figures(
    told: dict[str, Any], before: int, disk: dict[str, Any], requests: dict[str, int]
) -> dict[str, Any]:
    """What the demo found, as it is saved and as it is told."""
    return {
        "ram_bytes": told["ram"]["transferred"],
        "parts_bytes": told.get("vfio", {}).get("transferred", 0),
        "migration_ms": told["total-time"],
        "downtime_ms": told["downtime"],
        "requests": requests,
        "sectors_written_before": before,
        **{
            name: disk[name]
            for name in ("sectors_written", "sectors_read", "lost", "corrupt", "errors", "longest_gap_ms")
        },
    }


def _conclude(figures: dict[str, Any]) -> None:
    """Say how it went. Raises LostError when it did not go well."""
    requests, after = figures["requests"], figures["sectors_written"] - figures["sectors_written_before"]
    print(
        f"\nQEMU migrated {figures['ram_bytes'] / 1e6:.0f} MB of memory and {figures['parts_bytes']} bytes of"
        f" the VF in {figures['migration_ms'] / 1e3:.1f} s; the guest stood still for"
        f" {figures['downtime_ms'] / 1e3:.1f} s of them"
        f"\ndisk: {figures['sectors_written_before']} sectors written before that, {after} after it,"
        f" {figures['sectors_read']} read back and checked;"
        f" lost {figures['lost']}, corrupt {figures['corrupt']}, failed requests {figures['errors']}"
        f"\nVF 1 served {requests['vf1']} requests, VF 2 {requests['vf2']}"
        f"\n{shown(BUILD / 'demo-nested.json')} has the figures"
    )
    if figures["lost"] or figures["corrupt"] or figures["errors"]:
        raise LostError("the guest found its disk damaged")
    if not figures["parts_bytes"]:
        raise LostError("QEMU migrated nothing of the VF")
    if min(figures["sectors_written_before"], after) < SECTORS_STEP:
        raise LostError(f"the guest wrote fewer than {SECTORS_STEP} sectors before or after")
    if not all(requests.values()):
        raise LostError("a VF served no request")
