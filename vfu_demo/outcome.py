"""What a guest's moves came to: the figures that are saved and told, the timelines, and what is a failure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vfu_client.move import timeline
from vfu_client.move.report import Report
from vfu_demo import show
from vfu_demo.gaps import Clock, Gap, longest_ms, meeting
from vfu_demo.network import Figures
from vfu_demo.show import LostError
from vfu_demo.traffic import Traffic
from vfu_images.workspace import BUILD, shown

SECTORS_WANTED = 20_000


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


def moved(source: str, destination: str, report: Report, traffic: Traffic, clock: Clock) -> Moved:
    """A move that was made, with what the guest's traffic says of it since `clock` was taken; it is shown."""
    assert report.stopped is not None
    assert report.resumed is not None
    gaps = traffic.gaps(clock, (report.began + report.stopped, report.began + report.resumed))
    since = {
        name: [(start - report.began, end - report.began) for start, end in found]
        for name, found in gaps.items()
    }
    print("\n".join(f"    {line}" for line in timeline.text(report, since).splitlines()))
    for warning in report.warnings:
        print(f"    warning: {warning}")
    return Moved(source, destination, report, since)


def finish(name: str, moves: Sequence[Moved], traffic: Traffic) -> None:
    """Have the traffic end, save what was found and tell it. Raises as `finish_tcp` and `conclude` do."""
    with show.step("the guest ends its connection"):
        tcp = tcp_of(moves, *traffic.finish_tcp())
    with show.step("the guest stops writing, and reads back every block that it wrote"):
        disk = traffic.finish_disk()
    figures = figures_of(moves, disk, tcp)
    save(name, moves, figures)
    conclude(name, figures)


def tcp_of(moves: Sequence[Moved], guest: Figures, peer: Figures) -> dict[str, Any]:
    """What became of the connection. Its gaps are those that the peer saw, and the guest's around a move."""
    gaps = [float(peer["longest_gap_ms"]), *(move.longest_ms["TCP to guest"] for move in moves)]
    return {
        "bytes": int(guest["bytes"]) + int(peer["bytes"]),
        "resets": max(int(guest["resets"]), int(peer["resets"])),
        "corrupt": int(guest["corrupt"]) + int(peer["corrupt"]),
        "longest_gap_ms": max(gaps),
        "ended": "clean" if guest["ended"] == peer["ended"] == "clean" else "cut",
    }


def figures_of(moves: Sequence[Moved], disk: dict[str, Any], tcp: dict[str, Any]) -> dict[str, Any]:
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


def save(name: str, moves: Sequence[Moved], figures: dict[str, Any]) -> None:
    """Leave them in BUILD: NAME.json has the figures, NAME.svg the timelines."""
    BUILD.mkdir(parents=True, exist_ok=True)
    (BUILD / f"{name}.json").write_text(json.dumps(figures, indent=2) + "\n")
    picture = timeline.svg(
        [(f"move {move.source} → {move.destination}", move.report, move.gaps) for move in moves]
    )
    (BUILD / f"{name}.svg").write_text(picture)


def conclude(name: str, figures: dict[str, Any]) -> None:
    """Say how it went, and what `save` left. Raises LostError when it did not go well."""
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
        f"\n{shown(BUILD / f'{name}.json')} has the figures, {shown(BUILD / f'{name}.svg')} the timelines"
    )
    if disk["lost"] or disk["corrupt"] or disk["errors"]:
        raise LostError("the guest found its disk damaged")
    if disk["sectors_written"] < SECTORS_WANTED:
        raise LostError(f"the guest wrote fewer than {SECTORS_WANTED} sectors")
    if tcp["resets"] or tcp["ended"] != "clean":
        raise LostError("the guest's connection broke")
    if tcp["corrupt"] or not tcp["bytes"]:
        raise LostError("what went over the guest's connection is not what came out")
