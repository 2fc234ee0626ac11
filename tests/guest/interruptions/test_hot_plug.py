"""A VF that comes and goes while the guest runs."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.conftest import Plain
from tests.guest.guest_disk import address_of, disk_of, finish, start_io, verify, wait_written
from tests.server_process import ServerProcess
from vfu_images.machine import Machine
from vfu_images.qmp import QMPError

QEMU_BUG = "memory_region_del_subregion: Assertion `subregion->container == mr' failed"
"""QEMU 11.1.3 aborts so when any vfio-user-pci device that has MSI-X is unplugged.

It takes its region for the pending bits out of a BAR that it has torn down by then. A function without MSI-X
can be unplugged, but a VF without MSI-X has no interrupts. Nothing that a server answers changes this.
"""


def test_plug(plain: Plain) -> None:
    """A VF is plugged into a root port and used, and not a request on the guest's other VF is disturbed.

    Then Linux removes it and finds it again, three times: all that unplugging does inside a guest.
    """
    guest, server = plain.guest, plain.server
    beside = start_io(guest, disk_of(guest, "vf1"), depth=2)
    guest.plug(server.qemu_device("vf3"))
    verify(guest, disk_of(guest, "vf3"))
    server.wait_log(r"virtio\.vf3: a client attached")
    open_files = server.open_files
    for _ in range(3):
        mark = server.mark()
        address = address_of(guest, "vf3")
        guest.check(f"echo 1 > /sys/bus/pci/devices/{address}/remove")
        assert guest.run(f"test -e /sys/bus/pci/devices/{address}").status != 0
        server.wait_log(r"virtio\.vf3: device reset", since=mark)
        guest.check("echo 1 > /sys/bus/pci/rescan")
        assert address_of(guest, "vf3") == address
        verify(guest, disk_of(guest, "vf3"))
        assert server.open_files == open_files
    wait_written(beside, 400)
    finish(beside)


def test_unplug(shared_server: ServerProcess, machine: Callable[..., Machine]) -> None:
    """A VF is plugged and unplugged through a root port, three times; the server keeps nothing of it.

    Where QEMU itself aborts over it, the server must still see the client leave, and serve the next one.
    """
    server = shared_server
    guest = machine(devices=[])
    open_files = server.open_files
    aborted = False
    for _ in range(3):
        mark = server.mark()
        guest.plug(server.qemu_device("vf4"))
        disk = disk_of(guest, "vf4")
        verify(guest, disk)
        try:
            guest.unplug("vf4")
        except QMPError:
            aborted = QEMU_BUG in (guest.folder / "qemu.log").read_text()
            if not aborted:
                raise
        server.wait_log(r"virtio\.vf4: device reset", since=mark)
        server.wait_log(r"virtio\.vf4: detached: the client left", since=mark)
        assert server.open_files == open_files
        if aborted:
            pytest.xfail(f"QEMU: {QEMU_BUG}")
        assert guest.run(f"test -e {disk}").status != 0
