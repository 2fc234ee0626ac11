"""UEFI firmware (OVMF) gives VFs other BARs than the capability has: what the server does about it."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable

import pytest

from tests.guest.sriov.guest_sriov import Owned, guest_options
from tests.server_process import ServerProcess
from vfu_images import firmware
from vfu_images.machine import Machine
from vfu_images.qmp import QMP
from vfu_images.workspace import SetupError

ECAM = 0xE0000000
"""Where OVMF has it on a q35."""


class UefiMachine(Machine):
    """Its firmware starts the kernel by the kernel's own stub for UEFI, which a bare vmlinux has not."""

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        line = super().command_line(serial, kernel_log)
        line[line.index("-kernel") + 1] = str(self.images / "vmlinuz")
        return [*line, "-bios", str(firmware.OVMF)]

    def wait_ready(self, *, timeout: float = 60.0) -> None:
        """See `Machine`; the firmware does not end its last line."""
        self.console.expect(re.compile(rb"guest: ready\r?\n"), timeout=timeout)


@pytest.fixture(scope="module", autouse=True)
def _prepared() -> None:
    if not firmware.OVMF.is_file():
        raise SetupError(f"{firmware.OVMF} is missing; run `python3 -m images drivers` first")


@pytest.mark.long
def test_bars_elsewhere(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """`--ecam auto` finds ECAM and programs BARs, `--ecam ADDRESS` too; without it both addresses are told.

    Three PFs of one guest, each of a server with one of these.
    """
    found, given, neither = (
        Owned(server(*guest_options(2, "--disk", "ram:8M", ecam=ecam)), 2, port=port, prefix=f"{name}-")
        for port, (name, ecam) in enumerate((("auto", "auto"), ("given", f"{ECAM:#x}"), ("none", "")))
    )
    devices = [device for owned in (found, given, neither) for device in owned.devices()]
    guest = machine(kind=UefiMachine, devices=devices, spare_ports=3, memory_mib=384)
    found.server.wait_log(rf"ECAM is at {ECAM:#x}, as the guest's table MCFG says")
    for owned in (found, given):
        # Well before there are VFs.
        owned.server.wait_log(r"virtio\.pf: \d+ BARs of VFs were programmed")
        for _ in range(2):
            owned.enable(guest, 2)
            assert all(wanted == now for number in (1, 2) for wanted, now in owned.bars(number))
            owned.verify(guest, 0, 1, 2)
            owned.enable(guest, 0)
        assert "the SR-IOV capability says" not in owned.server.log

    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(neither.server.folder / "monitor.sock"))
        monitor = QMP(connection)
        monitor.negotiate()
        neither.enable(guest, 2)
        told = monitor.wait_event("VF_BARS_MISPLACED")["data"]
    line = neither.server.wait_log(r"virtio\.pf: BAR \d of VF \d is at 0x")
    bars = neither.bars(int(told["vf"].removeprefix("vf")))
    assert (told["wanted"], told["found"]) == bars[told["bar"] // 2]
    assert told["count"] == sum(wanted != found for n in (1, 2) for wanted, found in neither.bars(n)) > 0
    assert f"is at {told['found']:#x}, and the SR-IOV capability says {told['wanted']:#x}" in line
    assert "--ecam auto" in line
    neither.verify(guest, 0)
    assert all("Traceback" not in owned.server.log for owned in (found, given, neither))
