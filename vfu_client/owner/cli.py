"""`vfu-owner`: an owner driver of the PF on the command line.

Exit status: 0 done, 1 the server or the device said no or the result could not be written, 2 the command
line makes no sense.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from pymodel.spec import admin, context
from vfu_client.owner.admin import AdminError
from vfu_client.owner.context import MODE_NAMES, TYPE_NAMES, Field, compare, decode
from vfu_client.owner.owner import CONTEXT_OPCODES, DriverRuleError, OwnerDriver
from vfu_client.owner.stream import BadContextError
from vfu_client.standard_streams import OUTPUT, heed_interrupts, prepare, put, tell
from vfu_client.vfio.connection import ServerBusyError, ServerUnreachableError
from vfu_client.vfio.pci import CapabilityMissingError
from vfu_client.virtio.function import NegotiationError

NEGOTIATION_TIMEOUT = 3.0
COMMAND_TIMEOUT = 60.0
PRIVATE = 0o600

MODES = {name: number for number, name in MODE_NAMES.items()}
COMMAND_NAMES = {
    context.MODE_GET: "DEV_MODE_GET",
    context.MODE_SET: "DEV_MODE_SET",
    context.CTX_SIZE_GET: "DEV_CTX_SIZE_GET",
    context.CTX_READ: "DEV_CTX_READ",
    context.CTX_WRITE: "DEV_CTX_WRITE",
    context.CTX_FIELDS_QUERY: "DEV_CTX_FIELDS_QUERY",
    context.CTX_DISCARD: "DEV_CTX_DISCARD",
    context.WRITE_RECORD_START: "WRITE_RECORD_START",
    context.WRITE_RECORD_READ: "WRITE_RECORD_READ",
    context.WRITE_RECORD_STOP: "WRITE_RECORD_STOP",
}
STANDARD_NAMES = {
    admin.LIST_QUERY: "LIST_QUERY",
    admin.LIST_USE: "LIST_USE",
    admin.CAP_ID_LIST_QUERY: "CAP_ID_LIST_QUERY",
    admin.DEVICE_CAP_GET: "DEVICE_CAP_GET",
    admin.DRIVER_CAP_SET: "DRIVER_CAP_SET",
}
ADVICE = {
    admin.Q_INVALID_OPCODE: "the device does not have this command there (`vfu-owner --pf DIR/pf.sock"
    " commands` lists what it has): the server's --context-opcodes must equal the one given here",
    admin.Q_INVALID_GROUP: "the PF has no VFs now: VF Enable is off",
    admin.Q_INVALID_MEMBER: "there is no such VF: VFs are numbered from 1",
}


class RefusedError(Exception):
    """What the user asked for cannot be done; the text says why, and what to do."""


def command_name(opcode: int, base: int) -> str | None:
    """The name of a command: the standard's, or one of the context commands, which begin at `base`."""
    return STANDARD_NAMES.get(opcode) or COMMAND_NAMES.get(opcode - base)


