"""The device context: `FunctionState` as a stream of typed fields, and back (docs/wire.md, "The context").

`TABLE` says for every common field which attributes of the state it carries; encoding, checking and
applying come from it. The device type's own fields (0x0100 and up) pass through as they are.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

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
_WORD = (1 << 64) - 1


def _packer(layout: Layout) -> struct.Struct:
    """The same layout for `struct`: reserved members as one string of bytes, `words` as two."""
    codes = []
    for name in layout.names or ():
        member = layout[name]
        if name == "reserved":
            codes.append(f"{member.itemsize}s")
        else:
            codes.append({1: "B", 2: "H", 4: "I", 8: "Q"}[member.base.itemsize] * math.prod(member.shape))
    return struct.Struct("<" + "".join(codes))


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

    # The layout for `struct`, which takes a field apart without numpy's cost for each member.
    packer: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "packer", _packer(self.layout))

    @property
    def members(self) -> list[str]:
        """The members that carry something."""
        return [name for name in self.layout.names or () if name != "reserved"]

    def encode(self, source: FunctionState | QueueState) -> bytes:
        """The value of this field as `source` has it."""
        values: list[int | bytes] = []
        for name in self.layout.names or ():
            if name == "reserved":
                values.append(b"")
                continue
            content = int(getattr(source, self.rename.get(name, name)))
            values += [content & _WORD, content >> 64] if name == "words" else [content]
        return self.packer.pack(*values)

    def decode(self, raw: bytes) -> dict[str, int]:
        """The members of a received value. Raises `InvalidField` for reserved bits and values (A-12)."""
        values = iter(self.packer.unpack(raw))
        members: dict[str, int] = {}
        for name in self.layout.names or ():
            value = next(values)
            if name == "reserved":
                if any(value):
                    raise InvalidField(f"field {self.type:#06x}: a reserved word is not 0")
                continue
            if name == "words":
                value |= next(values) << 64
            elif value > self.limits.get(name, value):
                raise InvalidField(f"field {self.type:#06x}: {name} is {value}")
            members[name] = value
        return members

    def apply(self, target: FunctionState | QueueState, members: Mapping[str, int]) -> None:
        """Set the attributes of `target`. Raises `InvalidField` where one that is compared differs."""
        for name, value in members.items():
            attribute = self.rename.get(name, name)
            present = getattr(target, attribute)
            if name in self.compared:
                if value != present:
                    raise InvalidField(f"field {self.type:#06x}: {attribute} {value}, here it is {present}")
            elif name not in self.ignored:
                setattr(target, attribute, bool(value) if isinstance(present, bool) else value)


def _exists(queue: QueueState) -> bool:
    return queue.index >= 0


def _enabled(queue: QueueState) -> bool:
    return queue.enable != 0


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
        per_queue=_enabled,
        packed=False,
    ),
    Row(
        spec.VQ_PACKED_STATE,
        spec.VQ_PACKED_STATE_VALUE,
        rename={"flags": "interrupt_owed"},
        limits={"flags": spec.VQ_STATE_F_INTERRUPT_OWED},
        per_queue=_enabled,
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
        if kind not in self.lengths:
            raise InvalidField(f"field {kind:#06x}: unknown type")
        if reserved:
            raise InvalidField(f"field {kind:#06x}: the reserved word is {reserved:#x}")
        if length > spec.MAX_FIELD_LENGTH:
            raise InvalidField(f"field {kind:#06x}: length {length} is over {spec.MAX_FIELD_LENGTH}")
        exact = self.lengths[kind]
        if exact not in (spec.LENGTH_VARIES, length):
            raise InvalidField(f"field {kind:#06x}: length {length}, here it is {exact}")
        if length < REPEATED.get(kind, 0):
            raise InvalidField(f"field {kind:#06x}: length {length} is too short")

    def index(self, kind: int, raw: bytes) -> int:
        """Check the value of a common field; which queue it is about, else 0. Raises `InvalidField`."""
        row = ROWS.get(kind)
        if row is None:
            return 0
        members = row.decode(raw)
        if row.per_queue is None:
            return 0
        if members["index"] >= self.queues:
            raise InvalidField(f"field {kind:#06x}: queue {members['index']} of {self.queues}")
        return members["index"]


def header(kind: int, length: int) -> bytes:
    """A field's header."""
    return HEADER.pack(kind, 0, length)


