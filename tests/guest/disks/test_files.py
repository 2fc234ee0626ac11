"""File systems on VFs: made, worked on, checked; and still whole when guest or QEMU end in the middle."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.guest.guest_disk import disk_of
from tests.guest.guest_files import (
    check_file_system,
    look_through,
    make_file_system,
    mount,
    start_work,
    unmount,
    wait_blocks,
    work,
)
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

ENDS = 3
BLOCKS = 30
"""Journal blocks that are on the disk before the guest comes to its end."""


@pytest.fixture
def serving(tmp_path: Path) -> Iterator[ServerProcess]:
    """VF 1 has a file as its disk, VF 2 memory."""
    image = tmp_path / "disk.img"
    with image.open("wb") as file:
        file.truncate(64 << 20)
    with ServerProcess("--vfs", "2", "--disk", "ram:64M", "--disk", f"vf1={image}") as running:
        yield running


@pytest.mark.long
def test_guest_reboots(serving: ServerProcess, machine: Callable[..., Machine]) -> None:
    """File systems on a file and on memory: made, filled, checked, and kept over hasty reboots.

    A reboot comes in the middle of work, with file systems mounted. The next boot finds what was promised
    (fsync), replays the journal, and a full check finds no fault.
    """
    functions = ("vf1", "vf2")
    guest = machine(devices=[serving.qemu_device(function) for function in functions])
    for function in functions:
        disk, folder = disk_of(guest, function), f"/tmp/{function}"
        make_file_system(guest, disk)
        mount(guest, disk, folder)
        work(guest, folder)
        unmount(guest, folder)
        check_file_system(guest, disk)
        mount(guest, disk, folder)
        look_through(guest, folder)
    for _ in range(ENDS):
        jobs = [start_work(guest, f"/tmp/{function}", workers=2) for function in functions]
        promised = [wait_blocks(job, BLOCKS) for job in jobs]
        # In the background: this command is answered before the guest is gone.
        guest.check("(reboot -f) >/dev/null 2>&1 &")
        guest.console.forget_count()
        guest.wait_ready(timeout=120)
        for function, blocks in zip(functions, promised, strict=True):
            recover(guest, function, blocks)
    assert serving.alive
    assert "Traceback" not in serving.log


@pytest.mark.long
def test_qemu_dies(serving: ServerProcess, machine: Callable[..., Machine]) -> None:
    """QEMU is killed in the middle of work, again and again; its successor on the server finds it all."""
    guest = machine(devices=[serving.qemu_device("vf1")])
    disk = disk_of(guest, "vf1")
    make_file_system(guest, disk)
    mount(guest, disk, "/tmp/vf1")
    for attached in range(1, ENDS + 1):
        job = start_work(guest, "/tmp/vf1")
        promised = wait_blocks(job, BLOCKS)
        os.kill(guest.pid, signal.SIGKILL)
        guest.wait_exit()
        serving.wait_log(r"virtio\.vf1: detached: the client left", count=attached)
        guest = machine(devices=[serving.qemu_device("vf1")])
        recover(guest, "vf1", promised)
    assert serving.alive
    assert "Traceback" not in serving.log


def recover(guest: Machine, function: str, promised: int) -> None:
    """Mount a file system that was cut off (Linux replays its journal), look through it, check it."""
    disk, folder = disk_of(guest, function), f"/tmp/{function}"
    mount(guest, disk, folder)
    assert int(look_through(guest, folder)["blocks"]) >= promised
    unmount(guest, folder)
    check_file_system(guest, disk)
    mount(guest, disk, folder)
