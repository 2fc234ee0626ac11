"""The owner of the PF stops a VF under a guest's feet, and sets it going again."""

from __future__ import annotations

from collections.abc import Callable

from tests.guest.guest_disk import disk_of, finish, progress, start_io, wait_written
from tests.server_process import ServerProcess
from vfu_client.owner.owner import OwnerDriver
from vfu_images.machine import Machine

ACTIVE, STOP, FREEZE = 0, 1, 2


def test_stopped_and_set_going(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """Stop holds the guest's I/O, Freeze too; Active lets it go on with nothing lost, five times."""
    serving = server("--vfs", "1", "--disk", "ram:32M")
    guest = machine(devices=[serving.qemu_device("vf1")])
    with OwnerDriver.open(serving.socket("pf"), timeout=30) as owner:
        job = start_io(guest, disk_of(guest, "vf1"))
        written = 0
        for turn in range(5):
            wait_written(job, written + 400)
            owner.mode_set(1, STOP)
            if turn % 2:
                owner.mode_set(1, FREEZE)
            # What was completed before may take the guest a moment to see.
            while (stopped := progress(job))["gap_now_ms"] < 150:
                pass
            while (later := progress(job))["gap_now_ms"] < 300:
                pass
            assert later["sectors_written"] == stopped["sectors_written"]
            assert later["sectors_read"] == stopped["sectors_read"]
            if turn % 2:
                owner.mode_set(1, STOP)
            owner.mode_set(1, ACTIVE)
            written = int(later["sectors_written"])
        wait_written(job, written + 400)
        assert finish(job)["longest_gap_ms"] >= 300
    assert "WARNING" not in serving.log
