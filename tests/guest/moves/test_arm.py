"""A VF of a machine without port I/O moves: an ARM `virt`, whose PCI registers are reached by ECAM."""

from __future__ import annotations

import shlex
import subprocess
from collections.abc import Callable

import pytest

from tests.guest.moves.test_other_host import AGENT
from tests.guest.moves.traveller import command_line
from tests.guest.virt import RAM, LowVirt, Virt
from tests.server_process import ServerProcess
from tests.wire.running import until
from vfu_client.vfio.msix import Msix
from vfu_client.virtio.structures import VirtioStructures
from vfu_images.machine import Machine

MESSAGE = RAM + 0x1000
"""Where the VF's messages go: into memory, so that no interrupt controller is needed to see them."""

VALUE = 0xA5

RUNS = 0x0F
"""ACKNOWLEDGE, DRIVER, FEATURES_OK and DRIVER_OK."""

ELSEWHERE = ("--to-command", shlex.join(AGENT), "--ram-address", "127.0.0.1")


def set_up(machine: Virt) -> dict[int, int]:
    """As firmware and a driver do it: port, BARs (where they are now), MSI-X, device status."""
    machine.open_port()
    vf, bars = machine.open_function()
    msix = Msix(vf)
    msix.write_entry(0, MESSAGE, VALUE)
    msix.control = 0x8000
    common = VirtioStructures(vf).common
    for status in (0x01, 0x03):
        common.write("device_status", status)
    common.accept(1 << 32)
    common.write("device_status", 0x0B)
    common.write("config_msix_vector", 0)
    common.write("device_status", RUNS)
    return bars


def look(machine: Virt, bars: dict[int, int]) -> list[object]:
    """What a guest sees of the VF: its header, MSI-X, and the device status."""
    vf = machine.function(1, 0, bars)
    msix = Msix(vf)
    status = VirtioStructures(vf).common.read("device_status")
    return [vf.config_bytes(0, 0x40), msix.control, msix.read_entry(0), msix.read_entry(1), status]


def check_message(machine: Machine, server: ServerProcess) -> None:
    """The VF's message for a change of its configuration comes to where its table says."""
    machine.qtest(f"writel {MESSAGE:#x} 0")
    server.ask("config-change", function="vf1")
    until(lambda: machine.qtest(f"readl {MESSAGE:#x}") == [f"{VALUE:#018x}"], "a message")


@pytest.mark.parametrize(("kind", "options"), [(Virt, ()), (LowVirt, ELSEWHERE)], ids=["here", "elsewhere"])
def test_move(
    server: Callable[..., ServerProcess],
    machine: Callable[..., Virt],
    kind: type[Virt],
    options: tuple[str, ...],
) -> None:
    here, there = (server("--vfs", "1", "--disk", "ram:1M") for _ in range(2))
    source = machine(kind=kind, devices=[here.qemu_device("vf1")], boots=False, ready=False)
    target = machine(kind=kind, devices=[there.qemu_device("vf1")], boots=False, ready=False, incoming=True)
    bars = set_up(source)
    check_message(source, here)
    before = look(source, bars)
    assert before[-1] == RUNS
    words = command_line((source, here), (target, there), *options)
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    assert target.qmp("query-status")["status"] == "running"
    assert look(target, bars) == before
    check_message(target, there)
