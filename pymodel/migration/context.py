"""The device context: `FunctionState` as a stream of typed fields, and back (docs/wire.md, "The context").

`TABLE` says for every common field which attributes of the state it carries; encoding, checking and
applying come from it. The device type's own fields (0x0100 and up) pass through as they are.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from operator import attrgetter
from typing import Any

import numpy as np

from pymodel.errors import InvalidField
from pymodel.memory import Bytes
from pymodel.migration.state import DeviceField, FunctionState, QueueState
from pymodel.spec import context as spec

Layout = np.dtype[np.void]

# Fields that mean something each time they occur, in order; of all others the last one wins. Each value
# begins with a header that cannot be missing.
REPEATED: Mapping[int, int] = {
    spec.BLK_EXTENT: spec.BLK_EXTENT_HEADER.itemsize,
    spec.BLK_CHANGE: spec.BLK_EXTENT_HEADER.itemsize,
}
# A context that carries the key describes all of it, so what earlier contexts said with these is void.
SUPERSEDES: Mapping[int, frozenset[int]] = {spec.BLK_EXTENT: frozenset({spec.BLK_EXTENT, spec.BLK_CHANGE})}

# spec.FIELD: type, reserved, length.
HEADER = struct.Struct("<IIQ")

MARKERS = (spec.START_MARKER, spec.END_MARKER, spec.DISCARD)
DEVICE_TYPES = 0x0100
"""The first field type of the device type's own."""

# The members of one value, in the order of its layout, without reserved ones.
Members = tuple[int, ...]

SMALL_PIECE = 64
"""Pieces of the device type's own fields up to this many bytes join their neighbours' buffer."""


def _codes(layout: Layout) -> str:
    """The same layout for `struct`: reserved members as padding, `words` as one string of bytes."""
    codes = []
    for name in layout.names or ():
        member = layout[name]
        if name == "reserved":
            codes.append(f"{member.itemsize}x")
        elif name == "words":
            codes.append(f"{member.itemsize}s")
        else:
            codes.append({1: "B", 2: "H", 4: "I", 8: "Q"}[member.itemsize])
    return "".join(codes)


def _reserved(layout: Layout) -> int:
    """The reserved bits of a value, as a mask of the value as one little-endian number."""
    mask = 0
    for name, (member, start, *_) in (layout.fields or {}).items():
        if name == "reserved":
            mask |= ((1 << 8 * member.itemsize) - 1) << 8 * start
    return mask