def explain(error: AdminError, base: int) -> str:
    """An admin command's refusal in words, with what to do next."""
    number = error.opcode - base
    name = command_name(error.opcode, base) or f"command {error.opcode:#x}"
    advice = ADVICE.get(error.qualifier, "")
    if error.qualifier == admin.Q_INVALID_COMMAND and number == context.CTX_WRITE:
        advice = "a context can only be written in Freeze: set the mode to freeze first"
    elif error.qualifier == admin.Q_INVALID_COMMAND and number == context.MODE_SET:
        advice = "the VF has a partly written context: write the rest of it, or discard it"
    elif error.qualifier == admin.Q_INVALID_FIELD and number == context.CTX_WRITE:
        advice = (
            "the device does not take this context: it comes from another kind of device, or is damaged"
            " (`show FILE` decodes it, `fields VF` says what the device takes)"
        )
    elif error.status == admin.STATUS_EAGAIN:
        advice = "the device is busy: try again"
    refusal = f"{name} refused: {error.status_name}, {error.qualifier_name}"
    return f"{refusal} ({advice})" if advice else refusal


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    prepare()
    options = _parser().parse_args(arguments)
    options.lines = []
    if options.run is not _show and options.pf is None:
        _parser().error("--pf is needed for this command")
    if options.json and options.run is _context_read and options.file == "-":
        _parser().error("--json and a context both on standard output: give a file")
    try:
        heed_interrupts()
        result = options.run(options)
        _print(json.dumps(result, indent=2) if options.json else "\n".join(options.lines))
    except AdminError as error:
        return _fail(explain(error, options.context_opcodes))
    except ServerUnreachableError as error:
        return _fail(f"no server listens on {error.filename}: start vfu-server, or look at --pf")
    except ServerBusyError as error:
        return _fail(
            f"{error.filename} is in use: another client (a QEMU, or another owner) holds the PF;"
            " this command needs it to itself. If nobody does, it is no vfio-user socket: look at --pf"
        )
    except (RefusedError, DriverRuleError, BadContextError) as error:
        return _fail(str(error))
    except (CapabilityMissingError, NegotiationError, LookupError) as error:
        return _fail(f"{options.pf} is not a PF with an admin queue: {error}. Look at --pf: DIR/pf.sock")
    except TimeoutError as error:
        return _fail(f"the device did not answer: {error}")
    except OSError as error:
        return _fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        _fail("interrupted: a command that was on its way may have been carried out")
        return 130
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vfu-owner", description="Modes and contexts of VFs, through the PF's admin queue."
    )
    parser.add_argument("--pf", type=Path, metavar="DIR/pf.sock", help="the PF's socket")
    parser.add_argument(
        "--context-opcodes", type=opcodes, default=CONTEXT_OPCODES, metavar="BASE",
        help="opcode of the first context command (default: %(default)#x)",
    )  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print the result for programs")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    mode = _command(commands, "mode", _mode, "show or change a VF's mode")
    mode.add_argument("vf", type=_vf, metavar="VF")
    mode.add_argument("mode", nargs="?", choices=MODES)

    contexts = _command(commands, "context", _context_size, "a VF's context")
    actions = contexts.add_subparsers(required=True, metavar="ACTION")
    size = _command(actions, "size", _context_size, "how many bytes are left to read, and how many in all")
    read = _command(actions, "read", _context_read, "read it into a file (- is standard output)")
    write = _command(actions, "write", _context_write, "write it from a file (- is standard input)")
    discard = _command(actions, "discard", _context_discard, "drop what was read and partly written")
    for action in (size, read, write, discard):
        action.add_argument("vf", type=_vf, metavar="VF")
    for action in (read, write):
        action.add_argument("file", metavar="FILE")
    read.add_argument("--buffer", type=_size, metavar="BYTES", help="largest READ (default: all at once)")

    fields = _command(commands, "fields", _fields, "which fields a VF can send or take")
    fields.add_argument("vf", type=_vf, metavar="VF")
    show = _command(commands, "show", _show, "decode a context, or compare two; needs no server")
    show.add_argument("file", metavar="FILE")
    show.add_argument("other", nargs="?", metavar="FILE2")
    _command(commands, "commands", _commands, "which commands the device lists for its VFs")
    return parser


def _command(
    parent: Any, name: str, run: Callable[[argparse.Namespace], Any], text: str
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = parent.add_parser(name, help=text, description=text)
    command.set_defaults(run=run)
    command.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help=argparse.SUPPRESS)
    return command


def _open(options: argparse.Namespace) -> OwnerDriver:
    owner = OwnerDriver.open(
        options.pf,
        context_opcodes=options.context_opcodes,
        timeout=COMMAND_TIMEOUT,
        negotiation_timeout=NEGOTIATION_TIMEOUT,
    )
    vf = getattr(options, "vf", None)
    try:
        if vf is not None:
            _check_group(owner, vf, options.context_opcodes)
    except BaseException:
        owner.close()
        raise
    return owner


def _check_group(owner: OwnerDriver, vf: int, base: int) -> None:
    """Raise `RefusedError` where the VF or the commands are not there, before any is sent."""
    existing = owner.sriov.enabled
    if not existing:
        raise RefusedError("the PF has no VFs now: VF Enable is off")
    if vf > existing:
        raise RefusedError(f"there is no VF {vf}: VFs 1 to {existing} exist")
    if base not in owner.commands:
        raise RefusedError(
            f"the device lists no context commands at {base:#x}: `commands` shows what it lists;"
            " the server's --context-opcodes must equal the one given here"
        )


def _mode(options: argparse.Namespace) -> Any:
    with _open(options) as owner:
        if options.mode is not None:
            owner.mode_set(options.vf, MODES[options.mode])
        mode = owner.mode_get(options.vf)
    name = MODE_NAMES.get(mode, str(mode))
    _say(options, name)
    return {"vf": options.vf, "mode": name}


def _context_size(options: argparse.Namespace) -> Any:
    with _open(options) as owner:
        left = owner.context_size(options.vf)
        whole = owner.context_size(options.vf, freeze=True)
    _say(options, f"{left} bytes left to read, {whole} in all")
    return {"vf": options.vf, "left": left, "whole": whole}


def _context_read(options: argparse.Namespace) -> Any:
    with _open(options) as owner:
        # A read that an earlier owner began would give the rest only. DISCARD is not sent for nothing:
        # it would drop a partly written context too.
        if owner.context_size(options.vf) != owner.context_size(options.vf, freeze=True):
            owner.context_discard(options.vf)
        size = 0
        with _output(options.file) as target:
            for piece in owner.context_read(options.vf, options.buffer):
                target.write(piece.data)
                size += piece.size
    return {"vf": options.vf, "bytes": size}


