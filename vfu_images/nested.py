"""Makes a disk with what runs within a guest: a QEMU, and a small Linux, saved while it waits for a disk.

To boot that Linux in an emulator within an emulator would take minutes. So it boots here, on the same QEMU,
and goes on there, as a guest does that was moved.
"""

from __future__ import annotations

import gzip
import re
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vfu_images import private, qemu
from vfu_images.cpio import Archive
from vfu_images.debian import CONTENTS, Debian
from vfu_images.disk import renew_disk
from vfu_images.initramfs import ROOT as GUEST_ROOT
from vfu_images.initramfs import add_dynamic, wrapped
from vfu_images.machine import Machine, MachineError
from vfu_images.workspace import IMAGES, PACKAGE, SetupError, say

DISK = IMAGES / "nested.img"
SIZE = 256 << 20
"""Of the disk, most of which is a hole in its file."""

FOLDER = "machine"
"""Where the disk has the QEMU, as `Machine` wants it, and the state of the Linux."""

STATE = "guest.state"

PROGRAM = f"usr/bin/{qemu.SYSTEM}"
FIRMWARE = (
    "usr/share/seabios/bios-256k.bin",
    "usr/share/qemu/kvmvapic.bin",
    "usr/share/qemu/linuxboot_dma.bin",
    "usr/share/qemu/pvh.bin",
)

NEEDED = (
    "init", "modules/", "usr/lib/modules/", "dev/console", "bin", "sbin",
    "usr/bin/busybox", "usr/bin/sh", "usr/bin/ioverify",
)  # fmt: skip
"""What the small Linux has of the usual guest's initramfs."""

MEMORY_MIB = 96
NATIVE_HOTPLUG = ("-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off")
"""A guest takes a plugged device in less than by ACPI, for which it has to interpret a program."""

WAITING = re.compile(rb"^waiting\r?\n", re.MULTILINE)
# All are the shell's own words until there is a disk: no program is started meanwhile.
THEN_VERIFY = (
    "echo waiting; until [ -b /dev/vda ]; do read -t 1 nothing; done </dev/ttyS0;"
    " exec ioverify --device /dev/vda --length 1M --depth 2 --report-ms 1000000000 </dev/ttyS0"
)
SAVE_SECONDS = 60.0


def machine(folder: Path, devices: Sequence[Mapping[str, Any]] = (), *, boots: bool = False) -> Machine:
    """The small Linux's machine: with the QEMU of `folder`, and one port, `port0`, for a device.

    It boots there, or comes in. The machines that it is moved between have to be alike.
    """
    return Machine(
        images=folder,
        devices=devices,
        spare_ports=1,
        memory_mib=MEMORY_MIB,
        arguments=NATIVE_HOTPLUG,
        incoming=not boots,
        boots=boots,
    )


def prepare(debian: Debian) -> None:
    """Leave DISK; made anew only if an input changed. `initramfs.prepare` goes before. Raises SetupError."""
    debian.unpack(qemu.PACKAGES, qemu.ROOT)
    programs = [PACKAGE / name for name in ("nested.py", "machine.py", "qemu.py")]
    sources = (IMAGES / "vmlinux", IMAGES / "initramfs.cpio.gz", qemu.ROOT / CONTENTS, *programs)
    renew_disk(DISK, sources, _made, "booting and saving the guest of a guest...")
    say(f"disk: {DISK}")


def _made(folder: Path) -> Path:
    """A new disk in this folder."""
    archive = Archive()
    add_dynamic(archive, qemu.ROOT, PROGRAM)
    for path in FIRMWARE:
        archive.file(path, (qemu.ROOT / path).read_bytes())
    archive.file(f"{FOLDER}/{qemu.SYSTEM}", qemu.wrapper(qemu.SYSTEM, Path()).encode(), 0o755)
    tree = folder / "tree"
    archive.unpack(tree)
    _save(tree / FOLDER)
    image = folder / DISK.name
    with image.open("wb") as file:
        file.truncate(SIZE)
    options = ["-q", "-F", "-t", "ext4", "-O", "^has_journal", "-b", "4096", "-E", "root_owner=0:0"]
    private.run(GUEST_ROOT, "usr/sbin/mke2fs", *options, "-d", str(tree), str(image))
    return image


def _save(folder: Path) -> None:
    """Boot the small Linux with the QEMU of this folder until it waits, and leave its state there."""
    usual = Archive.decode(gzip.decompress((IMAGES / "initramfs.cpio.gz").read_bytes()))
    small = usual.only(NEEDED)
    for name in ("dev", "proc", "sys", "run", "tmp"):
        small.folder(name)
    # Of no use on the disk: its state has them.
    kernel, initramfs = folder / "vmlinux", folder / "initramfs.cpio.gz"
    kernel.symlink_to(IMAGES / "vmlinux")
    initramfs.write_bytes(wrapped(small))
    try:
        with machine(folder, boots=True) as guest:
            guest.wait_ready()
            guest.console.send(f"{THEN_VERIFY}\n")
            guest.console.expect(WAITING, timeout=SAVE_SECONDS)
            guest.qmp("migrate", uri=f"file:{folder / STATE}")
            while (status := guest.qmp("query-migrate")["status"]) != "completed":
                if status == "failed":
                    raise SetupError("QEMU could not save the guest of a guest. Is the disk full?")
                time.sleep(0.02)
    except (MachineError, TimeoutError) as error:
        raise SetupError(f"the guest of a guest does not boot: {error}") from error
    kernel.unlink()
    initramfs.unlink()
