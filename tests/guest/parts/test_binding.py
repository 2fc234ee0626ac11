"""A VF is VFIO's, and again a disk of the guest's own."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.parts.vfio_guest import DRIVER, VfioGuest, give_to


@pytest.mark.driver("Linux (Debian backports), virtio_vfio_pci", "takes a VF that the guest enabled")
def test_to_and_fro(vfio: VfioGuest, version: Callable[[str], None]) -> None:
    """VFIO maps memory of its own for a VF, and leaves none of it to the guest's driver."""
    guest, disks = vfio.guest, vfio.disks[0]
    version(guest.check("uname -r").strip())
    loaded = set(guest.check("cut -d ' ' -f 1 /proc/modules").split())
    assert loaded >= {"virtio_vfio_pci", "vfio_pci_core", "vfio_iommu_type1", "vfio"}
    # It was built with the legacy interface, too.
    guest.check(f"grep -q 'virtiovf_open_legacy_io.*{DRIVER}' /proc/kallsyms")
    assert not vfio.run("blk", "io=50", "drain").refusals
    for number in (1, 2):
        group = guest.check(f"readlink {disks.folder(number)}/iommu_group").strip().rpartition("/")[2]
        guest.check(f"[ -c /dev/vfio/{group} ]")
        give_to(guest, disks, number, "virtio-pci")
        disks.verify(guest, number)
    for number in (1, 2):
        give_to(guest, disks, number, DRIVER)
    assert not vfio.run("blk", "io=50", "move=1", "io=50", "drain").refusals
