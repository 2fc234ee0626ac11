"""`vfu-migrate`: moves a running QEMU guest with its VFs from one QEMU and its servers to another.

Exit status: 0 moved, 1 not moved (the guest runs at the source, unless the message says otherwise), 2 the
command line makes no sense.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from collections.abc import Sequence

from vfu_client.move import timeline
from vfu_client.move.move import Move
from vfu_client.move.options import parse
from vfu_client.move.qemu import Qemu
from vfu_client.move.report import MoveError, Report
from vfu_client.move.side import Side


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a move; returns the exit status."""
    options = parse(arguments)
    try:
        report = asyncio.run(_move(options))
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


async def _move(options: argparse.Namespace) -> Report:
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
        options.moved,
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
        here, there = (
            ", ".join(map(str, servers.values())) for servers in (options.from_server, options.to_server)
        )
        title = f"{here} → {there}"
        options.timeline.write_text(timeline.svg([(title, report, {})]))


if __name__ == "__main__":
    sys.exit(main())
