"""A QEMU that runs: its QMP monitor, and the vfio-user devices on its PCI buses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfu_client.qemu.address import Address
from vfu_client.qemu.monitor import Monitor, MonitorError

DRIVER = "vfio-user-pci"

REGION = re.compile(r"vfio-user:(.+?)(?: base)? BAR \d")


class QemuError(MonitorError):
    """QEMU refused a command, is not in the state that is needed, or does not answer; the message tells."""


class RunningQemu(Monitor):
    """What can be asked of any machine."""

    error = QemuError

    def __init__(self, name: str, qmp: Path, events: Sequence[str] = ()) -> None:
        hint = f"give QEMU -qmp unix:{qmp},server=on,wait=off; a monitor takes one client at a time"
        super().__init__(name, qmp, hint, events)

    async def status(self) -> str:
        """The run state: running, paused, inmigrate ..."""
        return str((await self.execute("query-status"))["status"])

    # -- its passthrough devices

    async def devices(self) -> dict[str, str]:
        """The vfio-user devices, by id: the socket that each one is connected to, as QEMU names it.

        Raises QemuError for one without an id.
        """
        found: dict[str, str] = {}
        for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
            for child in await self.execute("qom-list", {"path": folder}):
                if child["type"] != f"child<{DRIVER}>":
                    continue
                if folder.endswith("-anon"):
                    raise QemuError(
                        f"{self.name}: a {DRIVER} device has no id: give it one, as in"
                        ' {"driver":"vfio-user-pci","id":"vf1",'
                    )
                properties = await self.execute("qom-list", {"path": f"{folder}/{child['name']}"})
                names = (REGION.search(part["name"].replace("\\x2f", "/")) for part in properties)
                found[child["name"]] = next((name[1] for name in names if name), "")
        return found

    async def place(self, device: str) -> tuple[str, str]:
        """Bus, and address on it, of a device as the command line puts it. Raises QemuError for none."""
        path = f"/machine/peripheral/{device}"
        bus = await self.execute("qom-get", {"path": path, "property": "parent_bus"})
        return str(bus), str(await self.execute("qom-get", {"path": path, "property": "addr"}))

    async def addresses(self, devices: Sequence[str]) -> list[Address]:
        """Where devices are on the PCI buses, as the guest numbered them. Raises QemuError for nowhere."""
        buses = await self.execute("query-pci")
        found = {part["qdev_id"]: part for bus in buses for part in _functions(bus["devices"])}
        missing = [device for device in devices if device not in found]
        if missing:
            raise QemuError(
                f"{self.name}: {', '.join(missing)} is not on any PCI bus that the guest has set up"
            )
        return [Address(found[name]["bus"], found[name]["slot"], found[name]["function"]) for name in devices]


def same_socket(named: str, path: Path) -> bool:
    """Whether the socket that QEMU names is the one at `path`; a relative name may be of another folder."""
    try:
        return os.path.samefile(named, path)
    except OSError:
        return bool(named) and path.resolve().as_posix().endswith(os.path.normpath(named).lstrip("./"))


def _functions(devices: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for device in devices:
        yield device
        yield from _functions(device.get("pci_bridge", {}).get("devices", ()))
