"""Boots a guest for a person, on this terminal."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from images.machine import Machine
from images.workspace import say

MSG_TIMEOUT_MS = 60_000
"""How long QEMU waits for a server before it hangs up on it for good; its own 5 s are short."""


def boot(sockets: list[Path], disks: list[Path], memory_mib: int, accel: str) -> None:
    """Replace this process by a QEMU with a shell in the guest; leave it with `poweroff -f` or Ctrl-A X.

    Each socket is a vfio-user server's, each disk a raw file for QEMU's own virtio-blk-pci.
    """
    devices: list[dict[str, object]] = []
    arguments = []
    for number, disk in enumerate(disks):
        file = {"driver": "file", "node-name": f"disk{number}", "filename": str(disk.absolute())}
        arguments += ["-blockdev", json.dumps(file)]
        devices.append({"driver": "virtio-blk-pci", "drive": f"disk{number}"})
    stems = [path.stem for path in sockets]
    devices += [
        {
            "driver": "vfio-user-pci",
            # What hot-unplugging and vfu-migrate know it by.
            "id": path.stem if stems.count(path.stem) == 1 else f"{path.stem}-{number}",
            "x-msg-timeout": MSG_TIMEOUT_MS,
            "socket": {"type": "unix", "path": str(path.absolute())},
        }
        for number, path in enumerate(sockets)
    ]
    machine = Machine(
        devices=devices,
        arguments=arguments,
        memory_mib=memory_mib,
        accel=accel,
        append="guest.shell",
        spare_ports=0,
    )
    command = machine.command_line(serial="mon:stdio")
    say("starting; the guest's shell comes in a few seconds (`poweroff -f` or Ctrl-A X ends it)")
    sys.stdout.flush()
    os.execv(command[0], command)  # noqa: S606 - QEMU is to have this terminal, and no shell is in between
