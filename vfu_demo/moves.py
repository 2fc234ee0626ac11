"""A guest moves A → B → A under disk and network traffic, and nothing is lost.

Leaves demo.json and demo.svg in BUILD.
"""

from __future__ import annotations

import asyncio

from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.report import MoveError, Report
from vfu_demo import show
from vfu_demo.outcome import Moved, finish, moved
from vfu_demo.show import LostError
from vfu_demo.stage import Host, Server, Stage, open_stage
from vfu_demo.traffic import Traffic
from vfu_images.machine import Machine

ADMIN_VQ = 41
VFS = [MovedVf(Vf(1, server), Vf(1, server)) for server in ("disk", "net")]


def play() -> None:
    """Play it."""
    with open_stage("a", "b") as stage:
        _demo(stage)


def _demo(stage: Stage) -> None:
    with show.step(
        "two hosts, A and B: servers for disks and for network cards; one disk image, one network"
    ):
        a, b = stage.host("a"), stage.host("b")
    for server in (a.disk, a.net):
        print(f"    {' '.join(server.command)}")
    print(f"    the network: {stage.lan.about}")
    with show.step("guests boot: one with a disk VF and a net VF of A, a small one on the disk PF of A"):
        guest = stage.machine(*a.devices())
        owner = stage.machine(a.disk.device("pf", "pf"), memory_mib=128)
        guest.wait_ready()
        owner.wait_ready()
    _show_admin(owner, a.disk)
    for line in guest.check("lspci -nn | grep 1af4").strip().splitlines():
        print(f"    in its guest:  {line}")
    with show.step("the guest on the PF shuts down: the move needs the admin queue of that PF"):
        owner.qmp("quit")
        owner.wait_exit()
    with show.step("the guest writes to its disk and talks TCP; both ends check every byte"):
        traffic = Traffic(guest, stage.lan)
        traffic.await_more()
    moves: list[Moved] = []
    for source, destination in ((a, b), (b, a)):
        guest, made = _move(stage, source, destination, guest, traffic)
        moves.append(made)
    finish("demo", moves, traffic)


def _show_admin(owner: Machine, server: Server) -> None:
    """What shows that Linux took the admin queue of the PF. Raises LostError when it did not."""
    features = owner.check("cat /sys/bus/virtio/devices/virtio0/features").strip()
    kernel = owner.check("uname -r").strip()
    print(f"    Linux {kernel} on the PF: VIRTIO_F_ADMIN_VQ (feature bit {ADMIN_VQ}) is {features[ADMIN_VQ]}")
    accepted = [line for line in server.log.splitlines() if "virtio.pf: driver status" in line]
    print(f"    the server saw it: {accepted[-1].split('virtio.pf: ')[1]}")
    if features[ADMIN_VQ] != "1":
        raise LostError("Linux did not negotiate VIRTIO_F_ADMIN_VQ on the PF")


def _move(
    stage: Stage, source: Host, destination: Host, guest: Machine, traffic: Traffic
) -> tuple[Machine, Moved]:
    """Move the guest to a fresh QEMU at the other host, and end the old one."""
    here, there = source.name.upper(), destination.name.upper()
    with show.step(f"move {here} → {there}, under traffic"):
        target = stage.machine(*destination.devices(), incoming=True)
        clock = traffic.clock()
        move = Move(source.side("source", guest), destination.side("destination", target), VFS)
        report = _made(move)
        guest.close()
        traffic.moved(target)
    with show.step("it goes on there"):
        traffic.await_more()
    return target, moved(here, there, report, traffic, clock)


def _made(move: Move) -> Report:
    """Make a move. A signal has it go back, and then is a KeyboardInterrupt as ever. Raises MoveError."""
    told = False

    def give_up() -> None:
        nonlocal told
        told = True
        move.cancel()

    async def run() -> Report:
        for number in show.SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, give_up)
        return await move.run()

    try:
        report = asyncio.run(run())
    except MoveError:
        if not told:
            raise
    finally:
        show.heed_signals()  # asyncio leaves them with what they had by default
    if told:
        raise KeyboardInterrupt
    return report
