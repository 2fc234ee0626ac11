"""Two VFs of virtio-net in one guest, each in a namespace of its own: its TCP goes from one to the other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.server_process import ServerProcess
from vfu_images.machine import Machine

MEBIBYTES = 16


@pytest.fixture
def guest(server: Callable[..., ServerProcess], machine: Callable[..., Machine]) -> Machine:
    """VF 1 is 10.9.0.1, VF 2 is 10.9.0.2 in the namespace of the process whose number is in /tmp/there."""
    served = server("--vfs", "2", device="net")
    found = machine(devices=[served.qemu_device("vf1"), served.qemu_device("vf2")])
    found.check("unshare -n sleep 100000 </dev/null >/dev/null 2>&1 & echo $! >/tmp/there")
    found.check(
        "until [ $(readlink /proc/$(cat /tmp/there)/ns/net) != $(readlink /proc/self/ns/net) ]; do :; done"
    )
    found.check("ip link set eth1 netns $(cat /tmp/there)")
    for inside, name, address in (
        ("", "eth0", "10.9.0.1"),
        ("nsenter -t $(cat /tmp/there) -n", "eth1", "10.9.0.2"),
    ):
        found.check(f"{inside} ip link set {name} up; {inside} ip address add {address}/24 dev {name}")
    return found


THERE = "nsenter -t $(cat /tmp/there) -n"


def test_tcp_between_vfs(guest: Machine) -> None:
    guest.check("ping -c 3 10.9.0.2")
    transfer(guest, MEBIBYTES)
    # Segmentation is left to the device; how much of it there is to do is the machine's matter.
    assert "tcp-segmentation-offload: on" in guest.check("ethtool -k eth0")


@pytest.mark.long
def test_a_ring_shorter_than_a_frame(guest: Machine) -> None:
    """A receive ring of 16 buffers holds no frame of 60 KB, sent whole or as segments: others get through."""
    guest.check(f"{THERE} ethtool -G eth1 rx 16")
    for name, inside in (("eth0", ""), ("eth1", THERE)):
        guest.check(f"{inside} ip link set {name} mtu 65535")
    for _ in range(3):
        assert guest.run("ping -c 2 -i 0.2 -W 1 -s 60000 10.9.0.2").status != 0
        guest.check("ping -c 3 -i 0.2 -W 5 10.9.0.2")
    for name, inside in (("eth0", ""), ("eth1", THERE)):
        guest.check(f"{inside} ip link set {name} mtu 1500")
    transfer(guest, 2)
    guest.check("ping -c 3 -i 0.2 -W 5 10.9.0.2")


def transfer(guest: Machine, mebibytes: int) -> None:
    """Send so much from VF 1 to VF 2 by TCP; it arrives as it was."""
    guest.check(f"dd if=/dev/urandom of=/tmp/data bs=1M count={mebibytes}")
    digest = guest.check("md5sum </tmp/data")
    # Its input must not end: the other nc would take that for the end of the conversation.
    guest.check(f"tail -f /dev/null | {THERE} nc -l -p 5000 >/tmp/came 2>/dev/null &")
    guest.check(f"until {THERE} netstat -ltn | grep -q :5000; do :; done")
    guest.check("nc 10.9.0.2 5000 </tmp/data", timeout=200)
    guest.check(f"until [ $(stat -c %s /tmp/came) = {mebibytes << 20} ]; do :; done")
    assert guest.check("md5sum </tmp/came") == digest
