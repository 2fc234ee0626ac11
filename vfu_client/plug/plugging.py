"""A PF and its VFs are plugged into a guest that runs, and unplugged where QEMU can."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from pathlib import Path

from vfu_client.plug.arrangement import Device, placed
from vfu_client.plug.bars import POLL_SECONDS, Say, await_addresses, devices_of, place
from vfu_client.plug.server import PF, Served, Server
from vfu_client.qemu.running import Port, QemuError, RunningQemu

ADD_SECONDS = 90.0
"""For a device: QEMU waits for the server up to the device's x-msg-timeout."""

GONE_SECONDS = 30.0
"""For a guest to let go of a device."""

UNPLUG_ABORTS = (11, 1, 3)
"""The last QEMU that is known to abort when a vfio-user-pci device with MSI-X is unplugged."""


class Plugging:
    """A server and a QEMU, both connected. All of it raises ServerError, QemuError or QTestError."""

    def __init__(self, server: Server, qemu: RunningQemu, say: Say) -> None:
        self._server = server
        self._qemu = qemu
        self._say = say

    async def plug(self, *, bus: str | None, prefix: str, qtest: Path | None, seconds: float) -> None:
        """Plug all, or what is missing, and have the guest find all where SR-IOV says."""
        served = await self._server.served()
        served.for_guest()
        here = await devices_of(served, self._qemu)
        if PF in here:
            self._say(f"the PF is plugged, as {here[PF]}")
        else:
            await self._add(served, here, bus, prefix)
        await await_addresses(self._server, seconds, self._say)
        count = await place(self._server, self._qemu, qtest, self._say)
        self._say(
            f"{len(served.vfs)} VFs are ready to be enabled by the guest ({count} BARs were programmed)"
        )

    async def unplug(self, *, anyway: bool) -> None:
        """Unplug all. Raises QemuError for a QEMU that would abort over it, unless `anyway`."""
        served = await self._server.served()
        here = await devices_of(served, self._qemu)
        if not here:
            raise QemuError(f"{self._qemu.name} at {self._qemu.qmp_path} has no function of {served.folder}")
        if not anyway and not await self._can_unplug():
            version = ".".join(map(str, await self._qemu.version()))
            raise QemuError(
                f"QEMU {version} aborts when a vfio-user-pci device is unplugged, whatever the guest does:"
                " the guest would be lost. Have the guest let go of the PF instead"
                " (echo 1 > /sys/bus/pci/devices/0000:BB:00.0/remove), and restart QEMU when it suits."
                " Nothing was touched; --even-if-qemu-aborts does it all the same"
            )
        self._say(f"unplugging {len(here)} functions, the PF first")
        await self._remove([here[name] for name in sorted(here, key=lambda name: name != PF)])
        self._say("unplugged")

    # -- inside

    async def _add(self, served: Served, here: dict[str, str], bus: str | None, prefix: str) -> None:
        """Plug what is not there: VFs into slots that the guest has no eyes for yet, then the PF."""
        elsewhere = sorted(served.attached - here.keys())
        if elsewhere:
            raise QemuError(
                f"{_some(elsewhere)} of {served.folder} have another client: a function has one at a time"
            )
        if (status := await self._qemu.status()) != "running":
            raise QemuError(f"{self._qemu.name}: the guest is {status!r}: let it run (`cont`), then plug")
        port = await self._chosen(served, bus, frozenset(here.values()))
        devices = [
            each
            for name, each in zip((*served.vfs, PF), placed(served, port.bus, prefix), strict=True)
            if name not in here
        ]
        taken = sorted({each["id"] for each in devices} & await self._qemu.ids())
        if taken:
            raise QemuError(f"{self._qemu.name} has devices {_some(taken)} already: give --id-prefix")
        self._say(f"plugging {len(devices) - 1} VFs and the PF into {port.bus}")
        plugged: list[str] = []
        try:
            for each in devices:
                await self._qemu.execute("device_add", each, seconds=ADD_SECONDS)
                plugged.append(each["id"])
        except QemuError as error:
            raise QemuError(f"{error}. {await self._undone(plugged, devices)}") from error

    async def _chosen(self, served: Served, bus: str | None, ours: frozenset[str]) -> Port:
        """The port to plug into, which has room for all BARs: the guest could not make any later."""
        for port in (ports := _candidates(await self._qemu.ports(), bus, ours)):
            window, needed = await self._qemu.window(port), served.memory_of_bars
            # One that is not known may be what the guest sets up as it likes.
            if not 0 < window < needed:
                return port
        raise QemuError(
            f"the port {ports[-1].bus} has {window >> 10} KiB for BARs, and these functions have"
            f" {needed >> 10} KiB: give it pref64-reserve={1 << (needed - 1).bit_length() - 20}M"
        )

    async def _undone(self, plugged: Sequence[str], devices: Sequence[Device]) -> str:
        """Take back what was plugged, if QEMU can; what is left, in words."""
        if not plugged:
            return "Nothing was plugged"
        if await self._can_unplug():
            with contextlib.suppress(QemuError):
                await self._remove(plugged)
                return "What was plugged has been unplugged"
        return (
            f"{len(plugged)} of {len(devices)} are plugged ({_some(plugged)}): the guest does not see them,"
            " and this QEMU cannot unplug them. Put that right and run the command again: it goes on there"
        )

    async def _can_unplug(self) -> bool:
        try:
            return await self._qemu.version() > UNPLUG_ABORTS
        except QemuError:
            return False

    async def _remove(self, devices: Sequence[str]) -> None:
        """One after the other; with the PF the guest may let go of all."""
        for each in devices:
            if each in await self._qemu.ids():
                await self._qemu.execute("device_del", {"id": each})
            deadline = time.monotonic() + GONE_SECONDS
            while each in await self._qemu.ids():
                if time.monotonic() > deadline:
                    raise QemuError(f"{self._qemu.name}: the guest did not let go of {each}")
                await asyncio.sleep(POLL_SECONDS)


def _candidates(ports: dict[str, Port], bus: str | None, ours: frozenset[str]) -> list[Port]:
    """Ports to plug into: empty, but for what is ours from an earlier time. Raises QemuError for none."""
    if bus is None:
        begun = [port for port in ports.values() if ours.intersection(port.devices)]
        free = [port for port in ports.values() if port.pluggable and not port.devices]
        if begun or free:
            return begun or free
        raise QemuError(
            "no empty port that something can be plugged into: start QEMU with a spare one"
            " (-device pcie-root-port,id=spare,slot=9,pref64-reserve=32M)"
        )
    if bus not in ports:
        raise QemuError(
            f"there is no PCI Express port {bus}: the machine has {_some(sorted(ports)) or 'none'}"
        )
    port = ports[bus]
    if not port.pluggable:
        raise QemuError(f"nothing can be plugged into {bus}: it has hotplug=off")
    if strangers := sorted(set(port.devices) - ours):
        raise QemuError(f"the port {bus} is not empty, it has {_some(strangers)}: name another")
    return [port]


def _some(names: Sequence[str]) -> str:
    """Names, but not all of hundreds."""
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
