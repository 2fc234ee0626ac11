"""A QEMU that runs: its QMP monitor, and the vfio-user devices on its PCI buses."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from vfu_client.qemu.address import Address
from vfu_client.qemu.config_space import ConfigSpace, Ecam, Ports
from vfu_client.qemu.monitor import Monitor, MonitorError

DRIVER = "vfio-user-pci"

PORT_DRIVERS = frozenset({"pcie-root-port", "ioh3420", "xio3130-downstream"})

PERIPHERALS = ("/machine/peripheral", "/machine/peripheral-anon")
"""Where QEMU keeps devices, those with an id and those without."""

UNATTACHED: Final = "/machine/unattached"
"""Where QEMU keeps what a board is made of and has no name."""

Q35_HOST: Final = "q35-pcihost"
PC_HOSTS: Final = frozenset({"i440FX-pcihost", Q35_HOST})
"""The PCI host bridges of PCs, which have the ports; where ECAM is, if anywhere, is for the guest to say."""

NOWHERE: Final = (1 << 64) - 1
"""What QEMU says where that is as long as the guest has not said it."""

GENERIC_HOST: Final = "gpex-pcihost"
"""That of most other boards, `virt` among them, and of microvm: ECAM is where the board has it."""

GENERIC_ECAM: Final = "pcie-ecam[0]"
"""The part of the board's memory that is the generic host bridge's ECAM."""

CHILD = re.compile(r"child<(.+)>")
REGION = re.compile(r"vfio-user:(.+?)(?: base)? BAR \d")


@dataclass(frozen=True)
class Port:
    """A port by the name of its bus: whether something can be plugged while QEMU runs, and what is there."""

    id: str
    bus: str
    pluggable: bool
    devices: tuple[str, ...] = ()


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

    async def version(self) -> tuple[int, int, int]:
        """QEMU's version."""
        number = (await self.execute("query-version"))["qemu"]
        return number["major"], number["minor"], number["micro"]

    # -- its devices

    async def ports(self) -> dict[str, Port]:
        """The ports of PCI Express below which a device can be, by the name of the bus."""
        on: dict[str, list[str]] = {}
        ports: dict[str, Port] = {}
        for path, kind in await self._children(*PERIPHERALS):
            name = path.rsplit("/", 1)[1]
            bus = await self.execute("qom-get", {"path": path, "property": "parent_bus"})
            on.setdefault(str(bus), []).append(name)
            if kind in PORT_DRIVERS:
                pluggable = await self.execute("qom-get", {"path": path, "property": "hotplug"})
                for below, below_kind in await self._children(path):
                    if below_kind == "PCIE":
                        ports[below] = Port(name, below.rsplit("/", 1)[1], bool(pluggable))
        return {port.bus: replace(port, devices=tuple(on.get(at, ()))) for at, port in ports.items()}

    async def window(self, port: Port) -> int:
        """How many bytes of prefetchable memory are routed to a port; 0 where that is not known."""
        for part in await self._functions():
            if part["qdev_id"] == port.id and "pci_bridge" in part:
                window = part["pci_bridge"]["bus"]["prefetchable_range"]
                return max(0, int(window["limit"]) + 1 - int(window["base"]))
        return 0

    async def ids(self) -> set[str]:
        """The ids of all devices that have one."""
        return {path.rsplit("/", 1)[1] for path, _ in await self._children(PERIPHERALS[0])}

    async def _children(self, *folders: str) -> list[tuple[str, str]]:
        """Path and type of what is below, in QEMU's tree of objects."""
        found: list[tuple[str, str]] = []
        for folder in folders:
            entries = await self.execute("qom-list", {"path": folder})
            matches = ((entry["name"], CHILD.fullmatch(entry["type"])) for entry in entries)
            found += [(f"{folder}/{name}", kind[1]) for name, kind in matches if kind]
        return found

    async def devices(self) -> dict[str, str]:
        """The vfio-user devices, by id: the socket that each one is connected to, as QEMU names it.

        Raises QemuError for one without an id.
        """
        found: dict[str, str] = {}
        for path, kind in await self._children(*PERIPHERALS):
            if kind != DRIVER:
                continue
            folder, name = path.rsplit("/", 1)
            if folder != PERIPHERALS[0]:
                raise QemuError(
                    f"{self.name}: a {DRIVER} device has no id: give it one, as in"
                    ' {"driver":"vfio-user-pci","id":"vf1",'
                )
            properties = await self.execute("qom-list", {"path": path})
            regions = (REGION.search(part["name"].replace("\\x2f", "/")) for part in properties)
            found[name] = next((region[1] for region in regions if region), "")
        return found

    async def place(self, device: str) -> tuple[str, str]:
        """Bus, and address on it, of a device as the command line puts it. Raises QemuError for none."""
        path = f"/machine/peripheral/{device}"
        bus = await self.execute("qom-get", {"path": path, "property": "parent_bus"})
        return str(bus), str(await self.execute("qom-get", {"path": path, "property": "addr"}))

    async def addresses(self, devices: Sequence[str]) -> list[Address]:
        """Where devices are on the PCI buses, as the guest numbered them. Raises QemuError for nowhere."""
        found = {part["qdev_id"]: part for part in await self._functions()}
        missing = [device for device in devices if device not in found]
        if missing:
            raise QemuError(
                f"{self.name}: {', '.join(missing)} is not on any PCI bus that the guest has set up"
            )
        return [Address(found[name]["bus"], found[name]["slot"], found[name]["function"]) for name in devices]

    async def config_space(self) -> ConfigSpace:
        """The way to configuration space: ECAM where the board has a place for it, else a PC's ports.

        Raises QemuError where there is neither.
        """
        hosts = await self._hosts()
        if GENERIC_HOST in hosts:
            path = f"{hosts[GENERIC_HOST]}/{GENERIC_ECAM}"
            return Ecam(int(await self.execute("qom-get", {"path": path, "property": "addr"})))
        if PC_HOSTS & hosts.keys():
            return Ports()
        raise QemuError(
            f"{self.name}: this machine has neither a PC's ports nor ECAM of QEMU's generic host bridge"
            f" ({GENERIC_HOST}) to reach PCI registers by: use -machine q35, or virt on ARM and RISC-V"
        )

    async def guests_ecam(self) -> Ecam | None:
        """Where the guest of a PC has put ECAM, None for nowhere. Raises QemuError."""
        path = (await self._hosts()).get(Q35_HOST)
        if path is None:
            return None
        address = int(await self.execute("qom-get", {"path": path, "property": "MCFG"}))
        return None if address == NOWHERE else Ecam(address)

    async def _hosts(self) -> dict[str, str]:
        """The paths of what may be a PCI host bridge, by its kind."""
        return {kind: path for path, kind in await self._children("/machine", UNATTACHED)}

    async def _functions(self) -> list[Mapping[str, Any]]:
        buses = await self.execute("query-pci")
        return [part for bus in buses for part in _functions(bus["devices"])]


def socket_in(path: Path, name: str) -> Path:
    """`path`, or where that is a folder the socket `name`.sock in it, or `name` if that is there."""
    if not path.is_dir():
        return path
    plain = path / name
    return plain if plain.exists() else path / f"{name}.sock"


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
