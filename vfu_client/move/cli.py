"""`vfu-migrate`: moves a running QEMU guest with its VFs from one QEMU and its servers to another.

Exit status: 0 moved, 1 not moved (the guest runs at the source, unless the message says otherwise), 2 the
command line makes no sense. What is printed, drawn or signalled once the guest runs at the destination
changes the status no more. With --recover: 0 all is as it should be, 1 it is not.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from vfu_client.move import timeline
from vfu_client.move.agent_stream import serve
from vfu_client.move.journal import JournalError, abandoned
from vfu_client.move.move import Move
from vfu_client.move.options import parse
from vfu_client.move.qemu import Qemu
from vfu_client.move.recovery import Recovery, RecoveryError
from vfu_client.move.remote import RemoteSide
from vfu_client.move.report import MoveError, Report
from vfu_client.move.side import Side
from vfu_client.qemu.running import socket_in
from vfu_client.standard_streams import heed_interrupts, prepare, put, tell

RECOVERED = {
    "": "a move was killed before it touched anything",
    "another host": "what a move from another host had touched here is as it should be",
}

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def main(arguments: Sequence[str] | None = None) -> int:
    """Make a move; returns the exit status."""
    prepare()
    options = parse(arguments)
    if options.recover:
        return _recover(options)
    if options.agent:
        return asyncio.run(serve(_say))
    try:
        picture = None if options.timeline is None else _opened(options.timeline)
    except OSError as error:
        _say(f"cannot draw the timeline into {options.timeline}: {error.strerror}. Nothing was touched.")
        return 1
    try:
        heed_interrupts()
        status, report, result = asyncio.run(_move(options))
    except KeyboardInterrupt:  # before the move could heed it
        _say("interrupted. Nothing was touched.")
        return 1
    _end_with(status)
    _show(options, report, result)
    if picture is not None:
        _draw(options, report, picture)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    return status


async def _move(options: argparse.Namespace) -> tuple[int, Report, dict[str, object]]:
    """The exit status, and what to show. Signals are blocked when this returns: see `_end_with`."""
    alike = {"context_opcodes": options.context_opcodes, "dialect": options.dialect, "say": _say}
    source = Side(
        "source", Qemu.at("source", options.from_qmp, options.from_qtest), options.from_server, **alike
    )
    if options.to_command is None:
        destination = Side(
            "destination",
            Qemu.at("destination", options.to_qmp, options.to_qtest),
            options.to_server,
            **alike,
        )
    else:
        destination = RemoteSide(
            "destination", options.to_command, options.to_qmp, options.to_qtest, options.to_server,
            **alike,
        )  # fmt: skip
    move = Move(
        source,
        destination,
        options.moved,
        ram=options.ram,
        timeout=options.timeout,
        downtime_limit_ms=options.downtime_limit,
        say=_say,
    )

    def give_up(number: signal.Signals) -> None:
        if not move.cancel():
            _say(f"{number.name}: too late, the move is being ended")

    for number in SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, give_up, number)
    try:
        report = await move.run()
    except MoveError as error:
        _say(str(error))
        failure = {"moved": False, "step": error.step, "why": error.why, "state": error.state}
        return 1, error.report, failure
    else:
        return 0, report, {"moved": True}
    finally:
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)


def _recover(options: argparse.Namespace) -> int:
    """Recover what moves left that were killed; the exit status: 0 where all is as it should be now."""
    status, results = 0, []
    for journal in abandoned():
        try:
            heed_interrupts()
            recovery = Recovery(journal)
            if not _meant(options, recovery.about):
                continue
            where = asyncio.run(recovery.run())
        except (JournalError, RecoveryError) as error:
            _say(f"{journal.folder}: {error}")
            results.append({"journal": str(journal.folder), "recovered": False, "why": str(error)})
            status = 1
        except KeyboardInterrupt:
            _say("interrupted: run it again")
            return 1
        else:
            results.append(
                {"journal": str(journal.folder), "recovered": True, "runs_at": where or None}
                | {"warnings": recovery.warnings, **recovery.about}
            )
            _say(RECOVERED.get(where, f"the guest runs at the {where}"))
            for warning in recovery.warnings:
                _say(f"warning: {warning}")
        finally:
            journal.close()
    if not results:
        _say(f"no move was left unfinished (looked in {tempfile.gettempdir()})")
    if options.json:
        try:
            put(json.dumps(results, indent=2))
        except OSError as error:
            _say(f"the result could not be printed: {error.strerror}")
    return status


def _meant(options: argparse.Namespace, about: dict[str, str]) -> bool:
    """Whether a journal is that of the guest that the options name, if they do."""
    given = {"source": options.from_qmp, "destination": options.to_qmp}
    return all(
        path is None or about.get(end) in {str(path), str(socket_in(path, "qmp").absolute())}
        for end, path in given.items()
    )


def _end_with(status: int) -> None:
    """Have signals end the program with this status: it tells what became of the guest, whatever is shown."""

    def end(_number: int, _frame: FrameType | None) -> None:
        os._exit(status)

    for number in SIGNALS:
        signal.signal(number, end)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


def _say(line: str) -> None:
    tell("vfu-migrate", line)


def _show(options: argparse.Namespace, report: Report, result: dict[str, object]) -> None:
    if options.json:
        said = json.dumps(result | report.plain(), indent=2)
    elif len(report.steps) > 1:
        said = "\n".join([timeline.text(report), *(f"warning: {warning}" for warning in report.warnings)])
    else:
        return
    try:
        put(said)
    except OSError as error:
        _say(f"the result could not be printed: {error.strerror}")


def _opened(path: Path) -> int:
    """A file that can be written, and holds what it held until then. Raises OSError; never waits."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    os.set_blocking(file, True)
    return file


def _draw(options: argparse.Namespace, report: Report, file: int) -> None:
    here, there = (
        ", ".join(map(str, servers.values())) for servers in (options.from_server, options.to_server)
    )
    picture = timeline.svg([(f"{here} → {there}", report, {})])
    try:
        with open(file, "w", encoding="utf-8", errors="replace") as out:
            with contextlib.suppress(OSError):  # a pipe has no length
                out.truncate()
            out.write(picture)
    except OSError as error:
        _say(f"the timeline could not be drawn into {options.timeline}: {error.strerror}")


if __name__ == "__main__":
    sys.exit(main())
