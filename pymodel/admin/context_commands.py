"""The draft's device-context commands, and those of ours about write records (docs/wire.md).

One row for each; the numbers are counted from a base, because virtio 1.4 gave the 2023 numbers to other
commands (A-01). The member does the work.
"""

from __future__ import annotations

import struct

import numpy as np

from pymodel.admin.dispatch import Call, MemberCommand, Reply, Table
from pymodel.errors import InvalidCommand
from pymodel.migration.member import MODE_NAMES, Member
from pymodel.spec import admin
from pymodel.spec import context as spec

# spec.MODE, spec.SIZE_GET_RESULT and spec.READ_RESULT.
_MODE = struct.Struct("<B7x")
_SIZE_RESULT = struct.Struct("<Q")
_READ_RESULT = struct.Struct("<II")

# Where a result's variable part begins in the writable buffer.
_CONTEXT_AT = admin.RESULT.itemsize + _READ_RESULT.size
_RUNS_AT = admin.RESULT.itemsize + spec.WRITE_RECORD_RESULT.itemsize

# Opcodes that virtio 1.4 leaves free for commands of this frame.
FREE_OPCODES = range(0x13, 0x8000)


def _mode_get(member: Member, _: Call) -> Reply:
    return Reply(_MODE.pack(member.mode), note=MODE_NAMES[member.mode])


def _mode_set(member: Member, call: Call) -> Reply | None:
    mode = call.first
    return Reply(note=MODE_NAMES[mode]) if member.set_mode(mode) else None


def _size_get(member: Member, call: Call) -> Reply:
    size = member.context_size(call.first)
    return Reply(_SIZE_RESULT.pack(size), note=f"{size} bytes")


def _read(member: Member, call: Call) -> Reply:
    left, size = member.read_context(call.writable, _CONTEXT_AT)
    return Reply(_READ_RESULT.pack(left, size), streamed=size, note=f"{size} bytes, {left} left")


def _write(member: Member, call: Call) -> Reply | None:
    start = admin.COMMAND.itemsize
    if not member.write_context(call.readable, start):
        return None
    return Reply(note=f"{max(call.readable.length - start, 0)} bytes")


def _fields_query(member: Member, _: Call) -> Reply:
    rows = [(kind, 0, length) for kind, length in member.fields().items()]
    return Reply(np.array(rows, spec.FIELD_SUPPORT).tobytes(), note=f"{len(rows)} types")


def _discard(member: Member, _: Call) -> Reply:
    member.discard_context()
    return Reply()


def _record_start(member: Member, _: Call) -> Reply:
    member.start_record()
    return Reply()


def _record_read(member: Member, call: Call) -> Reply:
    if not member.record.active:
        raise InvalidCommand("no write record was started")
    room = max(call.writable.length - _RUNS_AT, 0) // spec.WRITE_RECORD.itemsize
    runs, left = member.record.take(room)
    result = np.array((left, len(runs)), spec.WRITE_RECORD_RESULT).tobytes()
    result += np.array(runs, spec.WRITE_RECORD).tobytes()
    return Reply(result, note=f"{len(runs)} runs, {left} left")


def _record_stop(member: Member, _: Call) -> Reply:
    member.stop_record()
    return Reply()


_COMMANDS: Table = {
    spec.MODE_GET: MemberCommand("DEV_MODE_GET", _mode_get),
    spec.MODE_SET: MemberCommand("DEV_MODE_SET", _mode_set, waits=True),
    spec.CTX_SIZE_GET: MemberCommand("DEV_CTX_SIZE_GET", _size_get),
    spec.CTX_READ: MemberCommand("DEV_CTX_READ", _read, waits=True),
    spec.CTX_WRITE: MemberCommand("DEV_CTX_WRITE", _write, waits=True),
    spec.CTX_FIELDS_QUERY: MemberCommand("DEV_CTX_FIELDS_QUERY", _fields_query),
    spec.CTX_DISCARD: MemberCommand("DEV_CTX_DISCARD", _discard),
    spec.WRITE_RECORD_START: MemberCommand("WRITE_RECORD_START", _record_start),
    spec.WRITE_RECORD_READ: MemberCommand("WRITE_RECORD_READ", _record_read),
    spec.WRITE_RECORD_STOP: MemberCommand("WRITE_RECORD_STOP", _record_stop),
}


def context_commands(base: int | None) -> Table:
    """The commands at `base`, all of them; none where it is None (DEV-01, A-04).

    Raises ValueError where they would take opcodes that virtio 1.4 uses or reserves.
    """
    if base is None:
        return {}
    if base not in FREE_OPCODES or base + max(_COMMANDS) not in FREE_OPCODES:
        raise ValueError(f"context opcodes {base:#x} and on are not within 0x13-0x7fff")
    return {base + number: command for number, command in _COMMANDS.items()}
