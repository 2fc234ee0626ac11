"""Linux's virtio_vfio_pci, which gives a VF to a guest within the guest, and moves it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from images import variants
from images.machine import Machine


@pytest.mark.driver("Linux (Debian backports), virtio_vfio_pci", "is loaded and unloaded")
def test_loads(machine: Callable[..., Machine], version: Callable[[str], None]) -> None:
    """It comes with what it needs and its legacy interface, and registers; the kernel tells of no error."""
    guest = machine(images=variants.VIRTIO_VFIO)
    version(guest.check("uname -r").strip())
    guest.check("dmesg -c; modprobe vfio_iommu_type1 && modprobe virtio_vfio_pci")
    loaded = set(guest.check("cut -d ' ' -f 1 /proc/modules").split())
    assert loaded >= {"virtio_vfio_pci", "vfio_pci_core", "vfio_iommu_type1", "vfio"}
    guest.check("ls /sys/bus/pci/drivers/virtio_vfio_pci")
    guest.check("grep -q 'virtiovf_open_legacy_io.*virtio_vfio_pci' /proc/kallsyms")
    guest.check("rmmod virtio_vfio_pci")
    assert not re.findall(r"^<[0-3]>.*", guest.check("dmesg -r"), re.MULTILINE)
