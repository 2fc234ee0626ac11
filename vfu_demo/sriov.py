"""A stock guest under stock QEMU enables VFs of its PF, uses them, and disables them."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from vfu_demo import show
from vfu_demo.show import LostError
from vfu_demo.stage import Server, for_a_guest
from vfu_images.machine import Machine

VFS = 4
PORT = "port0"
PF = "/sys/bus/pci/devices/0000:01:00.0"
OPTIONS = ["--sriov", "guest", "--total-vfs", str(VFS), "--disk", "ram:16M"]
VERIFY = "ioverify --length 4M --count 200 --report-ms 100000 --device"
BLOCK_DEVICES = f"for n in $(seq 0 {VFS - 1}); do ls {PF}/virtfn$n/virtio*/block; done"


def play() -> None:
    """Play it."""
    # The name of a socket has at most 107 bytes, so the folder has a short one.
    with tempfile.TemporaryDirectory(prefix="vfu-demo-") as folder, contextlib.ExitStack() as until:
        _demo(Path(folder) / "device", until)


def _demo(folder: Path, until: contextlib.ExitStack) -> None:
    with show.step(f"a server with a disk PF, and room for {VFS} VFs"):
        server = Server(folder, "blk", OPTIONS)
        until.callback(server.close)
    show.lines(" ".join(server.command))
    command, devices = for_a_guest(server, PORT)
    show.lines(command)
    with show.step("a guest boots, with the PF and places for its VFs behind one root port"):
        guest = until.enter_context(Machine(devices=devices, spare_ports=1))
        guest.wait_ready()
    show.lines(guest.check("uname -sr; lspci | grep -i virtio"))
    for turn in ("", " again"):
        with show.step(f"echo {VFS} > sriov_numvfs{turn}"):
            guest.check(f"echo {VFS} > {PF}/sriov_numvfs")
        show.lines(
            guest.check(f"lspci | grep -i virtio; cd {PF} && ls -ld virtfn* | sed 's/.* virtfn/virtfn/'")
        )
        show.lines(
            guest.check(
                f"cd {PF}/virtfn0 && echo virtfn0/physfn '->' $(readlink physfn), driver: $(readlink driver)"
            )
        )
        disks = guest.check(BLOCK_DEVICES).split()
        if len(disks) != VFS:
            raise LostError(f"{len(disks)} of {VFS} VFs have a disk in the guest")
        with show.step(f"numbered and checksummed writes to all {VFS} disks, read back"):
            jobs = [(disk, guest.start(f"{VERIFY} /dev/{disk}")) for disk in disks]
            ended = [(disk, job.wait(timeout=120)) for disk, job in jobs]
        for disk, result in ended:
            _check(disk, result.status, result.output)
        with show.step("echo 0 > sriov_numvfs"):
            guest.check(f"echo 0 > {PF}/sriov_numvfs")
        show.lines(guest.check("lspci | grep -i virtio"))


def _check(disk: str, status: int, output: str) -> None:
    """Show what a disk's check found. Raises LostError if anything was wrong."""
    done = json.loads(output.strip().splitlines()[-1])
    show.lines(
        f"/dev/{disk}: {done['sectors_written']} sectors written, {done['sectors_read']} read back;"
        f" lost {done['lost']}, corrupt {done['corrupt']}, failed requests {done['errors']}"
    )
    if status or done["lost"] or done["corrupt"] or done["errors"]:
        raise LostError(f"the guest found /dev/{disk} damaged")
