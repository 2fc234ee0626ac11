"""QEMU's `virt` machine for ARM, which has no port I/O. A test does there what firmware and a guest would."""

from __future__ import annotations

from typing import cast

from vfu_client.vfio.connection import Connection
from vfu_client.vfio.pci import PciFunction
from vfu_images import qemu
from vfu_images.machine import Machine

RAM = 0x4000_0000

WINDOW = 0x1000_0000
"""What the board routes to PCI (hw/arm/virt.c): here 1 MiB for BARs, and 1 MiB for those that are
prefetchable.
"""

CONFIG = 7
"""The region of vfio-user that is configuration space; those before are the BARs."""


class Virt(Machine):
    """`board` is what -machine is given. There is no kernel, and the processor is off."""

    board = "virt"
    ecam = 0x40_1000_0000

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        line = super().command_line(serial, kernel_log)
        line[0] = str(self.images / qemu.ARM)
        line[line.index("-machine") + 1] = f"{self.board},memory-backend=mem"
        return [*line, "-cpu", "cortex-a57,start-powered-off=on"]

    def function(self, bus: int, slot: int, bars: dict[int, int] | None = None) -> PciFunction:
        """A function as the guest reaches it, and its BARs if it is told where they are."""
        places = {CONFIG: self.ecam + (bus << 20 | slot << 15), **(bars or {})}
        return PciFunction(cast("Connection", _Reached(self, places)))

    def open_port(self) -> None:
        """Have the first root port lead to bus 1, with both kinds of memory."""
        port = self.function(0, 0x10)
        port.config_write(0x18, 4, 0x01_01_00)
        port.config_write(0x20, 4, 0x1000_1000)
        port.config_write(0x24, 4, 0x1010_1010)
        port.set_command(0x6)

    def open_function(self, slot: int = 0) -> tuple[PciFunction, dict[int, int]]:
        """Give BARs to a function of bus 1, and let it be reached and write memory; where its BARs are."""
        function = self.function(1, slot)
        free = {False: WINDOW, True: WINDOW + 0x10_0000}
        bars = {}
        for bar in function.bars():
            bars[bar.index] = -(-free[bar.prefetchable] // bar.size) * bar.size
            free[bar.prefetchable] = bars[bar.index] + bar.size
            function.config_write(0x10 + 4 * bar.index, 4, bars[bar.index])
        function.set_command(0x6)
        return self.function(1, slot, bars), bars


class LowVirt(Virt):
    """All below 4 GiB, ECAM too."""

    board = "virt,highmem=off"
    ecam = 0x3F00_0000


class _Reached:
    """What `PciFunction` asks of a connection; each region is memory."""

    def __init__(self, machine: Machine, places: dict[int, int]) -> None:
        self._machine = machine
        self._places = places

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        (answer,) = self._machine.qtest(f"read {self._places[region] + offset:#x} {count:#x}")
        return bytes.fromhex(answer.removeprefix("0x"))

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool | None = None) -> None:
        del posted
        letter = {1: "b", 2: "w", 4: "l"}[len(data)]
        value = int.from_bytes(data, "little")
        self._machine.qtest(f"write{letter} {self._places[region] + offset:#x} {value:#x}")
