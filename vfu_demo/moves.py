"""A guest moves A → B → A under disk and network traffic, and nothing is lost.

Leaves demo.json and demo.svg in BUILD.
"""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass
from typing import Any

from vfu_client.move import timeline
from vfu_client.move.move import Move
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.report import MoveError, Report
from vfu_demo import show
from vfu_demo.gaps import Gap, longest_ms, meeting
from vfu_demo.network import Figures
from vfu_demo.show import LostError
from vfu_demo.stage import Host, Server, Stage, open_stage
from vfu_demo.traffic import Traffic
from vfu_images.machine import Machine
from vfu_images.workspace import BUILD, shown

ADMIN_VQ = 41
SECTORS_WANTED = 20_000
VFS = [MovedVf(Vf(1, server), Vf(1, server)) for server in ("disk", "net")]


@dataclass(frozen=True)
class Moved:
    """A move that was made. `gaps` are those of the guest's traffic, in seconds since the move began."""

    source: str
    destination: str
    report: Report
    gaps: dict[str, list[Gap]]

    @property
    def longest_ms(self) -> dict[str, float]:
        """The longest gap of each kind that the guest's stop had a part in."""
        stop = (self.report.stopped or 0.0, self.report.resumed or 0.0)
        return {name: longest_ms(meeting(found, stop)) for name, found in self.gaps.items()}


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
        guest, moved = _move(stage, source, destination, guest, traffic)
        moves.append(moved)
    with show.step("the guest ends its connection"):
        tcp = _tcp(moves, *traffic.finish_tcp())
    with show.step("the guest stops writing, and reads back every block that it wrote"):
        disk = traffic.finish_disk()
    figures = _figures(moves, disk, tcp)
    _save(moves, figures)
    _conclude(figures)


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
    assert report.stopped is not None
    assert report.resumed is not None
    gaps = traffic.gaps(clock, (report.began + report.stopped, report.began + report.resumed))
    moved = Moved(
        here,
        there,
        report,
        {
            name: [(start - report.began, end - report.began) for start, end in found]
            for name, found in gaps.items()
        },
    )
    print("\n".join(f"    {line}" for line in timeline.text(report, moved.gaps).splitlines()))
    for warning in report.warnings:
        print(f"    warning: {warning}")
    return target, moved


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


def _tcp(moves: list[Moved], guest: Figures, peer: Figures) -> dict[str, Any]:
    """What became of the connection. Its gaps are those that the peer saw, and the guest's around a move."""
    gaps = [float(peer["longest_gap_ms"]), *(move.longest_ms["TCP to guest"] for move in moves)]
    return {
        "bytes": int(guest["bytes"]) + int(peer["bytes"]),
        "resets": max(int(guest["resets"]), int(peer["resets"])),
        "corrupt": int(guest["corrupt"]) + int(peer["corrupt"]),
        "longest_gap_ms": max(gaps),
        "ended": "clean" if guest["ended"] == peer["ended"] == "clean" else "cut",
    }


def _figures(moves: list[Moved], disk: dict[str, Any], tcp: dict[str, Any]) -> dict[str, Any]:
    """What the demo found, as it is saved and as it is told."""
    return {
        "moves": [
            {
                "from": move.source,
                "to": move.destination,
                "downtime_ms": move.report.downtime_ms,
                "longest_gap_ms": move.longest_ms,
                "steps": move.report.plain()["steps"],
            }
            for move in moves
        ],
        **{
            name: disk[name]
            for name in ("sectors_written", "sectors_read", "lost", "corrupt", "errors", "longest_gap_ms")
        },
        "tcp": {name: tcp[name] for name in ("bytes", "resets", "corrupt", "longest_gap_ms", "ended")},
    }


def _save(moves: list[Moved], figures: dict[str, Any]) -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / "demo.json").write_text(json.dumps(figures, indent=2) + "\n")
    picture = timeline.svg(
        [(f"move {move.source} → {move.destination}", move.report, move.gaps) for move in moves]
    )
    (BUILD / "demo.svg").write_text(picture)


def _conclude(figures: dict[str, Any]) -> None:
    """Say how it went. Raises LostError when it did not go well."""
    disk, tcp, moves = figures, figures["tcp"], figures["moves"]
    downtimes = " and ".join(f"{move['downtime_ms']:.1f} ms" for move in moves)
    print(
        f"\ndisk: {disk['sectors_written']} sectors written over {len(moves)} moves,"
        f" {disk['sectors_read']} read back and checked;"
        f" lost {disk['lost']}, corrupt {disk['corrupt']}, failed requests {disk['errors']}"
        "\n      (one request in four reads back what was written lately, and at the end all is read once"
        " more: so more may be read than written)"
        f"\nTCP:  {tcp['bytes']} bytes received and checked over one connection;"
        f" resets {tcp['resets']}, corrupt {tcp['corrupt']}, longest gap {tcp['longest_gap_ms']:.1f} ms"
        f"\nthe guest stood still for {downtimes};"
        f" by its own clock it never waited longer than {disk['longest_gap_ms']:.1f} ms for its disk"
        f"\n(after a move the new QEMU has the guest's code to translate again, and traffic waits for that)"
        f"\n{shown(BUILD / 'demo.json')} has the figures, {shown(BUILD / 'demo.svg')} the timelines"
    )
    if disk["lost"] or disk["corrupt"] or disk["errors"]:
        raise LostError("the guest found its disk damaged")
    if disk["sectors_written"] < SECTORS_WANTED:
        raise LostError(f"the guest wrote fewer than {SECTORS_WANTED} sectors")
    if tcp["resets"] or tcp["ended"] != "clean":
        raise LostError("the guest's connection broke")
    if tcp["corrupt"] or not tcp["bytes"]:
        raise LostError("what went over the guest's connection is not what came out")
