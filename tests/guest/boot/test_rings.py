"""Linux on every kind of ring that it knows: what it takes of what is offered, and I/O on it."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from tests.guest.guest_disk import address_of, disk_of, rebind, verify
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

BITS = {
    "indirect": 28,
    "event-idx": 29,
    "packed": 34,
    "in-order": 35,
    "notification-data": 38,
    "ring-reset": 40,
}


@pytest.mark.long
@pytest.mark.parametrize(
    "without",
    [
        "packed",
        "indirect",
        "packed,indirect,in-order",
        "event-idx,in-order,notification-data",
        ",".join(BITS),
    ],
)
def test_without(server: Callable[..., ServerProcess], machine: Callable[..., Machine], without: str) -> None:
    """What is not offered is not taken, the rest is; nothing that is written is lost, on one queue or two."""
    running = server("--vfs", "1", "--queues", "2", "--disk", "ram:32M", "--without", without)
    guest = machine(devices=[running.qemu_device("pf"), running.qemu_device("vf1")], cpus=2)
    for function in ("pf", "vf1"):
        address = address_of(guest, function)
        text = guest.check(f"cat /sys/bus/pci/devices/{address}/virtio*/features").strip()
        taken = {name for name, bit in BITS.items() if text[bit] == "1"}
        assert taken == BITS.keys() - set(without.split(","))
        disk = disk_of(guest, function)
        verify(guest, disk, depth=1, count=200)
        verify(guest, disk, depth=32, count=2000)
        verify(guest, disk, depth=4, count=100, block=65536)
        # Rings of a driver that comes back begin anew.
        rebind(guest, address)
        verify(guest, disk_of(guest, function), depth=8, count=300)
    assert not re.search(r"virtio.*(not a head|out of range|broken)", guest.check("dmesg"))
    assert " ERROR " not in running.log
