"""`vfu-owner mode`, `context` and `fields`: the draft's commands."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator
from typing import Any

from pymodel.spec import context
from vfu_client.owner.admin import AdminError
from vfu_client.owner.context import MODE_NAMES, TYPE_NAMES, decode
from vfu_client.owner.owner import OwnerDriver
from vfu_client.owner.subcommand import RefusedError, add, content, opened, output, say, vf_number

MODES = {name: number for number, name in MODE_NAMES.items()}


def add_to(commands: Any) -> None:
    """Add the subcommands."""
    mode = add(commands, "mode", _mode, "show or change a VF's mode")
    mode.add_argument("vf", type=vf_number, metavar="VF")
    mode.add_argument("mode", nargs="?", choices=tuple(MODES))

    contexts = add(commands, "context", _context_size, "a VF's context")
    actions = contexts.add_subparsers(required=True, metavar="ACTION")
    size = add(actions, "size", _context_size, "how many bytes are left to read, and how many in all")
    read = add(actions, "read", _context_read, "read it into a file (- is standard output)")
    write = add(actions, "write", _context_write, "write it from a file (- is standard input)")
    discard = add(actions, "discard", _context_discard, "drop what was read and partly written")
    for action in (size, read, write, discard):
        action.add_argument("vf", type=vf_number, metavar="VF")
    read.add_argument("out", metavar="FILE")
    write.add_argument("file", metavar="FILE")
    read.add_argument("--buffer", type=_size, metavar="BYTES", help="largest READ (default: all at once)")

    fields = add(commands, "fields", _fields, "which fields a VF can send or take")
    fields.add_argument("vf", type=vf_number, metavar="VF")


@contextlib.contextmanager
def _opened(options: argparse.Namespace) -> Iterator[OwnerDriver]:
    """The owner of the PF. Raises RefusedError where the VF or the commands are not there."""
    with opened(options) as owner:
        if owner.base not in owner.commands:
            raise RefusedError(
                f"the device lists no context commands at {owner.base:#x}: `commands` shows what it lists;"
                " the server's --context-opcodes must equal the one given here"
            )
        yield owner


def _mode(options: argparse.Namespace) -> Any:
    with _opened(options) as owner:
        if options.mode is not None:
            owner.mode_set(options.vf, MODES[options.mode])
        mode = owner.mode_get(options.vf)
    name = MODE_NAMES.get(mode, str(mode))
    say(options, name)
    return {"vf": options.vf, "mode": name}


def _context_size(options: argparse.Namespace) -> Any:
    with _opened(options) as owner:
        left = owner.context_size(options.vf)
        whole = owner.context_size(options.vf, freeze=True)
    say(options, f"{left} bytes left to read, {whole} in all")
    return {"vf": options.vf, "left": left, "whole": whole}


def _context_read(options: argparse.Namespace) -> Any:
    with _opened(options) as owner:
        # A read that an earlier owner began would give the rest only. DISCARD is not sent for nothing:
        # it would drop a partly written context too.
        if owner.context_size(options.vf) != owner.context_size(options.vf, freeze=True):
            owner.context_discard(options.vf)
        size = 0
        with output(options.out) as target:
            for piece in owner.context_read(options.vf, options.buffer):
                target.write(piece.data)
                size += piece.size
    return {"vf": options.vf, "bytes": size}


def _context_write(options: argparse.Namespace) -> Any:
    data = content(options.file)
    decode(data)
    with _opened(options) as owner:
        try:
            owner.context_write(options.vf, data)
        except AdminError:
            if owner.partly_written(options.vf):
                owner.context_discard(options.vf)
            raise
    return {"vf": options.vf, "bytes": len(data)}


def _context_discard(options: argparse.Namespace) -> Any:
    with _opened(options) as owner:
        owner.context_discard(options.vf)
    return {"vf": options.vf}


def _fields(options: argparse.Namespace) -> Any:
    with _opened(options) as owner:
        support = owner.fields(options.vf)
    rows = []
    for entry in support:
        kind, length = int(entry["type"]), int(entry["length"])
        exact = None if length == context.LENGTH_VARIES else length
        name = TYPE_NAMES.get(kind)
        rows.append({"type": kind, "name": name, "length": exact})
        say(options, f"{kind:#06x}  {name or '?':16}  {'varies' if exact is None else exact}")
    return rows


def _size(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 1 << 63:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of bytes above 0")
    return int(text)
