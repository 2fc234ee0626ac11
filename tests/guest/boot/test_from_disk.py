"""A VF's disk is all that a guest has: its kernel's root, and what the firmware boots."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from images.machine import Machine
from images.workspace import IMAGES
from tests.guest.guest_disk import disk_of
from tests.guest.guest_files import look_through, work
from tests.server_process import ServerProcess


class BareMachine(Machine):
    """It is given no kernel: its firmware has to find one."""

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        line = super().command_line(serial, kernel_log)
        for option in ("-kernel", "-initrd", "-append"):
            at = line.index(option)
            del line[at : at + 2]
        return line


@pytest.mark.parametrize(
    ("kind", "append"),
    [(Machine, "root=/dev/vda1"), (BareMachine, "")],
    ids=["root", "firmware"],
)
def test_boot(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    tmp_path: Path,
    kind: type[Machine],
    append: str,
) -> None:
    """A guest's root is ext4 on the VF; SeaBIOS boots it from there (GRUB reads by the firmware's driver)."""
    image = tmp_path / "disk.img"
    shutil.copyfile(IMAGES / "disk.img", image)
    serving = server("--vfs", "1", "--disk", f"vf1={image}")
    guest = machine(kind=kind, devices=[serving.qemu_device("vf1")], append=append)
    mounted = [line.split() for line in guest.check("cat /proc/mounts").splitlines()]
    # The last mount of a place is the one that is seen.
    assert [(source, system) for source, place, system, *_ in mounted if place == "/"][-1] == (
        "/dev/vda1",
        "ext4",
    )
    assert disk_of(guest, "vf1") == "/dev/vda"
    driver = guest.check("readlink -f /sys/block/vda/device/driver").strip()
    assert driver.endswith("/virtio_blk")
    by_firmware = guest.run("grep -q BOOT_IMAGE /proc/cmdline").status == 0
    assert by_firmware == (kind is BareMachine)
    guest.check("mkdir /work")
    work(guest, "/work", count=100)
    # Read again from the disk.
    guest.check("sync; echo 3 > /proc/sys/vm/drop_caches")
    look_through(guest, "/work")
