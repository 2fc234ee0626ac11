"""Device parts: `FunctionState` as virtio 1.4 has it, and back (docs/wire.md, "Device parts").

`ROWS` are the parts of the standard ("Device parts"), in its order. Behind them stand the device type's own,
and then ours, which carry fields of the context that the standard has no part for.
"""

from __future__ import annotations

import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from operator import attrgetter
from typing import NamedTuple, Protocol

import numpy as np

from pymodel.errors import InvalidField
from pymodel.migration.context import ROWS as CONTEXT_ROWS
from pymodel.migration.context import Fields, Row, Shape
from pymodel.migration.state import FunctionState, QueueState
from pymodel.spec import context, virtio_pci
from pymodel.spec import parts as spec

# spec.PART, and the selectors that are numbers.
_HEADER = struct.Struct("<HBB8sI")
_OFFSET = struct.Struct("<I4x")
_INDEX = struct.Struct("<H6x")
_FIELD = struct.Struct("<HH4x")

# Zeros behind the last part that a driver may add to have its buffer a multiple of 8 long.
_PADDING = 8


class Part(NamedTuple):
    """One part: which it is, by type and selector (8 bytes), and its value."""

    type: int
    selector: bytes
    value: bytes
    optional: bool = False

    @property
    def size(self) -> int:
        """Bytes with the header."""
        return _HEADER.size + len(self.value)


class PartsOfType(Protocol):
    """What a device type adds."""

    @property
    def part_types(self) -> Collection[int]:
        """The types of its own parts."""
        ...

    def encode_parts(self, state: FunctionState) -> list[Part]:
        """The device type's own parts of `state`, in order."""
        ...

    def decode_parts(self, found: list[Part], state: FunctionState) -> None:
        """Change `state` to what parts of `part_types` say. Raises `InvalidField`; it is changed in part."""
        ...


def header(part: Part) -> bytes:
    """A part's header."""
    return _HEADER.pack(part.type, spec.F_OPTIONAL * part.optional, 0, part.selector, len(part.value))


@dataclass(frozen=True, slots=True)
class PartRow:
    """Parts of the standard of one type and, where it has a selector that is not a queue, of one selector."""

    row: Row
    selector: bytes = bytes(8)
    optional: bool = False


def _queue(_: QueueState) -> bool:
    return True


def _common(name: str, *, compared: bool = False) -> PartRow:
    """The part of one field of the common configuration."""
    assert virtio_pci.COMMON_CFG.fields is not None
    offset = virtio_pci.COMMON_CFG.fields[name][1]
    layout = np.dtype([(name, virtio_pci.COMMON_CFG[name])])
    row = Row(spec.PCI_COMMON_CFG, layout, compared=frozenset({name} if compared else ()))
    return PartRow(row, _OFFSET.pack(offset))


ROWS: tuple[PartRow, ...] = (
    PartRow(
        Row(
            spec.DEV_FEATURES,
            spec.FEATURES_VALUE,
            rename={"words": "device_features"},
            compared=frozenset({"words"}),
        ),
        optional=True,
    ),
    PartRow(Row(spec.DRV_FEATURES, spec.FEATURES_VALUE, rename={"words": "driver_features"})),
    _common("device_feature_select"),
    _common("driver_feature_select"),
    _common("config_msix_vector"),
    _common("num_queues", compared=True),
    _common("queue_select"),
    PartRow(Row(spec.DEVICE_STATUS, spec.DEVICE_STATUS_VALUE)),
    PartRow(
        Row(
            spec.VQ_CFG,
            spec.VQ_CFG_VALUE,
            rename={
                "queue_size": "size",
                "vector": "msix_vector",
                "enabled": "enable",
                "queue_desc": "desc",
                "queue_driver": "driver",
                "queue_device": "device",
            },
            limits={"enabled": 1},
            per_queue=_queue,
        )
    ),
    PartRow(
        Row(
            spec.VQ_NOTIFY_CFG,
            spec.VQ_NOTIFY_CFG_VALUE,
            rename={"queue_notify_off": "notify_off", "queue_notif_config_data": "notif_config_data"},
            per_queue=_queue,
        )
    ),
)
_PER_QUEUE: Mapping[int, PartRow] = {entry.row.type: entry for entry in ROWS if entry.row.per_queue}
_SINGLE: Mapping[tuple[int, bytes], PartRow] = {
    (entry.row.type, entry.selector): entry for entry in ROWS if not entry.row.per_queue
}

# Fields of the context that travel in parts of ours.
FIELDS = (
    context.DEVICE_ID,
    context.COMMON_CFG,
    context.DEVICE_CFG,
    context.VQ_SPLIT_STATE,
    context.VQ_PACKED_STATE,
    context.ISR_STATUS,
    context.PENDING,
    context.NET_MAC_TABLE,
    context.NET_HASH,
    context.NET_RSS,
    context.NET_OFFLOADS,
    context.OWN_STATE,
)


