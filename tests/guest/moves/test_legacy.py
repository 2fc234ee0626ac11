"""A guest on a network VF whose virtio structures are elsewhere, as legacy drivers may come (`--legacy`)."""

from __future__ import annotations

import asyncio

import pytest

from tests.guest.guest_net import reaches, set_up
from tests.server_process import ServerProcess
from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.qemu import Qemu
from vfu_client.move.report import MoveError, Report
from vfu_client.move.side import Side
from vfu_images.machine import Machine

OPTIONS = ("--vfs", "2")


def side(role: str, machine: Machine, server: ServerProcess) -> Side:
    return Side(role, Qemu(role, machine.qmp_path, machine.qtest_path), {"": server.folder})


def move(here: ServerProcess, guest: Machine, there: ServerProcess, target: Machine) -> Report:
    vfs = (MovedVf(Vf(1), Vf(1)),)
    return asyncio.run(Move(side("source", guest, here), side("destination", target, there), vfs).run())


@pytest.mark.long
def test_between_servers_that_differ_in_it() -> None:
    """A driver of today works, and moves to such a server; to another one it is not moved, and goes on."""
    with (
        ServerProcess(*OPTIONS, "--legacy", device="net") as here,
        ServerProcess(*OPTIONS, "--legacy", device="net") as there,
        ServerProcess(*OPTIONS, device="net") as other,
        Machine(devices=[here.qemu_device("vf1")], memory_mib=128) as guest,
        Machine(devices=[here.qemu_device("vf2")], memory_mib=128) as peer,
    ):
        for machine, address in ((guest, "10.9.0.1"), (peer, "10.9.0.2")):
            machine.wait_ready(timeout=120)
            set_up(machine, address)
        assert reaches(guest, "10.9.0.2")
        with (
            Machine(devices=[other.qemu_device("vf1")], memory_mib=128, incoming=True) as target,
            pytest.raises(MoveError, match="other BARs than at the source"),
        ):
            move(here, guest, other, target)
        assert guest.qmp("query-status")["status"] == "running"
        assert reaches(guest, "10.9.0.2")
        with Machine(devices=[there.qemu_device("vf1")], memory_mib=128, incoming=True) as target:
            move(here, guest, there, target)
            assert target.qmp("query-status")["status"] == "running"
            assert "1041" in target.check(
                "cat /sys/class/net/eth0/device/device /sys/bus/pci/devices/*/device"
            )
