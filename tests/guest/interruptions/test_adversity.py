"""Guests that are set up badly or live badly, and a server that dies."""

from __future__ import annotations

import re
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.guest_disk import disk_of, progress, start_io, verify
from tests.server_process import ServerProcess
from vfu_client.drivers.block import BlockDriver
from vfu_images.machine import Machine

SHARED = "memory-backend=mem"


class AnonymousMachine(Machine):
    """Its memory is QEMU's own, as with a plain -m: no other process can have it."""

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        line = super().command_line(serial, kernel_log)
        at = line.index("-object")
        del line[at : at + 2]
        return [word.replace(f",{SHARED}", "") for word in line]


class PrivateMachine(Machine):
    """Its memory is a file mapped privately: another process sees the file, not what the guest writes."""

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        return [word.replace("share=on", "share=off") for word in super().command_line(serial, kernel_log)]


@pytest.mark.parametrize("kind", [AnonymousMachine, PrivateMachine])
def test_memory_that_is_not_shared(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], kind: type[Machine]
) -> None:
    """The server says which QEMU option is missing, and serves the next client well."""
    serving = server("--vfs", "1")
    unshared = machine(kind=kind, devices=[serving.qemu_device("vf1")], ready=False)
    message = serving.wait_log(r"virtio\.vf1: .*memory-backend-memfd,.*share=on", timeout=60)
    assert re.match(r"\S+ (WARNING|ERROR) ", message)
    unshared.close()
    serving.wait_log(r"virtio\.vf1: detached: the client left")
    assert serving.alive
    assert "Traceback" not in serving.log
    # Said a few times at most, however often the guest tries.
    assert serving.log.count("share=on") <= 5


def test_the_server_dies(
    server: Callable[..., ServerProcess], machine: Callable[..., Machine], tmp_path: Path
) -> None:
    """The guest's I/O on the VF stands still for good; guest and QEMU live on, and its other disk works.

    QEMU never connects again (its vfio-user client has no such thing): a new server serves new clients.
    The guest is idle when the server dies: QEMU 11.1.3 may abort (error_setv: Assertion `*errp == NULL')
    when it is about to send just then.
    """
    image = tmp_path / "own.img"
    image.write_bytes(bytes(8 << 20))
    serving = server("--vfs", "1")
    guest = machine(
        devices=[
            serving.qemu_device("vf1"),
            {"driver": "virtio-blk-pci", "drive": "own", "serial": "pymodel-own"},
        ],
        arguments=["-blockdev", f'{{"driver": "file", "node-name": "own", "filename": "{image}"}}'],
    )
    disk, own = disk_of(guest, "vf1"), disk_of(guest, "own")
    verify(guest, disk)
    assert serving.stop(signal.SIGKILL) == -signal.SIGKILL
    job = start_io(guest, disk)
    verify(guest, own, length="8M", count=100)
    report = progress(job)
    assert report["sectors_written"] == 0
    assert guest.qmp("query-status")["status"] == "running"

    serving.start()
    with BlockDriver.open(serving.socket("vf1")) as driver:
        assert driver.get_id() == b"pymodel-vf1"