@dataclass(frozen=True, slots=True)
class Row:
    """One common field: its layout, and which attributes of the state its members are.

    A member carries the attribute of the same name, unless `rename` says otherwise. `compared` members
    must equal what the function has; `ignored` ones are sent and never applied. `limits` bounds members
    of few values. With `per_queue` the field occurs for every queue that it is true for. With `packed` it
    is about rings, and belongs only into the context of a driver whose rings are packed, or are not.
    """

    type: int
    layout: Layout
    rename: Mapping[str, str] = field(default_factory=dict)
    compared: frozenset[str] = frozenset()
    ignored: frozenset[str] = frozenset()
    limits: Mapping[str, int] = field(default_factory=dict)
    per_queue: Callable[[QueueState], bool] | None = None
    packed: bool | None = None

    # Made of the above once, as a context is moved while its function stands still. Members go by their
    # positions.
    members: tuple[str, ...] = field(init=False)
    size: int = field(init=False)
    """Bytes of the value."""
    index_at: int = field(init=False)
    """Which member is the queue's index, -1 for none."""
    _values: Callable[[Any], tuple[Any, ...]] = field(init=False)
    _is_wide: bool = field(init=False)
    _value: struct.Struct = field(init=False)
    _field: struct.Struct = field(init=False)
    _reserved: int = field(init=False)
    _limits: tuple[tuple[int, str, int], ...] = field(init=False)
    _compared: tuple[tuple[int, str], ...] = field(init=False)
    _applied: tuple[tuple[int, str, bool], ...] = field(init=False)

    def __post_init__(self) -> None:
        members = tuple(name for name in self.layout.names or () if name != "reserved")
        attributes = tuple(self.rename.get(name, name) for name in members)
        target = FunctionState if self.per_queue is None else QueueState
        flags = {entry.name for entry in fields(target) if entry.type == "bool"}
        codes = _codes(self.layout)
        applied = [at for at, name in enumerate(members) if name not in self.compared | self.ignored]
        is_wide = "words" in members
        size = self.layout.itemsize
        for name, value in {
            "members": members,
            "size": size,
            "index_at": members.index("index") if "index" in members else -1,
            "_values": _wide(attributes[0], size) if is_wide else _values(attributes),
            "_is_wide": is_wide,
            "_value": struct.Struct("<" + codes),
            "_field": struct.Struct(HEADER.format + codes),
            "_reserved": _reserved(self.layout),
            "_limits": tuple((members.index(name), name, limit) for name, limit in self.limits.items()),
            "_compared": tuple(
                (at, attributes[at]) for at, name in enumerate(members) if name in self.compared
            ),
            "_applied": tuple((at, attributes[at], attributes[at] in flags) for at in applied),
        }.items():
            object.__setattr__(self, name, value)

    def encode(self, source: FunctionState | QueueState) -> bytes:
        """The field, with its header, as `source` has it."""
        return self._field.pack(self.type, 0, self.size, *self._values(source))

    def value(self, source: FunctionState | QueueState) -> bytes:
        """The field's value alone."""
        return self._value.pack(*self._values(source))

    def decode(self, raw: bytes) -> Members:
        """The members of a received value. Raises `InvalidField` for reserved bits and values (A-12)."""
        if self._reserved and int.from_bytes(raw, "little") & self._reserved:
            raise InvalidField(f"field {self.type:#06x}: a reserved word is not 0")
        if self._is_wide:
            return (int.from_bytes(raw, "little"),)
        members = self._value.unpack(raw)
        for at, name, limit in self._limits:
            if members[at] > limit:
                raise InvalidField(f"field {self.type:#06x}: {name} is {members[at]}")
        return members

    def apply(self, target: FunctionState | QueueState, members: Members) -> None:
        """Set the attributes of `target`. Raises `InvalidField` where one that is compared differs."""
        for at, attribute in self._compared:
            present = getattr(target, attribute)
            if members[at] != present:
                raise InvalidField(f"field {self.type:#06x}: {attribute} {members[at]}, here it is {present}")
        for at, attribute, is_flag in self._applied:
            setattr(target, attribute, members[at] != 0 if is_flag else members[at])


def _values(attributes: tuple[str, ...]) -> Callable[[Any], tuple[Any, ...]]:
    """What takes these attributes of an object, as a tuple."""
    take = attrgetter(*attributes)
    return take if len(attributes) > 1 else lambda source: (take(source),)


def _wide(attribute: str, size: int) -> Callable[[Any], tuple[Any, ...]]:
    """What takes an attribute that is one number of `size` bytes."""
    take = attrgetter(attribute)
    return lambda source: (take(source).to_bytes(size, "little"),)


def _exists(queue: QueueState) -> bool:
    return queue.index >= 0


def _placed(queue: QueueState) -> bool:
    return queue.enable != 0 and not queue.lost


