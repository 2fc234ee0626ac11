"""`python -m demo`: moves a guest A → B → A while it writes to its VF, and proves that nothing was lost.

Leaves `build/demo.json` and `build/demo.svg`. Exit status: 0 all is well, 1 something was lost or failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from demo.stage import Server, Stage, StageError
from images.job import Job
from images.machine import Machine, MachineError
from images.workspace import SetupError
from vfu_client import timeline
from vfu_client.migrate import Move, MovedVf
from vfu_client.move_report import MoveError, Report

BUILD = Path(__file__).resolve().parent.parent / "build"
ADMIN_VQ = 41
SECTORS_WANTED = 20_000
IOVERIFY = "ioverify --device /dev/vda --length 33554432 --depth 8 --report-ms 250"
PATIENCE_SECONDS = 60.0
PR_SET_PDEATHSIG = 1


class LostError(Exception):
    """The guest's I/O came to nothing good; the message says what."""


def main() -> int:
    """Run the demo; returns the exit status."""
    _end_with_make()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started = time.monotonic()
    try:
        with Stage() as stage:
            _demo(stage)
    except KeyboardInterrupt:
        print("\ninterrupted; all processes are ended")
        return 130
    except (LostError, MachineError, MoveError, SetupError, StageError, TimeoutError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nall is well, after {time.monotonic() - started:.0f} s")
    return 0


def _demo(stage: Stage) -> None:
    with _stage("two servers, A and B: each a PF and 4 VFs; the VFs share one disk image"):
        a, b = stage.server("a"), stage.server("b")
    print(f"    {' '.join(a.command)}")
    with _stage("guests boot: one on VF 1 of A, a small one on the PF of A"):
        guest = stage.machine(a.device("vf1"))
        owner = stage.machine(a.device("pf"), memory_mib=128)
        guest.wait_ready()
        owner.wait_ready()
    _show_admin(owner, a)
    print("    VF 1 in its guest:  " + guest.check("lspci -nn | grep 1af4").strip())
    with _stage("the guest writes to its disk, and reads back and checks what it wrote"):
        job = guest.start(IOVERIFY)
        _await_sectors(job, SECTORS_WANTED // 2)
    with _stage("the guest on the PF shuts down: the move needs the admin queue of that PF"):
        owner.qmp("quit")
        owner.wait_exit()
    reports: list[tuple[str, str, Report]] = []
    for source, destination in ((a, b), (b, a)):
        written = _figures(job)["sectors_written"]
        guest, report = _move(stage, source, destination, guest)
        job = job.moved(guest.check)
        reports.append((source.name.upper(), destination.name.upper(), report))
        with _stage("it writes on there"):
            _await_sectors(job, written + SECTORS_WANTED // 2)
    with _stage("the guest stops writing, and reads back every block that it wrote"):
        job.stop()
        status, output = job.wait()
    done = json.loads(output.strip().splitlines()[-1])
    _save(reports, done)
    _conclude(reports, done, status, output)


def _show_admin(owner: Machine, server: Server) -> None:
    """What shows that Linux took the admin queue of the PF. Raises LostError when it did not."""
    features = owner.check("cat /sys/bus/virtio/devices/virtio0/features").strip()
    kernel = owner.check("uname -r").strip()
    print(f"    Linux {kernel} on the PF: VIRTIO_F_ADMIN_VQ (feature bit {ADMIN_VQ}) is {features[ADMIN_VQ]}")
    accepted = [line for line in server.log.splitlines() if "virtio.pf: driver status" in line]
    print(f"    the server saw it: {accepted[-1].split('virtio.pf: ')[1]}")
    if features[ADMIN_VQ] != "1":
        raise LostError("Linux did not negotiate VIRTIO_F_ADMIN_VQ on the PF")


def _move(stage: Stage, source: Server, destination: Server, guest: Machine) -> tuple[Machine, Report]:
    """Move the guest to a fresh QEMU at the other server, and end the old one."""
    title = f"{source.name.upper()} → {destination.name.upper()}"
    with _stage(f"move {title}, under I/O"):
        target = stage.machine(destination.device("vf1"), incoming=True)
        move = Move(
            source.side("source", guest),
            destination.side("destination", target),
            [MovedVf(1, 1)],
        )
        report = asyncio.run(move.run())
        guest.close()
    print("\n".join(f"    {line}" for line in timeline.text(report).splitlines()))
    for warning in report.warnings:
        print(f"    warning: {warning}")
    return target, report


def _figures(job: Job) -> dict[str, Any]:
    """The latest report of the guest's I/O."""
    line = job.last_line()
    return json.loads(line) if line.startswith("{") else {}


def _await_sectors(job: Job, wanted: int) -> None:
    """Wait until the guest has written so many sectors. Raises LostError when it does not."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (found := _figures(job)).get("sectors_written", 0) < wanted:
        if time.monotonic() > deadline or found.get("event") == "done":
            raise LostError(f"the guest writes no more; its last report: {found}")
        time.sleep(0.1)


def _save(reports: list[tuple[str, str, Report]], done: dict[str, Any]) -> None:
    BUILD.mkdir(exist_ok=True)
    moves = [
        {
            "from": source,
            "to": destination,
            "downtime_ms": report.downtime_ms,
            "steps": report.plain()["steps"],
        }
        for source, destination, report in reports
    ]
    figures = {name: done.get(name) for name in ("sectors_written", "lost", "corrupt", "longest_gap_ms")}
    (BUILD / "demo.json").write_text(json.dumps({"moves": moves, **figures}, indent=2) + "\n")
    picture = timeline.svg(
        [(f"move {source} → {destination}", report) for source, destination, report in reports]
    )
    (BUILD / "demo.svg").write_text(picture)


def _conclude(reports: list[tuple[str, str, Report]], done: dict[str, Any], status: int, output: str) -> None:
    """Say how it went. Raises LostError when it did not go well."""
    if done.get("event") != "done":
        raise LostError(f"the guest's check did not end as it should:\n{output[-2000:]}")
    downtimes = " and ".join(f"{report.downtime_ms:.0f} ms" for _, _, report in reports)
    print(
        f"\n{done['sectors_written']} sectors written over {len(reports)} moves,"
        f" {done['sectors_read']} read back and checked"
        f"\nlost {done['lost']}, corrupt {done['corrupt']}, failed requests {done['errors']}"
        f"\nthe guest stood still for {downtimes};"
        f" by its own clock it never waited longer than {done['longest_gap_ms']:.0f} ms for its disk"
        f"\nbuild/demo.json has the figures, build/demo.svg the timelines"
    )
    if status or done["lost"] or done["corrupt"] or done["errors"]:
        raise LostError("the guest found its disk damaged")
    if done["sectors_written"] < SECTORS_WANTED:
        raise LostError(f"the guest wrote fewer than {SECTORS_WANTED} sectors")


@contextlib.contextmanager
def _stage(what: str) -> Iterator[None]:
    """A line of progress with the time that it took."""
    started = time.monotonic()
    print(f"=== {what} ", end="", flush=True)
    try:
        yield
    except BaseException:
        print()
        raise
    print(f"[{time.monotonic() - started:.1f} s]", flush=True)


def _end_with_make() -> None:
    """When make started this, end when make is killed. Else whoever detaches it wants it to go on."""
    if "MAKELEVEL" in os.environ:
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
