"""Linux's virtio_vfio_pci, which gives a VF to a guest within the guest, and moves it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from images import variants
from images.machine import Machine
from tests.guest.conftest import IOMMU
from tests.guest.guest_disk import disk_of, verify
from tests.server_process import ServerProcess

PF = "/sys/bus/pci/devices/0000:01:00.0"


@pytest.mark.driver("Linux (Debian backports), virtio_vfio_pci", "takes a VF that the guest enabled")
def test_takes_a_vf(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], version: Callable[[str], None]
) -> None:
    """It finds a VF's PF, and the VF is a VFIO device; the other VF stays a disk, and both can be again."""
    serving = server("--sriov", "guest", "--total-vfs", "2", "--disk", "ram:8M")
    guest = machine(
        images=variants.VIRTIO_VFIO,
        devices=[
            serving.qemu_device(name, bus="port0", addr=f"{slot:02x}.0")
            for slot, name in enumerate(("pf", "vf1", "vf2"))
        ],
        spare_ports=1,
        append="intel_iommu=on",
        arguments=IOMMU,
    )
    version(guest.check("uname -r").strip())
    guest.check("dmesg -c; modprobe vfio_iommu_type1 && modprobe virtio_vfio_pci")
    loaded = set(guest.check("cut -d ' ' -f 1 /proc/modules").split())
    assert loaded >= {"virtio_vfio_pci", "vfio_pci_core", "vfio_iommu_type1", "vfio"}
    guest.check("grep -q 'virtiovf_open_legacy_io.*virtio_vfio_pci' /proc/kallsyms")
    guest.check(f"echo 2 > {PF}/sriov_numvfs")
    disk_of(guest, "vf1")
    guest.check(
        f"cd {PF}/virtfn0 && echo virtio_vfio_pci > driver_override && echo 0000:01:01.0 > driver/unbind"
    )
    guest.check("echo 0000:01:01.0 > /sys/bus/pci/drivers_probe")
    assert guest.check(f"readlink {PF}/virtfn0/driver").strip().endswith("/virtio_vfio_pci")
    group = guest.check(f"readlink {PF}/virtfn0/iommu_group").strip().rpartition("/")[2]
    assert guest.check("ls /dev/vfio").split() == [group, "vfio"]
    verify(guest, disk_of(guest, "vf2"), length="4M")
    guest.check("echo 0000:01:01.0 > /sys/bus/pci/drivers/virtio_vfio_pci/unbind")
    guest.check(f"echo > {PF}/virtfn0/driver_override; echo 0000:01:01.0 > /sys/bus/pci/drivers_probe")
    verify(guest, disk_of(guest, "vf1"), length="4M")
    guest.check(f"echo 0 > {PF}/sriov_numvfs && rmmod virtio_vfio_pci")
    assert not re.findall(r"^<[0-3]>.*", guest.check("dmesg -r"), re.MULTILINE)
