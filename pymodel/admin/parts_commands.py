"""The commands of virtio 1.4's device parts: resource objects, parts, and the mode.

virtio 1.4, "Device resource objects" and "Device parts"; readings in docs/wire.md. The member does the work.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from pymodel.admin.dispatch import Call, MemberCommand, Reply, Table
from pymodel.admin.resources import Resources
from pymodel.errors import InvalidField, NoMemory, NoSuchResource
from pymodel.migration.member import Dialect, Member
from pymodel.migration.parts import Part, header
from pymodel.spec import admin as spec
from pymodel.spec import context, parts

_DATA_AT = spec.COMMAND.itemsize
# Where a result begins in the writable buffer.
_RESULT_AT = spec.RESULT.itemsize

MOST_BYTES = 256 << 10
"""Bytes of parts, or of a list of their headers, that a command may bring."""

_Handler = Callable[[Resources, Member, Call], Reply | None]


def named_object(call: Call) -> int:
    """The id of the DEV_PARTS object that a command is about. Raises `NoSuchResource` for another type."""
    named = call.fields(spec.RESOURCE_OBJ)
    if named["type"] != spec.RESOURCE_OBJ_DEV_PARTS:
        raise NoSuchResource(f"resource objects of type {int(named['type']):#x}")
    return int(named["id"])


def _operation(call: Call) -> int:
    """What an object is to be for. Raises `InvalidField` for flags, of which there are none."""
    data = call.fields(spec.RESOURCE_OBJ_DATA)
    if data["flags"]:
        raise InvalidField(f"flags {int(data['flags']):#x}")
    return int(data["operation"])


def _create(resources: Resources, member: Member, call: Call) -> Reply:
    id_, operation = named_object(call), _operation(call)
    resources.create(id_, member, operation)
    return Reply(note=f"object {id_}, to {'set' if operation else 'get'}")


def _modify(resources: Resources, member: Member, call: Call) -> Reply:
    resources.modify(named_object(call), member, _operation(call))
    return Reply()


def _query(resources: Resources, member: Member, call: Call) -> Reply:
    operation = resources.find(named_object(call), member)
    return Reply(np.array((operation, 0), spec.DEV_PARTS_OBJ).tobytes())


def _destroy(resources: Resources, member: Member, call: Call) -> Reply:
    id_ = named_object(call)
    resources.destroy(id_, member)
    return Reply(note=f"object {id_}")


def metadata(resources: Resources, member: Member, call: Call) -> bytes:
    """What METADATA_GET answers where there is room for it. Raises `CommandError`."""
    resources.use(named_object(call), member, spec.DEV_PARTS_OBJ_GET)
    kind = int(call.fields(spec.DEV_PARTS_GET_DATA)["kind"])
    if kind > spec.METADATA_LIST:
        raise InvalidField(f"metadata of type {kind}")
    found = member.parts.capture()
    number = sum(part.size for part in found) if kind == spec.METADATA_SIZE else len(found)
    result = np.array((number, 0), spec.METADATA_RESULT).tobytes()
    if kind == spec.METADATA_LIST:
        result += b"".join(header(part) for part in found)
    return result


def _metadata_get(resources: Resources, member: Member, call: Call) -> Reply:
    result = metadata(resources, member, call)
    size = spec.METADATA_RESULT.itemsize
    if len(result) > size and call.writable.length < _RESULT_AT + len(result):
        raise NoMemory(f"{len(result)} bytes of headers, and room for {call.writable.length - _RESULT_AT}")
    return Reply(result, note=f"{int.from_bytes(result[:4], 'little')}")


def selected_parts(resources: Resources, member: Member, call: Call) -> list[Part]:
    """What PARTS_GET answers where there is room for it. Raises `CommandError` and `MemoryFault`."""
    resources.use(named_object(call), member, spec.DEV_PARTS_OBJ_GET)
    kind = int(call.fields(spec.DEV_PARTS_GET_DATA)["kind"])
    if kind > spec.PARTS_ALL:
        raise InvalidField(f"parts of type {kind}")
    found = member.parts.capture()
    if kind == spec.PARTS_SELECTED:
        wanted = _selected(_rest(call, spec.DEV_PARTS_GET_DATA.itemsize))
        found = [part for part in found if (part.type, part.selector) in wanted]
    return found


def _parts_get(resources: Resources, member: Member, call: Call) -> Reply:
    found = selected_parts(resources, member, call)
    data = b"".join(header(part) + part.value for part in found)
    # Not a multiple of 8 in length: who sends it back unread would send padding too (docs/wire.md).
    written = call.writable.put(_RESULT_AT, data)
    return Reply(streamed=written, note=f"{len(found)} parts, {written} of {len(data)} bytes")


def _selected(data: bytes) -> set[tuple[int, bytes]]:
    """Type and selector of each header in a list; what is less than a header at its end is padding."""
    size = parts.PART.itemsize
    heads = np.frombuffer(data[: len(data) // size * size], parts.PART)
    return {(int(head["type"]), head["selector"].tobytes()) for head in heads}


def brought_parts(call: Call) -> bytes:
    """The parts that a PARTS_SET brings, unread. Raises `InvalidField` for too many, `MemoryFault`."""
    return _rest(call, spec.RESOURCE_OBJ.itemsize)


def _parts_set(resources: Resources, member: Member, call: Call) -> Reply:
    resources.use(named_object(call), member, spec.DEV_PARTS_OBJ_SET)
    data = brought_parts(call)
    count = member.set_parts(data)
    return Reply(note=f"{count} parts, {len(data)} bytes")


def _rest(call: Call, start: int) -> bytes:
    """The command data from `start` on. Raises `InvalidField` for more than `MOST_BYTES`, `MemoryFault`."""
    length = max(call.readable.length - _DATA_AT - start, 0)
    if length > MOST_BYTES:
        raise InvalidField(f"{length} bytes of parts; up to {MOST_BYTES} are taken")
    return call.readable.read(_DATA_AT + start, length)


def _mode_set(_: Resources, member: Member, call: Call) -> Reply | None:
    flags = call.first
    if flags & ~spec.DEV_MODE_STOPPED:
        raise InvalidField(f"flags {flags:#x}")
    mode = context.MODE_STOP if flags else context.MODE_ACTIVE
    if not member.set_mode(mode, Dialect.PARTS):
        return None
    return Reply(note="stopped" if flags else "running")


# Opcode: name, what it does, whether it waits for a transition of its member (P-DEV-55 to P-DEV-57).
_COMMANDS: dict[int, tuple[str, _Handler, bool]] = {
    spec.RESOURCE_OBJ_CREATE: ("RESOURCE_OBJ_CREATE", _create, False),
    spec.RESOURCE_OBJ_QUERY: ("RESOURCE_OBJ_QUERY", _query, False),
    spec.RESOURCE_OBJ_MODIFY: ("RESOURCE_OBJ_MODIFY", _modify, False),
    spec.RESOURCE_OBJ_DESTROY: ("RESOURCE_OBJ_DESTROY", _destroy, False),
    spec.DEV_PARTS_METADATA_GET: ("DEV_PARTS_METADATA_GET", _metadata_get, False),
    spec.DEV_PARTS_GET: ("DEV_PARTS_GET", _parts_get, False),
    spec.DEV_PARTS_SET: ("DEV_PARTS_SET", _parts_set, True),
    spec.DEV_MODE_SET: ("DEV_MODE_SET", _mode_set, True),
}


def parts_commands(resources: Resources) -> Table:
    """All of them (P-DEV-41), on the objects of `resources`."""
    return {
        opcode: MemberCommand(name, partial(run, resources), waits)
        for opcode, (name, run, waits) in _COMMANDS.items()
    }
