"""Linux under `--check-driver`: a driver that does nothing wrong is told nothing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.guest.guest_disk import address_of, disk_of, rebind, verify
from tests.guest.networks.test_one_guest import THERE, transfer
from tests.server_process import ServerProcess
from vfu_images.machine import Machine

LINUX = {
    # It knows nothing of it.
    "FEAT-06",
}
"""What the drivers of disks and networks in Linux 7.3 are told; each is right (docs/compatibility.md)."""


def broken(server: ServerProcess) -> dict[str, int]:
    """How often each rule was broken so far."""
    assert "the server made a mistake" not in server.log
    return server.breaches()


def since(server: ServerProcess, before: dict[str, int]) -> set[str]:
    """The rules that were broken since then."""
    return {rule for rule, count in broken(server).items() if count > before[rule]}


@pytest.mark.long
@pytest.mark.parametrize("without", ["packed", "event-idx"])
def test_disks(server: Callable[..., ServerProcess], machine: Callable[..., Machine], without: str) -> None:
    running = server(
        *("--vfs", "1", "--queues", "2", "--disk", "ram:32M", "--check-driver", "--without", without)
    )
    guest = machine(devices=[running.qemu_device("vf1")], cpus=2)
    address = address_of(guest, "vf1")
    # The firmware had the disk before.
    before = broken(running)
    rebind(guest, address)
    disk = disk_of(guest, "vf1")
    verify(guest, disk, depth=1, count=100)
    verify(guest, disk, depth=32, count=1000)
    assert since(running, before) == LINUX


@pytest.mark.long
def test_networks(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> None:
    running = server("--vfs", "2", "--check-driver", device="net")
    before = broken(running)
    guest = machine(devices=[running.qemu_device("vf1"), running.qemu_device("vf2")], cpus=2)
    guest.check("unshare -n sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/there")
    guest.check(
        "until [ $(readlink /proc/$(cat /tmp/there)/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done"
    )
    guest.check("ip link set eth1 netns $(cat /tmp/there)")
    for inside, name, address in (("", "eth0", "10.9.0.1"), (THERE, "eth1", "10.9.0.2")):
        guest.check(f"{inside} ip link set {name} up; {inside} ip address add {address}/24 dev {name}")
    guest.check("ping -c 3 10.9.0.2")
    transfer(guest, 4)
    guest.check("ip link set eth0 address 02:00:00:00:00:77")
    guest.check("ip link set eth0 promisc on; ip link set eth0 promisc off")
    assert since(running, before) == LINUX
