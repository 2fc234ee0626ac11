"""What is asked of a Linux, whichever it is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from pathlib import Path

from tests.guest.drivers.conftest import ADDRESS, FILE, SERVER, Served
from tests.guest.guest_disk import address_of, disk_of, rebind, verify
from tests.guest.guest_net import function_address, set_up
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

FAULTS = r"^\S+ (?:WARNING|ERROR) (?!virtio\.rules: ).*|^Traceback.*"


def drive(
    network: Served,
    server: Callable[..., ServerProcess],
    machine: Callable[..., Machine],
    images: Path,
    version: Callable[[str], None],
) -> None:
    """The disks of a PF and a VF, and a network card; each is used, unbound, bound and used again."""
    disks = server("--vfs", "1", "--disk", "ram:32M")
    devices = [disks.qemu_device("pf"), disks.qemu_device("vf1")]
    guest = machine(images=images, devices=[*devices, {**network.server.qemu_device("vf1"), "id": "card"}])
    version(guest.check("uname -r").strip())
    functions = [address_of(guest, "pf"), address_of(guest, "vf1"), function_address(guest)]
    for _ in range(2):
        for function in ("pf", "vf1"):
            verify(guest, disk_of(guest, function))
        set_up(guest, ADDRESS)
        fetched = guest.check(f"tftp -g -r file -l /tmp/file {SERVER}; md5sum /tmp/file")
        assert fetched.split()[-2] == hashlib.md5(FILE).hexdigest()  # noqa: S324 - not for security
        for function in functions:
            rebind(guest, function)
    for serving in (disks, network.server):
        # What the rules for drivers say is the driver's fault, and in docs/compatibility.md.
        assert not re.findall(FAULTS, serving.log, re.MULTILINE)
