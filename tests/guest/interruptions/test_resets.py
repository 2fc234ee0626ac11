"""What stops a function and sets it going again, from inside the guest; I/O after (or over) each."""

from __future__ import annotations

import pytest

from tests.guest.conftest import Plain
from tests.guest.guest_disk import (
    DRIVER,
    address_of,
    disk_of,
    finish,
    progress,
    rebind,
    start_io,
    verify,
    wait_written,
)

PM_CONTROL = "CAP_PM+4.w"

FUNCTIONS = pytest.mark.parametrize("function", ["pf", "vf1"])


@FUNCTIONS
def test_unbind_and_bind(plain: Plain, function: str) -> None:
    """The driver leaves and comes back, three times."""
    guest, server = plain.guest, plain.server
    address = address_of(guest, function)
    for _ in range(3):
        mark = server.mark()
        rebind(guest, address)
        verify(guest, disk_of(guest, function))
        log = server.log[mark:]
        assert f"virtio.{function}: device reset" in log
        assert "DRIVER_OK" in log


def test_function_level_reset(plain: Plain) -> None:
    """FLR of a VF through sysfs, under its driver, which restores the device; three times.

    Not of the PF: there Linux 7.3 uses its admin queue after it freed it (vp_modern_avq_cleanup on the way
    back from any reset or sleep), and dies of that whatever the device does.
    """
    guest, server = plain.guest, plain.server
    device = f"/sys/bus/pci/devices/{address_of(guest, 'vf1')}"
    assert "flr" in guest.check(f"cat {device}/reset_method").split()
    guest.check(f"echo flr > {device}/reset_method")
    for _ in range(3):
        mark = server.mark()
        guest.check(f"echo 1 > {device}/reset")
        server.wait_log(r"virtio\.vf1: function-level reset", since=mark)
        verify(guest, disk_of(guest, "vf1"))


def test_function_level_reset_without_a_driver(plain: Plain) -> None:
    """FLR of a VF that nobody drives; a driver finds it as new."""
    guest, server = plain.guest, plain.server
    address = address_of(guest, "vf1")
    mark = server.mark()
    guest.check(f"echo {address} > {DRIVER}/unbind")
    guest.check(f"echo flr > /sys/bus/pci/devices/{address}/reset_method")
    guest.check(f"echo 1 > /sys/bus/pci/devices/{address}/reset")
    server.wait_log(r"virtio\.vf1: function-level reset", since=mark)
    guest.check(f"echo {address} > {DRIVER}/bind")
    verify(guest, disk_of(guest, "vf1"))


@FUNCTIONS
def test_power_states_without_a_driver(plain: Plain, function: str) -> None:
    """D3hot and back; the BARs answer in D0 only (QEMU itself unmaps them in D3hot)."""
    guest = plain.guest
    address = address_of(guest, function)
    guest.check(f"echo {address} > {DRIVER}/unbind")
    # Bus master and memory space are off now; the latter is needed to look at the BAR.
    guest.check(f"setpci -s {address} COMMAND=6")
    bar = int(guest.check(f"setpci -s {address} BASE_ADDRESS_0.l"), 16) & ~0xF
    num_queues = hex(bar + 0x12)
    awake = guest.check(f"devmem {num_queues} 16").strip()
    assert awake == "0x0002"
    guest.check(f"setpci -s {address} {PM_CONTROL}=3:3")
    assert int(guest.check(f"setpci -s {address} {PM_CONTROL}"), 16) & 3 == 3
    assert guest.check(f"devmem {num_queues} 16").strip() in {"0x0000", "0xFFFF"}
    guest.check(f"setpci -s {address} {PM_CONTROL}=0:3")
    assert int(guest.check(f"setpci -s {address} {PM_CONTROL}"), 16) & 3 == 0
    assert guest.check(f"devmem {num_queues} 16").strip() == awake
    guest.check(f"echo {address} > {DRIVER}/bind")
    verify(guest, disk_of(guest, function))


def test_power_states_under_io(plain: Plain) -> None:
    """In D3hot I/O stands still, in D0 it goes on: requests made meanwhile are found, nothing is lost."""
    guest = plain.guest
    address = address_of(guest, "vf1")
    job = start_io(guest, disk_of(guest, "vf1"))
    for _ in range(3):
        wait_written(job, progress(job)["sectors_written"] + 400)
        guest.check(f"setpci -s {address} {PM_CONTROL}=3:3")
        asleep = progress(job)
        while (later := progress(job))["gap_now_ms"] < 100:
            pass
        assert later["sectors_written"] == asleep["sectors_written"]
        guest.check(f"setpci -s {address} {PM_CONTROL}=0:3")
        wait_written(job, later["sectors_written"] + 400)
    assert finish(job)["longest_gap_ms"] >= 100
