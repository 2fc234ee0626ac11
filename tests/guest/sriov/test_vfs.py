"""VFs that a stock guest enables are VFs to its kernel, with drivers that work."""

from __future__ import annotations

import re

import pytest

from tests.guest.guest_disk import figures, finish, progress, start_io, wait_written
from tests.guest.sriov.conftest import Owner
from tests.guest.sriov.guest_sriov import complaints


def test_disks(owner: Owner) -> None:
    """Four VFs with links to and from their PF, each with a driver and a disk that does what it is told."""
    guest, disks = owner.guest, owner.disks
    assert guest.check(f"cat {disks.folder(0)}/sriov_totalvfs").strip() == "4"
    disks.enable(guest, 4)
    for number in range(1, 5):
        link = guest.check(f"readlink {disks.folder(0)}/virtfn{number - 1}").strip()
        assert link == f"../{disks.address(number)}"
        physfn = guest.check(f"readlink {disks.folder(number)}/physfn").strip()
        assert physfn == f"../{disks.address(0)}"
        assert disks.driver(guest, number) == "virtio-pci"
        serial = guest.check(f"cat {disks.folder(number)}/virtio*/block/*/serial")
        assert serial == f"pymodel-vf{number}"
    disks.verify(guest, 0, 1, 2, 3, 4)
    assert disks.ask()["num-vfs"] == 4
    assert all(wanted == found for number in range(1, 5) for wanted, found in disks.bars(number))
    # Not of anything at its boot either, but for what has nothing to do with a device of ours.
    assert not re.search(r"pci|virtio|iov|0000:", "".join(complaints(guest)), re.IGNORECASE)


def test_networks(owner: Owner) -> None:
    """Two VFs, each in a namespace of its own, reach each other through the switch; disks go on beside."""
    guest, networks = owner.guest, owner.networks
    owner.disks.enable(guest, 1)
    job = start_io(guest, owner.disks.disk(guest, 1), depth=2, length="4M")
    networks.enable(guest, 2)
    assert [networks.driver(guest, number) for number in (1, 2)] == ["virtio-pci"] * 2
    guest.check("unshare -n sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/there")
    guest.check(
        "until [ $(readlink /proc/$(cat /tmp/there)/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done"
    )
    there = "nsenter -t $(cat /tmp/there) -n"
    one, two = (guest.check(f"ls {networks.folder(number)}/virtio*/net").strip() for number in (1, 2))
    guest.check(f"ip link set {two} netns $(cat /tmp/there)")
    for inside, name, address in (("", one, "10.8.0.1"), (there, two, "10.8.0.2")):
        guest.check(f"{inside} ip link set {name} up; {inside} ip address add {address}/24 dev {name}")
    guest.check("ping -c 5 -i 0.2 -W 5 10.8.0.2")
    guest.check("ping -c 3 -i 0.2 -W 5 -s 20000 10.8.0.2")
    # A VF in a namespace that ends comes back before it goes.
    guest.check("kill $(cat /tmp/there)")
    networks.enable(guest, 0)
    finish(job)


def test_lspci(owner: Owner) -> None:
    """`lspci -vvv` has all of SR-IOV to tell, of PF and VFs, and nothing to object to."""
    guest, disks = owner.guest, owner.disks
    disks.enable(guest, 4)
    assert guest.check("lspci -vvv 2>&1 >/dev/null") == ""
    told = guest.check(f"lspci -vvv -s {disks.address(0)}")
    for line in (
        r"Capabilities: \[100 v1\] Single Root I/O Virtualization \(SR-IOV\)",
        r"IOVCtl:\s+Enable\+ Migration- Interrupt- MSE\+ ARIHierarchy-",
        "Initial VFs: 4, Total VFs: 4, Number of VFs: 4, Function Dependency Link: 00",
        "VF offset: 8, stride: 8, Device ID: 1042",
        "Supported Page Size: 00000553, System Page Size: 00000001",
        "Kernel driver in use: virtio-pci",
    ):
        assert re.search(line, told), told
    for bar, (wanted, _) in zip((0, 2), disks.bars(1), strict=True):
        assert f"Region {bar}: Memory at {wanted:016x} (64-bit, prefetchable)" in told
    for number in range(1, 5):
        told = guest.check(f"lspci -vvv -s {disks.address(number)}")
        assert "Virtio 1.0 block device" in told
        for bar, (wanted, _) in zip((0, 2), disks.bars(number), strict=True):
            assert f"Region {bar}: Memory at {wanted:08x} (64-bit, prefetchable)" in told
        assert "MSI-X: Enable+" in told
        assert "Interrupt: pin" not in told
    disks.enable(guest, 0)
    # Whoever looks for functions, and not for what the kernel has, finds placeholders: no virtio device.
    hidden = guest.check(f"lspci -n -A intel-conf1 -H1 -s {disks.address(1)}")
    assert "ff00: 1af4:10ff" in hidden


