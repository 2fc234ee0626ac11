"""A guest that restarts, and one whose QEMU dies."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest

from tests.guest.guest_disk import disk_of, start_io, verify, wait_written
from tests.server_process import ServerProcess
from vfu_images.machine import Machine


@pytest.mark.long
def test_killed_and_rebooted(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """QEMU is killed under I/O; another one gets the same VF, and its guest reboots again and again.

    A guest reboots by itself, and by a reset from outside while I/O is under way. The firmware, which can
    boot from the disk, drives and resets the function each time before Linux does.
    """
    serving = server("--vfs", "1", "--disk", "ram:32M")
    first = machine(devices=[serving.qemu_device("vf1")])
    job = start_io(first, disk_of(first, "vf1"))
    wait_written(job, 800)
    os.kill(first.pid, signal.SIGKILL)
    assert first.wait_exit() == -signal.SIGKILL
    serving.wait_log(r"virtio\.vf1: detached: the client left")

    second = machine(devices=[serving.qemu_device("vf1")])
    assert serving.log.count("vf1: a client attached") == 2
    disk = disk_of(second, "vf1")
    # The disk is in the server's memory: what the killed guest wrote is there.
    written = second.check(f"dd if={disk} bs=512 count=32768 2>/dev/null | strings | grep -c ioverify")
    assert int(written) >= 800
    verify(second, disk)
    for way in ("the guest", "QEMU", "the guest"):
        mark = serving.mark()
        if way == "QEMU":
            wait_written(start_io(second, disk), 400)
            second.qmp("system_reset")
        else:
            # In the background: this command is answered before the guest is gone.
            second.check("(usleep 50000; reboot -f) >/dev/null 2>&1 &")
        second.console.forget_count()
        second.wait_ready(timeout=120)
        assert "vf1: reset by the client" in serving.log[mark:]
        disk = disk_of(second, "vf1")
        verify(second, disk)
    assert serving.alive
    assert "Traceback" not in serving.log
