"""What a guest resets, unbinds or removes: VFs, their PF, and its driver; afterwards all works as before."""

from __future__ import annotations

import pytest

from tests.guest.guest_disk import finish, progress, start_io, wait_written
from tests.guest.sriov.conftest import Owner
from tests.guest.sriov.guest_sriov import DRIVERS


def test_function_level_reset_of_a_vf(owner: Owner) -> None:
    """Reset under its driver, which goes on; a VF beside it is busy all the while and never notices."""
    guest, disks = owner.guest, owner.disks
    disks.enable(guest, 2)
    beside = start_io(guest, disks.disk(guest, 2), depth=2, length="4M")
    guest.check(f"echo flr > {disks.folder(1)}/reset_method")
    job = start_io(guest, disks.disk(guest, 1), depth=4, length="4M")
    for _ in range(3):
        mark = disks.server.mark()
        wait_written(job, progress(job)["sectors_written"] + 50)
        guest.check(f"echo 1 > {disks.folder(1)}/reset")
        disks.server.wait_log(r"virtio\.vf1: function-level reset", since=mark)
    wait_written(job, progress(job)["sectors_written"] + 50)
    finish(job)
    wait_written(beside, progress(beside)["sectors_written"] + 50)
    finish(beside)
    assert all(wanted == found for number in (1, 2) for wanted, found in disks.bars(number))


@pytest.mark.long
def test_pf_unbound_and_bound(owner: Owner) -> None:
    """A PF's driver takes the VFs along when it goes, and can have new ones, also after a reset meanwhile."""
    guest, disks = owner.guest, owner.disks
    disks.enable(guest, 3)
    for reset in (False, True):
        guest.check(f"echo {disks.address(0)} > {DRIVERS}/virtio-pci/unbind")
        assert disks.enabled(guest) == 0
        assert disks.ask()["num-vfs"] == 0
        if reset:
            mark = disks.server.mark()
            guest.check(f"echo 1 > {disks.folder(0)}/reset")
            disks.server.wait_log(r"virtio\.pf: function-level reset", since=mark)
        guest.check(f"echo {disks.address(0)} > {DRIVERS}/virtio-pci/bind")
        disks.enable(guest, 4)
        disks.verify(guest, 0, 1, 4)


@pytest.mark.long
def test_pf_removed_and_found(owner: Owner) -> None:
    """A PF that is removed takes its VFs along; found again it has them where they were."""
    guest, disks = owner.guest, owner.disks
    disks.enable(guest, 4)
    before = [disks.bars(number) for number in range(1, 5)]
    for _ in range(2):
        guest.check(f"echo 1 > {disks.folder(0)}/remove")
        assert guest.run(f"ls {disks.folder(1)}").status
        assert disks.ask()["num-vfs"] == 0
        guest.check("echo 1 > /sys/bus/pci/rescan")
        disks.enable(guest, 4)
        assert [disks.bars(number) for number in range(1, 5)] == before
        disks.verify(guest, 0, 1, 2, 3, 4)
