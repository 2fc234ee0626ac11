"""A VF's disk is all that a guest has: its kernel's root, and what the firmware boots."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.guest.bare_machine import BareMachine
from tests.guest.guest_disk import disk_of
from tests.guest.guest_files import look_through, work
from tests.server_process import ServerProcess
from vfu_images import firmware
from vfu_images.machine import Machine
from vfu_images.workspace import IMAGES

UEFI = ("-bios", str(firmware.OVMF))


@pytest.mark.long
@pytest.mark.parametrize(
    ("disk", "settings"),
    [
        pytest.param("disk.img", {"append": "root=/dev/vda1"}, id="root"),
        pytest.param(
            "disk.img",
            {"kind": BareMachine},
            id="bios",
            marks=pytest.mark.driver("SeaBIOS and GRUB", "start Linux from a VF"),
        ),
        pytest.param(
            "disk-efi.img",
            {"kind": BareMachine, "arguments": UEFI},
            id="uefi",
            marks=pytest.mark.driver("OVMF (EDK II) and GRUB", "start Linux from a VF"),
        ),
    ],
)
def test_boot(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    tmp_path: Path,
    version: Callable[[str], None],
    disk: str,
    settings: dict[str, Any],
) -> None:
    """A guest's root is ext4 on the VF; firmware boots it from there, and GRUB reads by its driver."""
    image = tmp_path / "disk.img"
    shutil.copyfile(IMAGES / disk, image)
    serving = server("--vfs", "1", "--disk", f"vf1={image}")
    guest = machine(devices=[serving.qemu_device("vf1")], **settings)
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
    assert by_firmware == ("kind" in settings)
    by_uefi = guest.run("[ -e /sys/firmware/efi ]").status == 0
    assert by_uefi == (disk == "disk-efi.img")
    version(guest.check("cat /sys/class/dmi/id/bios_version").strip())
    guest.check("mkdir /work")
    work(guest, "/work", count=100)
    # Read again from the disk.
    guest.check("sync; echo 3 > /proc/sys/vm/drop_caches")
    look_through(guest, "/work")
