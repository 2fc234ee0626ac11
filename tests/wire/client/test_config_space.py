"""The ways to PCI configuration space: the accesses of each, and which one a machine has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from vfu_client.qemu.address import Address
from vfu_client.qemu.config_space import ConfigSpace, Ecam, Ports
from vfu_client.qemu.running import QemuError, RunningQemu

PLACE = Address(3, 0x1F, 5)


@pytest.mark.parametrize(
    ("offset", "size", "ports", "ecam"),
    [
        (0x44, 4, ("outl 0xcf8 0x8003fd44", "outl 0xcfc 0x7"), ("writel 0x303fd044 0x7",)),
        (0x46, 2, ("outl 0xcf8 0x8003fd44", "outw 0xcfe 0x7"), ("writew 0x303fd046 0x7",)),
        (0x3D, 1, ("outl 0xcf8 0x8003fd3c", "outb 0xcfd 0x7"), ("writeb 0x303fd03d 0x7",)),
    ],
)
def test_write(offset: int, size: int, ports: tuple[str, ...], ecam: tuple[str, ...]) -> None:
    assert Ports().write(PLACE, offset, size, 7) == ports
    assert Ecam(0x3000_0000).write(PLACE, offset, size, 7) == ecam


def test_read() -> None:
    """Always a whole word."""
    assert Ports().read(PLACE, 0x46) == ("outl 0xcf8 0x8003fd44", "inl 0xcfc")
    assert Ecam(0x3000_0000).read(PLACE, 0x46) == ("readl 0x303fd044",)


class Told(RunningQemu):
    """A QEMU whose objects a test tells: type and name of each child by folder, and where ECAM is."""

    def __init__(self, objects: Mapping[str, list[tuple[str, str]]], ecam: int | None = None) -> None:
        super().__init__("source", Path("qmp"))
        self._objects = objects
        self._ecam = ecam

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, seconds: float = 0.0
    ) -> Any:
        del seconds
        assert arguments is not None
        if command == "qom-list":
            children = self._objects.get(str(arguments["path"]), [])
            return [{"name": name, "type": f"child<{kind}>"} for kind, name in children]
        place = {"path": "/machine/unattached/device[5]/pcie-ecam[0]", "property": "addr"}
        assert (command, arguments) == ("qom-get", place)
        return self._ecam


BOARD = {
    "/machine": [("container", "unattached"), ("container", "peripheral")],
    "/machine/unattached": [("cortex-a57-arm-cpu", "device[0]"), ("gpex-pcihost", "device[5]")],
}


@pytest.mark.parametrize(
    ("qemu", "way"),
    [
        (Told({"/machine": [("q35-pcihost", "q35"), ("container", "unattached")]}), Ports()),
        (Told({"/machine": [("i440FX-pcihost", "i440fx")]}), Ports()),
        (Told(BOARD, 0x40_1000_0000), Ecam(0x40_1000_0000)),
    ],
    ids=["q35", "pc", "virt"],
)
def test_found(qemu: RunningQemu, way: ConfigSpace) -> None:
    found = asyncio.run(qemu.config_space())
    assert (type(found), vars(found)) == (type(way), vars(way))


def test_neither() -> None:
    with pytest.raises(
        QemuError, match=r"^source: .* neither a PC's ports nor ECAM .*: use -machine q35, or"
    ):
        asyncio.run(Told({"/machine": [("xilinx-pcie-host", "pcie")]}).config_space())
