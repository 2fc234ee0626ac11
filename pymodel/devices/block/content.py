"""What a block device's context says beside its configuration: the content of a disk in memory.

Fields BLK_EXTENT, BLK_CHANGE, BLK_BASE and BLK_CONTENT (docs/wire.md). A file is taken to be shared between
hosts: it has none. Whether a disk holds what a BLK_BASE names is looked at where contexts are folded
(`pymodel.migration.context`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np

from pymodel.devices.block.ram_disk import RamDisk
from pymodel.errors import InvalidField
from pymodel.memory import Bytes
from pymodel.migration.state import DeviceField, Mark
from pymodel.spec import context

_OFFSET = struct.Struct("<Q")
_PER_FIELD = context.FIELD.itemsize + _OFFSET.size
_NAME_BYTES = context.BLK_NAME_VALUE.itemsize
_PER_BASE = context.FIELD.itemsize + _NAME_BYTES
_RANGES = frozenset({context.BLK_EXTENT, context.BLK_CHANGE})

FIELD_LENGTHS = {
    context.BLK_EXTENT: context.LENGTH_VARIES,
    context.BLK_CHANGE: context.LENGTH_VARIES,
    context.BLK_BASE: _NAME_BYTES,
    context.BLK_CONTENT: _NAME_BYTES,
}


def capture(disk: RamDisk, since: Mark | None) -> list[DeviceField]:
    """All of a disk as extents, or what changed since a mark where that is smaller; and its name.

    Sizes are compared before either is taken: what is taken costs a copy of each of its chunks that is
    written next.
    """
    name = _name(context.BLK_CONTENT, disk.mark().name)
    if since is not None:
        count, length = disk.extent_of_changes(since)
        of_all, all_length = disk.extent_of_snapshot()
        if _PER_BASE + count * _PER_FIELD + length <= max(of_all, 1) * _PER_FIELD + all_length:
            changes = _ranges(context.BLK_CHANGE, disk.changes(since))
            return [*changes, _name(context.BLK_BASE, since.name), name]
    # One extent without bytes stands for an empty disk.
    return [*_ranges(context.BLK_EXTENT, disk.snapshot() or [(0, np.empty(0, np.uint8))]), name]


def check(disk: RamDisk, fields: list[DeviceField]) -> None:
    """Raise `InvalidField` for an extent that is not on the disk."""
    for field in fields:
        if field.type not in _RANGES:
            continue
        if field.length < _OFFSET.size:
            raise InvalidField(f"an extent of {field.length} bytes has no offset")
        disk.check(_offset(field), field.length - _OFFSET.size)


def reserve(disk: RamDisk, fields: list[DeviceField]) -> None:
    """Hold what `restore` takes. Raises MemoryError."""
    disk.reserve(((offset, len(data)) for offset, data in _held(fields)), cleared=_is_whole(fields))


def restore(disk: RamDisk, fields: list[DeviceField]) -> None:
    """Apply extents and changes in order; any extent stands for a whole disk. The name is of the result."""
    if _is_whole(fields):
        disk.clear()
    for offset, data in _held(fields):
        disk.adopt(offset, data)
    disk.reserve((), cleared=False)
    for field in fields:
        if field.type == context.BLK_CONTENT:
            disk.call(b"".join(part.tobytes() for part in field.value))


def _is_whole(fields: list[DeviceField]) -> bool:
    return any(field.type == context.BLK_EXTENT for field in fields)


def _held(fields: list[DeviceField]) -> Iterator[tuple[int, Bytes]]:
    """What the extents and changes hold, as (offset, bytes) in order."""
    for field in fields:
        if field.type not in _RANGES:
            continue
        offset = _offset(field)
        skip = _OFFSET.size
        for part in field.value:
            data = part[skip:]
            skip = max(0, skip - len(part))
            if len(data):
                yield offset, data
            offset += len(data)


def _offset(field: DeviceField) -> int:
    """The offset that a BLK_EXTENT or BLK_CHANGE begins with."""
    head = b""
    for part in field.value:
        head += part[: _OFFSET.size - len(head)].tobytes()
        if len(head) == _OFFSET.size:
            break
    return int(_OFFSET.unpack(head)[0])


def _name(kind: int, name: bytes) -> DeviceField:
    return DeviceField(kind, [np.frombuffer(name, np.uint8)])


def _ranges(kind: int, ranges: list[tuple[int, Bytes]]) -> list[DeviceField]:
    return [
        DeviceField(kind, [np.frombuffer(_OFFSET.pack(offset), np.uint8), data]) for offset, data in ranges
    ]