@pytest.mark.long
def test_off_and_on(owner: Owner) -> None:
    """Off and on five times, another number each: what was written to a VF's disk stays there."""
    guest, disks = owner.guest, owner.disks
    disks.enable(guest, 4)
    guest.check(
        f"dd if=/dev/urandom bs=1M count=1 | tee /tmp/noise | dd of={disks.disk(guest, 1)} bs=1M seek=8"
    )
    wanted = guest.check("md5sum </tmp/noise")
    read = "dd if={} bs=1M skip=8 count=1 iflag=direct 2>/dev/null | md5sum"
    open_files = disks.server.open_files
    for number in (2, 1, 4, 3, 4):
        disks.enable(guest, 0)
        assert disks.enabled(guest) == 0
        disks.enable(guest, number)
        assert disks.enabled(guest) == number
        assert guest.check(read.format(disks.disk(guest, 1))) == wanted
        disks.verify(guest, number, count=20)
    assert disks.server.open_files == open_files


def test_num_vfs_is_fixed_while_enabled(owner: Owner) -> None:
    """The kernel refuses another number while VFs are enabled, and so does the register itself."""
    guest, disks = owner.guest, owner.disks
    disks.enable(guest, 2)
    owner.expected.append("2 VFs already enabled. Disable before enabling 3 VFs")
    refused = guest.run(f"echo 3 > {disks.folder(0)}/sriov_numvfs")
    assert (refused.status, refused.output.strip()) == (1, "sh: write error: Device or resource busy")
    num_vfs = f"setpci -s {disks.address(0)} ECAP_SRIOV+10.w"
    for value in ("3", "1", "0", "ffff"):
        guest.check(f"{num_vfs}={value}")
        assert guest.check(num_vfs).strip() == "0002"
    assert disks.ask()["num-vfs"] == 2
    disks.verify(guest, 1, 2)
    disks.enable(guest, 0)
    # More than there are: neither the kernel nor the register takes that.
    assert guest.run(f"echo 5 > {disks.folder(0)}/sriov_numvfs").status == 1
    guest.check(f"{num_vfs}=5")
    assert int(guest.check(num_vfs), 16) <= 4


@pytest.mark.long
def test_taken_away_under_io(owner: Owner) -> None:
    """VFs go while they are written to: those writers end with errors, the PF's notices nothing."""
    guest, disks = owner.guest, owner.disks
    beside = start_io(guest, disks.disk(guest, 0), depth=2, length="4M")
    disks.enable(guest, 4)
    jobs = [start_io(guest, disks.disk(guest, number), depth=2, length="4M") for number in (1, 4)]
    for job in jobs:
        wait_written(job, 16)
    disks.enable(guest, 0)
    for job in jobs:
        job.stop()
        status, output = job.wait()
        done = figures(output.splitlines()[-1])
        assert (status, done["corrupt"], done["lost"]) == (1, 0, 0), output
        assert done["errors"] > 0
    wait_written(beside, progress(beside)["sectors_written"] + 16)
    disks.enable(guest, 4)
    disks.verify(guest, 1, 2, 3, 4)
    finish(beside)


def test_two_pfs(owner: Owner) -> None:
    """VFs of one PF come and go while those of another stay."""
    guest, disks, networks = owner.guest, owner.disks, owner.networks
    networks.enable(guest, 2)
    disks.enable(guest, 4)
    disks.enable(guest, 0)
    assert networks.enabled(guest) == 2
    disks.enable(guest, 1)
    networks.enable(guest, 0)
    assert disks.enabled(guest) == 1
    disks.verify(guest, 1)
    networks.enable(guest, 1)
    assert networks.driver(guest, 1) == "virtio-pci"
