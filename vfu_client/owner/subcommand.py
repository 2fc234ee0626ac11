"""What the subcommands of `vfu-owner` share: how each is added, finds its VF, and reads and writes."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Final

from vfu_client.owner.explain import CONTEXT_NAMES
from vfu_client.owner.owner import CONTEXT_OPCODES, OwnerDriver
from vfu_client.standard_streams import OUTPUT, put

NEGOTIATION_TIMEOUT = 3.0
COMMAND_TIMEOUT = 60.0
PRIVATE = 0o600
CONTEXT_OPCODES_LEAST = 0x13


class RefusedError(Exception):
    """What the user asked for cannot be done; the text says why, and what to do."""


def add(
    parent: Any, name: str, run: Callable[[argparse.Namespace], Any], text: str
) -> argparse.ArgumentParser:
    """A subcommand, which `run` carries out; what that returns is its result for programs."""
    command: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    for option, settings in COMMON.items():
        command.add_argument(option, **{**settings, "default": argparse.SUPPRESS, "help": argparse.SUPPRESS})
    return command


def say(options: argparse.Namespace, line: str) -> None:
    """A line for people, who get them at the end, as programs get the whole result."""
    options.lines.append(line)


def vf_number(text: str) -> int:
    """A VF's number, also as `vf1`; for argparse."""
    number = text.removeprefix("vf")
    if not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no VF: 1, 2, ... or vf1, vf2, ...")
    return int(number)


def opcodes(text: str) -> int:
    """The opcode of the first context command, beside all that the standard has or keeps for itself."""
    least, most = CONTEXT_OPCODES_LEAST, 0xFFFF - len(CONTEXT_NAMES) + 1
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give an opcode from {least:#x} to {most:#x}")
    return number


COMMON: Final[Mapping[str, Mapping[str, Any]]] = {
    "--pf": {"type": Path, "metavar": "DIR", "help": "the server's folder, or the PF's socket in it"},
    "--context-opcodes": {
        "type": opcodes,
        "default": CONTEXT_OPCODES,
        "metavar": "BASE",
        "help": "opcode of the first context command (default: %(default)#x)",
    },
    "--json": {"action": "store_true", "help": "print the result for programs"},
}
"""Options that may be given before the subcommand or behind it."""


@contextlib.contextmanager
def opened(options: argparse.Namespace) -> Iterator[OwnerDriver]:
    """The owner of the PF. Raises RefusedError where the VF of the options is not there."""
    with OwnerDriver.open(
        options.pf,
        context_opcodes=options.context_opcodes,
        timeout=COMMAND_TIMEOUT,
        negotiation_timeout=NEGOTIATION_TIMEOUT,
    ) as owner:
        vf = getattr(options, "vf", None)
        existing = owner.sriov.enabled
        if vf is not None and not existing:
            raise RefusedError("the PF has no VFs now: VF Enable is off")
        if vf is not None and vf > existing:
            raise RefusedError(f"there is no VF {vf}: VFs 1 to {existing} exist")
        yield owner


@contextlib.contextmanager
def output(name: str) -> Iterator[BinaryIO]:
    """A file for what a VF holds, which is for its owner's eyes alone; - is standard output."""
    try:
        if name == "-":
            with open(OUTPUT, "wb", closefd=False) as file:
                yield file
            return
        descriptor = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, PRIVATE)
        with open(descriptor, "wb") as file:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                os.fchmod(descriptor, PRIVATE)
            yield file
    except OSError as error:
        raise _named(error, "standard output" if name == "-" else name) from error


def content(name: str) -> bytes:
    """All of a file; - is standard input. Raises OSError with its name."""
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return file.read()
    except OSError as error:
        raise _named(error, "standard input" if name == "-" else name) from error


def show_result(text: str) -> None:
    """Raise OSError where the result can't be printed; who closes a pipe has seen enough."""
    if not text:
        return
    try:
        put(text)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise OSError(error.errno, error.strerror, "standard output") from error


def _named(error: OSError, name: str) -> OSError:
    """The error with the name of the file, unless it has one already: it may be a socket's."""
    return error if error.filename is not None else OSError(error.errno, error.strerror, name)