TABLE: tuple[Row, ...] = (
    Row(spec.DEVICE_ID, spec.DEVICE_ID_VALUE, compared=frozenset({"virtio_id"})),
    Row(
        spec.DEVICE_FEATURES,
        spec.FEATURES_VALUE,
        rename={"words": "device_features"},
        ignored=frozenset({"words"}),
    ),
    Row(spec.DRIVER_FEATURES, spec.FEATURES_VALUE, rename={"words": "driver_features"}),
    Row(spec.COMMON_CFG, spec.COMMON_CFG_VALUE, compared=frozenset({"num_queues"})),
    Row(spec.VQ_CFG, spec.VQ_CFG_VALUE, limits={"enable": 1, "reset": 1}, per_queue=_exists),
    Row(
        spec.VQ_SPLIT_STATE,
        spec.VQ_SPLIT_STATE_VALUE,
        rename={"flags": "interrupt_owed"},
        limits={"flags": spec.VQ_STATE_F_INTERRUPT_OWED},
        per_queue=_placed,
        packed=False,
    ),
    Row(
        spec.VQ_PACKED_STATE,
        spec.VQ_PACKED_STATE_VALUE,
        rename={"flags": "interrupt_owed"},
        limits={"flags": spec.VQ_STATE_F_INTERRUPT_OWED},
        per_queue=_placed,
        packed=True,
    ),
    Row(spec.ISR_STATUS, spec.ISR_STATUS_VALUE),
    Row(spec.PENDING, spec.PENDING_VALUE, limits={"config_changed": 1}),
)
ROWS: Mapping[int, Row] = {row.type: row for row in TABLE}


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a function a context must fit: fixed for the function's life."""

    lengths: Mapping[int, int]
    """Every type that can be sent or taken, with its exact length or LENGTH_VARIES (DEV-10)."""
    queues: int
    """Queues that it has: the bound of every queue index."""

    @classmethod
    def of(cls, state: FunctionState, device_fields: Mapping[int, int]) -> Shape:
        """The shape of the function that `state` was captured from."""
        lengths = dict.fromkeys(MARKERS, 0)
        lengths.update((row.type, row.layout.itemsize) for row in TABLE)
        lengths[spec.DEVICE_CFG] = len(state.device_config)
        lengths.update(device_fields)
        return cls(dict(sorted(lengths.items())), state.num_queues)

    def check_header(self, kind: int, reserved: int, length: int) -> None:
        """Refuse a field as soon as its header is known. Raises `InvalidField` (DEV-32, A-12)."""
        exact = self.lengths.get(kind)
        if exact == length <= spec.MAX_FIELD_LENGTH and not reserved:
            return
        if exact is None:
            raise InvalidField(f"field {kind:#06x}: unknown type")
        if reserved:
            raise InvalidField(f"field {kind:#06x}: the reserved word is {reserved:#x}")
        if length > spec.MAX_FIELD_LENGTH:
            raise InvalidField(f"field {kind:#06x}: length {length} is over {spec.MAX_FIELD_LENGTH}")
        if exact != length:
            if exact != spec.LENGTH_VARIES:
                raise InvalidField(f"field {kind:#06x}: length {length}, here it is {exact}")
            if length < REPEATED.get(kind, 0):
                raise InvalidField(f"field {kind:#06x}: length {length} is too short")

    def decode(self, kind: int, raw: bytes) -> tuple[int, Members]:
        """Check the value of a field of `ROWS`: which queue it is about, else 0, and its members.

        Raises `InvalidField`.
        """
        row = ROWS[kind]
        members = row.decode(raw)
        if row.per_queue is None:
            return 0, members
        index = members[row.index_at]
        if index >= self.queues:
            raise InvalidField(f"field {kind:#06x}: queue {index} of {self.queues}")
        return index, members


def header(kind: int, length: int) -> bytes:
    """A field's header."""
    return HEADER.pack(kind, 0, length)


_START = header(spec.START_MARKER, 0)
_END = header(spec.END_MARKER, 0)
_AHEAD = [row for row in TABLE if row.type < spec.DEVICE_CFG]
_BEHIND = [row for row in TABLE if row.type > spec.DEVICE_CFG]


def encode(state: FunctionState) -> list[Bytes]:
    """The whole context of `state`: START_MARKER, fields by number, END_MARKER (DEV-33, DEV-34).

    Small fields come as one buffer; large buffers of the device's own fields are passed on, not copied.
    """
    queues = sorted(state.queues, key=attrgetter("index"))
    parts = [_START, *[row.encode(state) for row in _AHEAD]]
    parts += [header(spec.DEVICE_CFG, len(state.device_config)), state.device_config]
    for row in _BEHIND:
        if row.packed is not None and row.packed != state.packed:
            continue
        if row.per_queue is None:
            parts.append(row.encode(state))
        else:
            parts += [row.encode(queue) for queue in queues if row.per_queue(queue)]
    buffers: list[Bytes] = []
    for part in sorted(state.device, key=attrgetter("type")):
        if part.length > spec.MAX_FIELD_LENGTH:
            raise ValueError(f"field {part.type:#06x} of {part.length} bytes: the device must divide it")
        parts.append(header(part.type, part.length))
        for piece in part.value:
            if len(piece) <= SMALL_PIECE:
                parts.append(piece.tobytes())
            else:
                buffers += [np.frombuffer(b"".join(parts), np.uint8), piece]
                parts = []
    parts.append(_END)
    buffers.append(np.frombuffer(b"".join(parts), np.uint8))
    return buffers