def encode(state: FunctionState, of_type: PartsOfType) -> list[Part]:
    """All parts of `state`, in the standard's order (P-DEV-43)."""
    queues = sorted(state.queues, key=attrgetter("index"))
    found = []
    for entry in ROWS:
        row = entry.row
        if row.per_queue is None:
            found.append(Part(row.type, entry.selector, row.value(state), entry.optional))
        else:
            found += [Part(row.type, _INDEX.pack(queue.index), row.value(queue)) for queue in queues]
    found += of_type.encode_parts(state)
    own = {part.type: b"".join(piece.tobytes() for piece in part.value) for part in state.device}
    own[context.DEVICE_CFG] = state.device_config
    for kind in FIELDS:
        row_of_field = CONTEXT_ROWS.get(kind)
        if row_of_field is None:
            if kind in own:
                found.append(_field(kind, 0, own[kind]))
        elif row_of_field.per_queue is None:
            found.append(_field(kind, 0, row_of_field.value(state)))
        elif row_of_field.packed == state.packed:
            found += [
                _field(kind, queue.index, row_of_field.value(queue))
                for queue in queues
                if row_of_field.per_queue(queue)
            ]
    return found


def _field(kind: int, queue: int, value: bytes) -> Part:
    return Part(spec.CONTEXT_FIELD, _FIELD.pack(kind, queue), value, optional=True)


def parse(data: bytes) -> list[Part]:
    """The parts that follow each other in `data`.

    Raises `InvalidField` for what is none, is cut short, or comes twice.
    """
    found: dict[tuple[int, bytes], Part] = {}
    at = 0
    while len(data) - at >= _PADDING or any(data[at:]):
        head = data[at : at + _HEADER.size]
        if len(head) < _HEADER.size:
            raise InvalidField(f"the header of a part is cut after {len(head)} bytes")
        kind, flags, reserved, selector, length = _HEADER.unpack(head)
        at += _HEADER.size
        part = Part(kind, selector, data[at : at + length], bool(flags & spec.F_OPTIONAL))
        at += length
        if reserved or flags & ~spec.F_OPTIONAL:
            raise InvalidField(f"{_name(part)}: flags {flags:#x}, reserved {reserved:#x}")
        if len(part.value) < length:
            raise InvalidField(f"{_name(part)}: cut after {len(part.value)} of {length} bytes")
        if (kind, selector) in found:
            raise InvalidField(f"{_name(part)} comes twice")
        found[kind, selector] = part
    return list(found.values())


def _name(part: Part) -> str:
    return f"part {part.type:#06x} {part.selector.hex()}"


def apply(parts: list[Part], state: FunctionState, shape: Shape, of_type: PartsOfType) -> None:
    """Change `state` to what the parts say, in the standard's order whatever theirs is.

    Raises `InvalidField`, `state` changed in part: for a part that is unknown and not optional (P-DEV-47),
    for another length than the part has here (P-DEV-45), and where a compared value differs (P-DEV-46). The
    rest is `Migratable.check`'s.
    """
    queues = {queue.index: queue for queue in state.queues}
    of_its_own: list[Part] = []
    for part in sorted(parts, key=attrgetter("type")):
        if part.type in _PER_QUEUE:
            _apply_to_queue(part, queues)
        elif (part.type, part.selector) in _SINGLE:
            _apply_row(_SINGLE[part.type, part.selector].row, part, state)
        elif part.type in of_type.part_types:
            of_its_own.append(part)
        elif part.type != spec.CONTEXT_FIELD and not part.optional:
            raise InvalidField(f"{_name(part)}: unknown here")
    of_type.decode_parts(of_its_own, state)
    fields = Fields()
    for part in parts:
        if part.type == spec.CONTEXT_FIELD:
            _stage_field(part, fields, shape)
    present = state.device
    fields.apply(state)
    state.device = [*(kept for kept in present if kept.type not in fields.single), *state.device]


def _apply_row(row: Row, part: Part, target: FunctionState | QueueState) -> None:
    if len(part.value) != row.size:
        raise InvalidField(f"{_name(part)}: {len(part.value)} bytes, here it has {row.size}")
    row.apply(target, row.decode(part.value))


def _apply_to_queue(part: Part, queues: Mapping[int, QueueState]) -> None:
    (index,) = _INDEX.unpack(part.selector)
    queue = queues.get(index)
    if queue is None or part.selector != _INDEX.pack(index):
        raise InvalidField(f"{_name(part)}: no queue here")
    _apply_row(_PER_QUEUE[part.type].row, part, queue)
    if part.type == spec.VQ_CFG:
        # Unless a part of ours says more.
        start = QueueState(index)
        queue.last_avail_idx, queue.used_idx = start.last_avail_idx, start.used_idx
        queue.last_avail, queue.last_used = start.last_avail, start.last_used
        queue.lost = queue.interrupt_owed = queue.enable != 0


def _stage_field(part: Part, fields: Fields, shape: Shape) -> None:
    """Have a field of the context among `fields`. Raises `InvalidField`, with nothing staged."""
    kind, index = _FIELD.unpack(part.selector)
    if part.selector != _FIELD.pack(kind, index) or kind not in FIELDS or kind not in shape.lengths:
        if part.optional:
            return
        raise InvalidField(f"{_name(part)}: unknown here")
    shape.check_header(kind, 0, len(part.value))
    if kind in CONTEXT_ROWS:
        queue, members = shape.decode(kind, part.value)
        if queue != index:
            raise InvalidField(f"{_name(part)}: about queue {queue}")
        fields.common[kind, queue] = members
    elif kind == context.DEVICE_CFG:
        fields.config = part.value
    else:
        fields.add(kind, np.frombuffer(part.value, np.uint8))
