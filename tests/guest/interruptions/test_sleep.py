"""A machine that sleeps (S3, suspend to memory) and wakes up: its disk and its network go on."""

from __future__ import annotations

import re
from collections.abc import Callable

from tests.guest.guest_disk import disk_of, finish, progress, start_io, verify, wait_written
from tests.server_process import ServerProcess
from vfu_images.machine import Machine
from vfu_images.workspace import IMAGES

# QEMU writes an ELF kernel into memory anew at each reset, also at that of a wake-up.
KERNEL = ("-kernel", str(IMAGES / "vmlinuz"))


def sleep_and_wake(guest: Machine) -> None:
    """Suspend to memory, wake up by QEMU's own means, and wait until the guest says so.

    Nothing is typed before: the console's input is lost until its driver is awake. Once for a machine: the
    second time it comes back at once, with QEMU's own devices too.
    """
    guest.check("(echo mem >/sys/power/state; echo guest: awake $? >/dev/ttyS0) >/dev/null 2>&1 &")
    guest.wait_event("SUSPEND", timeout=60)
    guest.qmp("system_wakeup")
    guest.console.expect(re.compile(rb"guest: awake 0"), timeout=60)


def test_suspend_to_memory(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """I/O that is under way goes on after it, and frames reach the other VF and come back."""
    disks = server("--vfs", "1", "--disk", "ram:32M")
    nets = server("--vfs", "2", device="net")
    devices = [disks.qemu_device("vf1")]
    devices += [{**nets.qemu_device(name), "id": f"net-{name}"} for name in ("vf1", "vf2")]
    guest = machine(devices=devices, arguments=KERNEL)
    disk = disk_of(guest, "vf1")
    guest.check("unshare -n sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/there")
    guest.check(
        "until [ $(readlink /proc/$(cat /tmp/there)/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done"
    )
    guest.check("ip link set eth1 netns $(cat /tmp/there)")
    there = "nsenter -t $(cat /tmp/there) -n"
    guest.check("ip link set eth0 up; ip address add 10.9.0.1/24 dev eth0")
    guest.check(f"{there} ip link set eth1 up; {there} ip address add 10.9.0.2/24 dev eth1")
    job = start_io(guest, disk, depth=4, length="8M")
    wait_written(job, progress(job)["sectors_written"] + 100)
    guest.check("ping -c 2 -i 0.2 -W 5 10.9.0.2")
    sleep_and_wake(guest)
    wait_written(job, progress(job)["sectors_written"] + 100)
    finish(job)
    verify(guest, disk)
    guest.check("ping -c 3 -i 0.2 -W 5 10.9.0.2")