def _context_write(options: argparse.Namespace) -> Any:
    data = _input(options.file)
    decode(data)
    with _open(options) as owner:
        try:
            owner.context_write(options.vf, data)
        except AdminError:
            if owner.partly_written(options.vf):
                owner.context_discard(options.vf)
            raise
    return {"vf": options.vf, "bytes": len(data)}


def _context_discard(options: argparse.Namespace) -> Any:
    with _open(options) as owner:
        owner.context_discard(options.vf)
    return {"vf": options.vf}


def _fields(options: argparse.Namespace) -> Any:
    with _open(options) as owner:
        support = owner.fields(options.vf)
    rows = []
    for entry in support:
        kind, length = int(entry["type"]), int(entry["length"])
        exact = None if length == context.LENGTH_VARIES else length
        name = TYPE_NAMES.get(kind)
        rows.append({"type": kind, "name": name, "length": exact})
        _say(options, f"{kind:#06x}  {name or '?':16}  {'varies' if exact is None else exact}")
    return rows


def _show(options: argparse.Namespace) -> Any:
    first = decode(_input(options.file))
    if options.other is None:
        for field in first:
            _say(options, f"{field.offset:8}  {field.label:24}  {field.text()}".rstrip())
        return [_plain(field) for field in first]
    rows = []
    for difference in compare(first, decode(_input(options.other))):
        one, two = difference.first, difference.second
        _say(options, difference.label)
        _say(options, f"  - {one.text() if one else '(not there)'}")
        _say(options, f"  + {two.text() if two else '(not there)'}")
        rows.append(
            {
                "field": difference.label,
                "members": difference.members(),
                "first": one and one.members(),
                "second": two and two.members(),
            }
        )
    if not rows:
        _say(options, "no difference")
    return rows


def _commands(options: argparse.Namespace) -> Any:
    with _open(options) as owner:
        listed, vfs = sorted(owner.listed), owner.sriov.enabled
    rows = []
    for opcode in listed:
        name = command_name(opcode, options.context_opcodes)
        rows.append({"opcode": opcode, "name": name})
        _say(options, f"{opcode:#06x}  {name or '?'}")
    if not vfs:
        _say(options, "none: the PF has no VFs now")
    return {"vfs": vfs, "commands": rows}


def _plain(field: Field) -> dict[str, Any]:
    return {
        "type": field.type,
        "name": TYPE_NAMES.get(field.type),
        "offset": field.offset,
        "length": len(field.value),
        "value": field.members(),
    }


@contextlib.contextmanager
def _output(name: str) -> Iterator[BinaryIO]:
    """A file for a context, which is for its owner's eyes alone: it holds what is on the disk."""
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


def _input(name: str) -> bytes:
    try:
        with open(0 if name == "-" else name, "rb", closefd=name != "-") as file:
            return file.read()
    except OSError as error:
        raise _named(error, "standard input" if name == "-" else name) from error


def _named(error: OSError, name: str) -> OSError:
    """The error with the name of the file, unless it has one already: it may be a socket's."""
    return error if error.filename is not None else OSError(error.errno, error.strerror, name)


def _print(text: str) -> None:
    """Raise OSError where the result can't be printed; who closes a pipe has seen enough."""
    if not text:
        return
    try:
        put(text)
    except OSError as error:
        if error.errno != errno.EPIPE:
            raise OSError(error.errno, error.strerror, "standard output") from error


def _say(options: argparse.Namespace, line: str) -> None:
    """A line for people, who get them at the end, as programs get the whole result."""
    options.lines.append(line)


def _fail(text: str) -> int:
    tell("vfu-owner", text)
    return 1


def opcodes(text: str) -> int:
    """The opcode of the first context command: all of them lie beside the standard's."""
    least, most = max(STANDARD_NAMES) + 1, 0xFFFF - len(COMMAND_NAMES) + 1
    try:
        number = int(text, 0)
    except ValueError:
        number = -1
    if not least <= number <= most:
        raise argparse.ArgumentTypeError(f"{text!r}: give an opcode from {least:#x} to {most:#x}")
    return number


def _size(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of bytes above 0")
    return int(text)


def _vf(text: str) -> int:
    """A VF's number, also as `vf1`."""
    number = text.removeprefix("vf")
    if not number.isdecimal() or not int(number):
        raise argparse.ArgumentTypeError(f"{text!r} is no VF: 1, 2, ... or vf1, vf2, ...")
    return int(number)


if __name__ == "__main__":
    sys.exit(main())
