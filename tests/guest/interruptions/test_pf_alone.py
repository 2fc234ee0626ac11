"""The PF in a guest without MSI, while nobody is on its VFs: INTx, and resets that take the VFs away."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from tests.guest.guest_disk import DRIVER, address_of, disk_of, verify
from tests.server_process import ServerProcess
from tests.wire.running import until
from vfu_images.machine import Machine


@pytest.fixture(scope="module")
def serving() -> Iterator[ServerProcess]:
    with ServerProcess("--vfs", "2") as running:
        yield running


@pytest.fixture(scope="module")
def guest(serving: ServerProcess) -> Iterator[Machine]:
    with Machine(devices=[serving.qemu_device("pf")], append="pci=nomsi") as running:
        running.wait_ready(timeout=120)
        yield running


def sockets(serving: ServerProcess) -> list[str]:
    """The functions that have a socket."""
    return sorted(path.stem for path in serving.folder.glob("[pv]f*.sock"))


def interrupts(guest: Machine) -> int:
    """How many INTx interrupts virtio devices had so far."""
    table = guest.check("cat /proc/interrupts")
    row = re.search(r"^ *\d+: +(\d+) +IO-APIC.*virtio", table, re.MULTILINE)
    assert row is not None, table
    return int(row[1])


def test_intx(guest: Machine) -> None:
    """The PF works through INTx, as it must; VFs have none, as SR-IOV demands."""
    assert "MSI-X: Enable-" in guest.check("lspci -vv -d 1af4:")
    before = interrupts(guest)
    verify(guest, disk_of(guest, "pf"), depth=1, count=300)
    assert interrupts(guest) - before >= 300
    verify(guest, disk_of(guest, "pf"), depth=32, count=1000)


def reset_function(serving: ServerProcess, guest: Machine) -> None:
    """FLR of the PF, which takes the VFs away.

    The driver lets go of it first: Linux 7.3 (vp_modern_avq_cleanup) uses the admin queue that it has freed
    when a reset of its device is over, and dies of that whatever the device does.
    """
    address = address_of(guest, "pf")
    guest.check(f"echo {address} > {DRIVER}/unbind")
    guest.check(f"echo flr > /sys/bus/pci/devices/{address}/reset_method")
    mark = serving.mark()
    guest.check(f"echo 1 > /sys/bus/pci/devices/{address}/reset")
    serving.wait_log(r"virtio\.pf: function-level reset", since=mark)
    until(lambda: sockets(serving) == ["pf"], "the sockets of the VFs go")
    guest.check(f"echo {address} > {DRIVER}/bind")


def test_function_level_reset(serving: ServerProcess, guest: Machine) -> None:
    """FLR of the PF clears VF Enable, and the VFs' sockets go; the PF itself works again under its driver."""
    reset_function(serving, guest)
    verify(guest, disk_of(guest, "pf"))
    assert sockets(serving) == ["pf"]


def test_reset_of_the_machine(serving: ServerProcess, guest: Machine) -> None:
    """A reset of the whole machine is as power-on: the VFs are there again."""
    reset_function(serving, guest)
    mark = serving.mark()
    guest.qmp("system_reset")
    guest.console.forget_count()
    guest.wait_ready(timeout=120)
    serving.wait_log(r"virtio\.pf: 2 VFs enabled", since=mark)
    verify(guest, disk_of(guest, "pf"))
    assert sockets(serving) == ["pf", "vf1", "vf2"]