@dataclass(slots=True)
class Fields:
    """The fields of a context that is being written, or of several folded into one.

    `config` (DEVICE_CFG), `common` (by type and queue) and `single` keep the last value of each; `repeated`
    keeps all, in order, and belongs to this object up to `count`: what stands behind that was staged by a
    command that failed.
    """

    config: bytes | None = None
    common: dict[tuple[int, int], Members] = field(default_factory=dict)
    single: dict[int, Bytes] = field(default_factory=dict)
    repeated: list[DeviceField] = field(default_factory=list)
    count: int = 0
    cost: int = 0

    # What a device field counts beside its value. It takes 0.5 KiB of memory, and time when the context ends,
    # all under the function's lock: so a disk in blocks of 4 KiB fits, one in single bytes does not.
    OVERHEAD = 4096

    def fork(self) -> Fields:
        """A copy to go on with. The list is shared: drop it to go back, and call `trim` (A-11).

        Its price does not depend on how much was staged: the dictionaries hold one entry for each type
        and queue at most.
        """
        self.trim()
        return Fields(self.config, dict(self.common), dict(self.single), self.repeated, self.count, self.cost)

    def trim(self) -> None:
        """Drop what a fork that was given up staged."""
        del self.repeated[self.count :]

    def clear(self) -> None:
        """Forget all. The list is left to the objects that this one was forked from."""
        self.config, self.common, self.single, self.repeated = None, {}, {}, []
        self.count = self.cost = 0

    def add(self, kind: int, value: Bytes) -> None:
        """Stage one complete, checked value of the device type's own."""
        if kind in REPEATED:
            self.repeated.append(DeviceField(kind, [value]))
            self.count += 1
            self.cost += len(value) + self.OVERHEAD
        else:
            self._drop(kind)
            self.single[kind] = value
            self.cost += len(value) + self.OVERHEAD

    def _drop(self, kind: int) -> None:
        """Unsay a value of `single`, if it is there."""
        value = self.single.pop(kind, None)
        if value is not None:
            self.cost -= len(value) + self.OVERHEAD

    def follow(self, later: Fields) -> None:
        """Fold a later context onto this one, in order of arrival (DEV-37).

        Grows in place, so that a command of very many contexts takes time in proportion to its length.
        """
        if later.config is not None:
            self.config = later.config
        self.common.update(later.common)
        if later.count:
            # What the content was called before it.
            self._drop(spec.BLK_CONTENT)
        for kind, value in later.single.items():
            self.add(kind, value)
        written = later.repeated[: later.count]
        void = frozenset[int]().union(*(SUPERSEDES.get(part.type, frozenset()) for part in written))
        self.trim()
        if void:
            kept = [part for part in self.repeated if part.type not in void]
            self.cost -= sum(part.length + self.OVERHEAD for part in self.repeated if part.type in void)
            self.repeated = kept
        self.repeated += written
        self.count = len(self.repeated)
        self.cost += sum(part.length + self.OVERHEAD for part in written)

    def device(self) -> list[DeviceField]:
        """The device type's own fields, those that occur once first."""
        single = [DeviceField(kind, [value]) for kind, value in sorted(self.single.items())]
        return single + self.repeated[: self.count]

    def apply(self, state: FunctionState) -> None:
        """Change `state` to what these fields say; `state.device` then holds only what was written.

        Raises `InvalidField` where a compared value differs, for the position of a ring of the other format,
        or for content that builds on what is not here; `state` is then changed in part. Fields that were not
        written stay as they are.
        """
        if self.config is not None:
            state.device_config = self.config
        queues = {queue.index: queue for queue in state.queues}
        for kind, index in sorted(self.common):
            row = ROWS[kind]
            # By number the driver's features come first.
            if row.packed is not None and row.packed != state.packed:
                found = f"field {kind:#06x} of queue {index} is of the other format"
                raise InvalidField(f"{found}: the driver's rings are {'packed' if state.packed else 'split'}")
            row.apply(state if row.per_queue is None else queues[index], self.common[kind, index])
            if row.packed is not None:
                queues[index].lost = False
        state.content = self._content_after(state.content)
        state.device = self.device()

    def _content_after(self, present: bytes) -> bytes:
        """The name of the content that these fields make of the one that is called `present`, if it has one.

        Raises `InvalidField` where they build on another one, or name what they do not say.
        """
        base, name = self.single.get(spec.BLK_BASE), self.single.get(spec.BLK_CONTENT)
        if base is not None and base.tobytes() != present:
            here = present.hex() or "one that has no name"
            raise InvalidField(f"it builds on content {base.tobytes().hex()}, and what is here is {here}")
        if name is None:
            return b"" if self.count else present
        whole = any(part.type in SUPERSEDES for part in self.repeated[: self.count])
        if base is None and not whole:
            raise InvalidField("it names the content that it leaves, and says neither that nor its base")
        return name.tobytes()
