"""`vfu-qemu`: a guest that is started with what it prints, and one into which it plugs a PF with its VFs."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.guest.guest_disk import disk_of, verify
from tests.server_process import ServerProcess
from vfu_images.machine import Machine
from vfu_images.workspace import PROJECT

VFU_QEMU = [sys.executable, "-m", "vfu_client.plug.cli"]

PF = "/sys/bus/pci/devices/0000:01:00.0"

ENABLE = f"echo 3 > {PF}/sriov_numvfs"


class PrintedMachine(Machine):
    """One whose devices and memory are what `vfu-qemu` prints, in a shell."""

    server: ServerProcess

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        line = super().command_line(serial, kernel_log)
        for option in ("-object", "-m"):
            at = line.index(option)
            del line[at : at + 2]
        at = line.index("-machine") + 1
        line[at] = line[at].replace("memory-backend=mem,", "")
        printing = [*VFU_QEMU, str(self.server.folder), "--memory", "256M"]
        # Options that are appended to this line are for QEMU too.
        script = f'cd {shlex.quote(str(PROJECT))} && exec "$@" $({shlex.join(printing)})'
        return ["sh", "-c", script, "sh", *line]


def vfu_qemu(command: str, server: ServerProcess, guest: Machine, *words: str | Path) -> tuple[int, str]:
    """Run it on a guest: its status, and what it says."""
    line = [*VFU_QEMU, command, str(server.folder), "--qmp", str(guest.qmp_path), *map(str, words)]
    done = subprocess.run(line, text=True, check=False, capture_output=True)
    assert done.stdout == ""
    return done.returncode, done.stderr


def qtest_of(guest: Machine, way: str) -> list[str | Path]:
    """The options that have it use qtest, or nothing but QMP."""
    return ["--qtest", guest.qtest_path] if way == "qtest" else []


def use(guest: Machine) -> None:
    """Have the guest enable three VFs: each is one to the kernel, has a disk, and one is written to."""
    guest.check(ENABLE)
    for number in (1, 2, 3):
        disk_of(guest, f"vf{number}")
    assert guest.check(f"readlink {PF}/virtfn2").strip() == "../0000:01:03.0"
    verify(guest, disk_of(guest, "vf2"), length="4M")


@pytest.mark.long
def test_printed(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """The text goes through a shell as the documents have it."""
    running = server("--sriov", "guest", "--total-vfs", "3", "--disk", "ram:8M")
    PrintedMachine.server = running
    guest = machine(kind=PrintedMachine, spare_ports=0)
    use(guest)
    assert vfu_qemu("place", running, guest) == (0, "vfu-qemu: all VFs' BARs are where SR-IOV has them\n")


@pytest.mark.long
@pytest.mark.parametrize("way", ["qtest", "qmp"])
def test_plug(server: Callable[..., ServerProcess], machine: Callable[..., Machine], way: str) -> None:
    """Into an empty port of a guest that runs: no firmware gave the VFs' BARs their addresses."""
    running = server("--sriov", "guest", "--total-vfs", "3", "--disk", "ram:8M")
    guest = machine(spare_ports=1)
    status, said = vfu_qemu("plug", running, guest, *qtest_of(guest, way))
    through = {"qtest": "qtest", "qmp": "QMP; the guest stands still meanwhile"}[way]
    assert said.splitlines() == [
        "vfu-qemu: plugging 3 VFs and the PF into port0",
        f"vfu-qemu: programming 6 BARs through {through}",
        "vfu-qemu: 3 VFs are ready to be enabled by the guest (6 BARs were programmed)",
    ]
    assert status == 0
    assert guest.qmp("query-status")["status"] == "running"
    use(guest)
    assert "VF_BARS" not in running.log
    assert "vfu-qemu" not in running.log
    # Again: nothing is done twice, and nothing is lost.
    status, said = vfu_qemu("plug", running, guest, *qtest_of(guest, way))
    assert (status, said.splitlines()[0]) == (0, "vfu-qemu: the PF is plugged, as pf")
    if way == "qmp":
        moved_bar(guest, running)
    status, said = vfu_qemu("unplug", running, guest)
    assert status == 1
    assert "the guest would be lost" in said
    verify(guest, disk_of(guest, "vf3"), length="4M")


def moved_bar(guest: Machine, server: ServerProcess) -> None:
    """A VF's BAR that is elsewhere is put back. A guest that was stopped stays so, and finds the register
    that selects others as it was.
    """
    guest.check(f"echo 0 > {PF}/sriov_numvfs")
    guest.qtest("outl 0xcf8 0x80011010", "outl 0xcfc 0xfdf00000")
    (vf2,) = server.ask("query-functions", function="vf2")
    assert vf2["bars"][0]["found"] == 0xFDF00000
    guest.check(ENABLE)
    server.wait_log("BAR 0 of VF 2 is at 0xfdf00000, and the SR-IOV capability says .*`vfu-qemu place`")
    guest.qmp("stop")
    guest.qtest("outl 0xcf8 0x80000044")
    status, said = vfu_qemu("place", server, guest)
    assert said.splitlines() == [
        "vfu-qemu: programming 1 BARs through QMP; the guest stands still meanwhile",
        "vfu-qemu: 1 BARs are in place now: have the guest disable and enable its VFs, for their drivers",
    ]
    assert status == 0
    assert guest.qtest("inl 0xcf8") == ["0x80000044"]
    assert guest.qmp("query-status")["status"] == "paused"
    guest.qmp("cont")
    guest.check(f"echo 0 > {PF}/sriov_numvfs")
    use(guest)


@pytest.mark.long
def test_ports_that_do_not_fit(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    """Nothing is plugged where it could not be used: QEMU could not take it back."""
    running = server("--sriov", "guest", "--total-vfs", "100", "--disk", "ram:1M")
    fixed = {"driver": "pcie-root-port", "id": "fixed", "hotplug": False, "slot": 40, "chassis": 40}
    guest = machine(spare_ports=1, arguments=["-device", json.dumps(fixed)])
    small = "has 2048 KiB for BARs, and these functions have 2424 KiB: give it pref64-reserve=4M"
    refusals: list[tuple[list[str], str]] = [
        ([], f"the port port0 {small}"),
        (["--bus", "fixed"], "nothing can be plugged into fixed: it has hotplug=off"),
        (["--bus", "pcie.0"], "there is no PCI Express port pcie.0: the machine has fixed, port0"),
    ]
    for words, why in refusals:
        status, said = vfu_qemu("plug", running, guest, *words)
        assert (status, said) == (1, f"vfu-qemu: {why}\n")
    assert not any(function["client-attached"] for function in running.ask("query-functions"))