def _common(state: FunctionState) -> Iterator[tuple[int, bytes]]:
    for row in TABLE:
        if row.packed is not None and row.packed != state.packed:
            continue
        if row.per_queue is None:
            yield row.type, row.encode(state)
        else:
            for queue in sorted(state.queues, key=lambda queue: queue.index):
                if row.per_queue(queue):
                    yield row.type, row.encode(queue)
    yield spec.DEVICE_CFG, state.device_config


def encode(state: FunctionState) -> list[Bytes]:
    """The whole context of `state`: START_MARKER, fields by number, END_MARKER (DEV-33, DEV-34).

    The small fields come as one buffer; the buffers of the device's own fields are passed on, not copied.
    """
    head = bytearray(header(spec.START_MARKER, 0))
    for kind, value in sorted(_common(state), key=lambda pair: pair[0]):
        head += header(kind, len(value)) + value
    buffers: list[Bytes] = [np.frombuffer(bytes(head), np.uint8)]
    for part in sorted(state.device, key=lambda part: part.type):
        if part.length > spec.MAX_FIELD_LENGTH:
            raise ValueError(f"field {part.type:#06x} of {part.length} bytes: the device must divide it")
        buffers.append(np.frombuffer(header(part.type, part.length), np.uint8))
        buffers += part.value
    buffers.append(np.frombuffer(header(spec.END_MARKER, 0), np.uint8))
    return buffers


@dataclass(slots=True)
class Fields:
    """The fields of a context that is being written, or of several folded into one.

    `common` and `single` keep the last value of each; `repeated` keeps all, in order, and belongs to
    this object up to `count`: what stands behind that was staged by a command that failed.
    """

    common: dict[tuple[int, int], bytes] = field(default_factory=dict)
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
        return Fields(dict(self.common), dict(self.single), self.repeated, self.count, self.cost)

    def trim(self) -> None:
        """Drop what a fork that was given up staged."""
        del self.repeated[self.count :]

    def clear(self) -> None:
        """Forget all. The list is left to the objects that this one was forked from."""
        self.common, self.single, self.repeated, self.count, self.cost = {}, {}, [], 0, 0

    def add(self, kind: int, index: int, value: Bytes) -> None:
        """Stage one complete, checked value."""
        if kind < 0x100:
            self.common[kind, index] = value.tobytes()
        elif kind in REPEATED:
            self.repeated.append(DeviceField(kind, [value]))
            self.count += 1
            self.cost += len(value) + self.OVERHEAD
        else:
            replaced = self.single.pop(kind, None)
            if replaced is None:
                self.cost += self.OVERHEAD
            else:
                self.cost -= len(replaced)
            self.single[kind] = value
            self.cost += len(value)

    def follow(self, later: Fields) -> None:
        """Fold a later context onto this one, in order of arrival (DEV-37).

        Grows in place, so that a command of very many contexts takes time in proportion to its length.
        """
        self.common.update(later.common)
        for kind, value in later.single.items():
            self.add(kind, 0, value)
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

        Raises `InvalidField` where a compared value differs, or for the position of a ring of the other
        format, `state` then changed in part. Fields that were not written stay as they are.
        """
        queues = {queue.index: queue for queue in state.queues}
        for (kind, index), raw in sorted(self.common.items()):
            if kind == spec.DEVICE_CFG:
                state.device_config = raw
                continue
            row = ROWS[kind]
            # By number the driver's features come first.
            if row.packed is not None and row.packed != state.packed:
                format_ = "packed" if state.packed else "split"
                raise InvalidField(f"field {kind:#06x} of queue {index}: the driver's rings are {format_}")
            row.apply(state if row.per_queue is None else queues[index], row.decode(raw))
        state.device = self.device()
