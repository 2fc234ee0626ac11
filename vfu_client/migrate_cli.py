"""`vfu-migrate`: moves a running QEMU guest with its VFs from one QEMU and server to another.

Exit status: 0 moved, 1 not moved (the guest runs at the source, unless the message says otherwise), 2 the
command line makes no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from vfu_client import timeline
from vfu_client.migrate import DOWNTIME_LIMIT_MS, Move, MovedVf
from vfu_client.move_report import MoveError, Report
from vfu_client.owner import CONTEXT_OPCODES
from vfu_client.qemu import Qemu
from vfu_client.side import Side

EXAMPLE = """\
Both QEMUs have the same options, apart from the sockets of the VFs, and besides

  -qmp unix:QMP,server=on,wait=off -qtest unix:QTEST,server=on,wait=off -qtest-log none

and the destination has -incoming defer too. Nobody else may hold either pf.sock while the guest moves.

  vfu-migrate --from-qmp a/qmp --from-qtest a/qtest --from-server /run/vfu-a \\
              --to-qmp b/qmp --to-qtest b/qtest --to-server /run/vfu-b --vf vf1 --vf vf2:vf5
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a move; returns the exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.device and len(options.device) != len(options.vf):
        parser.error("give --device as often as --vf, in the same order, or not at all")
    devices = options.device or [(None, None)] * len(options.vf)
    vfs = [
        MovedVf(here, there, here_id, there_id)
        for (here, there), (here_id, there_id) in zip(options.vf, devices, strict=True)
    ]
    if any(len({getattr(vf, end) for vf in vfs}) < len(vfs) for end in ("source", "destination")):
        parser.error("a VF is given twice")
    try:
        report = asyncio.run(_move(options, vfs))
    except MoveError as error:
        print(f"vfu-migrate: {error}", file=sys.stderr)
        _show(
            options,
            error.report,
            {"moved": False, "step": error.step, "why": error.why, "state": error.state},
        )
        return 1
    _show(options, report, {"moved": True})
    return 0


async def _move(options: argparse.Namespace, vfs: list[MovedVf]) -> Report:
    ends = (("source", "from"), ("destination", "to"))
    source, destination = (
        Side(
            name,
            Qemu(name, getattr(options, f"{end}_qmp"), getattr(options, f"{end}_qtest")),
            getattr(options, f"{end}_server"),
            context_opcodes=options.context_opcodes,
        )
        for name, end in ends
    )
    move = Move(
        source,
        destination,
        vfs,
        ram_socket=options.ram_socket,
        timeout=options.timeout,
        downtime_limit_ms=options.downtime_limit,
        say=_say,
    )

    def give_up(number: signal.Signals) -> None:
        if not move.cancel():
            _say(f"{number.name}: too late, the move is being ended")

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        asyncio.get_running_loop().add_signal_handler(number, give_up, number)
    return await move.run()


def _say(line: str) -> None:
    print(f"vfu-migrate: {line}", file=sys.stderr, flush=True)


def _show(options: argparse.Namespace, report: Report, result: dict[str, object]) -> None:
    if options.json:
        json.dump(result | report.plain(), sys.stdout, indent=2)
        print()
    elif len(report.steps) > 1:
        print(timeline.text(report))
        for warning in report.warnings:
            print(f"warning: {warning}")
    if options.timeline is not None:
        title = f"{options.from_server} → {options.to_server}"
        options.timeline.write_text(timeline.svg([(title, report)]))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfu-migrate",
        description="Move a running QEMU guest with its VFs from one QEMU and server to another.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    for end, name in (("from", "source"), ("to", "destination")):
        group = parser.add_argument_group(name)
        group.add_argument(
            f"--{end}-qmp", type=Path, required=True, metavar="SOCKET", help="QMP monitor of QEMU"
        )
        group.add_argument(
            f"--{end}-qtest", type=Path, required=True, metavar="SOCKET", help="qtest server of QEMU"
        )
        group.add_argument(
            f"--{end}-server", type=Path, required=True, metavar="DIR", help="folder of vfu-server"
        )
    parser.add_argument(
        "--vf", type=_vf, action="append", required=True, metavar="VF[:VF]",
        help="a VF of the guest, as vf1, or vf1:vf3 where it gets another number at the destination; repeats",
    )  # fmt: skip
    parser.add_argument(
        "--device", type=_device, action="append", default=[], metavar="ID[:ID]",
        help="the VF's device id in QEMU, source and destination (default: found by its socket)",
    )  # fmt: skip
    parser.add_argument(
        "--ram-socket", type=Path, metavar="PATH", help="where QEMU sends memory (default: temporary)"
    )
    parser.add_argument(
        "--downtime-limit", type=_positive, default=DOWNTIME_LIMIT_MS, metavar="MS",
        help="for the rest of the memory; doubled when the guest writes too fast (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--timeout",
        type=_positive,
        default=120,
        metavar="SECONDS",
        help="for the copy of the memory (default: 120)",
    )
    parser.add_argument(
        "--context-opcodes", type=lambda text: int(text, 0), default=CONTEXT_OPCODES, metavar="BASE",
        help="opcode of the servers' first context command (default: 0x40)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result for programs")
    parser.add_argument("--timeline", type=Path, metavar="FILE.svg", help="draw the timeline")
    return parser


def _vf(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(?:vf)?([1-9]\d*)(?::(?:vf)?([1-9]\d*))?", text)
    if found is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no VF: give vf1, or vf1:vf3")
    return int(found[1]), int(found[2] or found[1])


def _device(text: str) -> tuple[str, str]:
    here, _, there = text.partition(":")
    return here, there or here


def _positive(text: str) -> int:
    number = int(text)
    if number <= 0:
        raise ValueError(text)
    return number


if __name__ == "__main__":
    sys.exit(main())
