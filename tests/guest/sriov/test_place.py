"""`vfu-qemu place` on a machine without port I/O, an ARM `virt`."""

from __future__ import annotations

from collections.abc import Callable

from tests.guest.sriov.test_hot_plug import vfu_qemu
from tests.guest.virt import WINDOW, Virt
from tests.server_process import ServerProcess
from vfu_client.vfio.sriov import SrIov

VF_BARS = {0: WINDOW + 0x18_0000, 2: WINDOW + 0x19_0000}


def test_by_ecam(server: Callable[..., ServerProcess], machine: Callable[..., Virt]) -> None:
    """By ECAM, through qtest: without that, it says what is needed, and does nothing."""
    running = server("--sriov", "guest", "--total-vfs", "2", "--disk", "ram:1M")
    places = {"vf1": "01.0", "vf2": "02.0", "pf": "00.0"}
    devices = [running.qemu_device(name, bus="port0", addr=addr) for name, addr in places.items()]
    guest = machine(kind=Virt, devices=devices, spare_ports=1, boots=False, ready=False)
    guest.open_port()
    pf, _ = guest.open_function()
    sriov = SrIov(pf)
    for number, address in VF_BARS.items():
        pf.config_write(sriov.offset + 0x24 + 4 * number, 4, address)
    status, said = vfu_qemu("place", running, guest)
    assert status == 1
    assert "PCI registers are reached through qtest alone: start it with -qtest unix:QTEST" in said
    status, said = vfu_qemu("place", running, guest, "--qtest", guest.qtest_path)
    assert said.splitlines() == [
        "vfu-qemu: programming 4 BARs through qtest",
        "vfu-qemu: 4 BARs are in place now",
    ]
    assert status == 0
    sriov.enable(2)
    vf1 = guest.function(1, 1)
    assert [vf1.config_read(0x10 + 4 * number, 4) & ~0xF for number in VF_BARS] == list(VF_BARS.values())
