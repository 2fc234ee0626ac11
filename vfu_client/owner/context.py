"""A device context for people: its fields with names and values, and two contexts side by side."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from pymodel.spec import block, context, net, virtio
from vfu_client.owner import net_context
from vfu_client.owner.stream import BadContextError, ContextWalker, ReadBytes, as_view

TYPE_NAMES = {
    context.START_MARKER: "START_MARKER",
    context.END_MARKER: "END_MARKER",
    context.DISCARD: "DISCARD",
    context.DEVICE_ID: "DEVICE_ID",
    context.DEVICE_FEATURES: "DEVICE_FEATURES",
    context.DRIVER_FEATURES: "DRIVER_FEATURES",
    context.COMMON_CFG: "COMMON_CFG",
    context.DEVICE_CFG: "DEVICE_CFG",
    context.VQ_CFG: "VQ_CFG",
    context.VQ_SPLIT_STATE: "VQ_SPLIT_STATE",
    context.VQ_PACKED_STATE: "VQ_PACKED_STATE",
    context.ISR_STATUS: "ISR_STATUS",
    context.PENDING: "PENDING",
    context.BLK_EXTENT: "BLK_EXTENT",
    context.BLK_CHANGE: "BLK_CHANGE",
    context.BLK_BASE: "BLK_BASE",
    context.BLK_CONTENT: "BLK_CONTENT",
    **net_context.NAMES,
}
MODE_NAMES = {context.MODE_ACTIVE: "active", context.MODE_STOP: "stop", context.MODE_FREEZE: "freeze"}
LAYOUTS: dict[int, np.dtype[Any]] = {
    context.DEVICE_ID: context.DEVICE_ID_VALUE,
    context.COMMON_CFG: context.COMMON_CFG_VALUE,
    context.VQ_CFG: context.VQ_CFG_VALUE,
    context.VQ_SPLIT_STATE: context.VQ_SPLIT_STATE_VALUE,
    context.VQ_PACKED_STATE: context.VQ_PACKED_STATE_VALUE,
    context.ISR_STATUS: context.ISR_STATUS_VALUE,
    context.PENDING: context.PENDING_VALUE,
    context.NET_RX_MODE: context.NET_RX_MODE_VALUE,
    context.NET_QUEUE_PAIRS: context.NET_QUEUE_PAIRS_VALUE,
    context.BLK_BASE: context.BLK_NAME_VALUE,
    context.BLK_CONTENT: context.BLK_NAME_VALUE,
}
CONFIG_LAYOUTS: dict[int, np.dtype[Any]] = {virtio.ID_BLOCK: block.CONFIG, virtio.ID_NET: net.CONFIG}
# Of these types a context has several, told apart by the leading integer of the value.
KEYED = {
    context.VQ_CFG: 2,
    context.VQ_SPLIT_STATE: 2,
    context.VQ_PACKED_STATE: 2,
    context.BLK_EXTENT: 8,
    context.BLK_CHANGE: 8,
}
# Members of several bytes that people read as one.
BYTES: dict[str, Callable[[bytes], str]] = {"mac": lambda raw: raw.hex(":"), "name": bytes.hex}
# Members that people read in hexadecimal.
HEXADECIMAL = frozenset(
    {
        "msix_vector",
        "config_msix_vector",
        "device_status",
        "isr",
        "desc",
        "driver",
        "device",
        "offset",
        "notif_config_data",
        "last_avail",
        "last_used",
        "vector",
        "queue_desc",
        "queue_driver",
        "queue_device",
        "queue_notif_config_data",
    }
)
SHOWN_BYTES = 32


class Item(Protocol):
    """What people look at, one by one: a field of a context, or a device part."""

    @property
    def type(self) -> int: ...
    @property
    def value(self) -> memoryview: ...
    @property
    def key(self) -> tuple[int, int]:
        """What tells it from others of its stream, in their order."""
        ...

    @property
    def label(self) -> str:
        """What people call it."""
        ...

    def members(self) -> dict[str, Any]:
        """The value taken apart."""
        ...

    def text(self) -> str:
        """The value in one line."""
        ...


@dataclass(frozen=True)
class Field:
    """One field of a context; `device_type` is what a DEVICE_ID before it said, if one did."""

    type: int
    value: memoryview
    offset: int
    device_type: int | None = None

    @property
    def name(self) -> str:
        """The name of the type, or its number where it has none here."""
        return TYPE_NAMES.get(self.type, f"{self.type:#06x}")

    @property
    def key(self) -> tuple[int, int]:
        """What tells this field from others of its context: the type, and queue or disk offset."""
        size = KEYED.get(self.type, 0)
        return self.type, int.from_bytes(self.value[:size], "little")

    @property
    def label(self) -> str:
        """The name, with the queue or the disk offset where there may be several."""
        if self.type in (context.BLK_EXTENT, context.BLK_CHANGE):
            return f"{self.name} {self.key[1]:#x}"
        return f"{self.name} {self.key[1]}" if self.type in KEYED else self.name

    def members(self) -> dict[str, Any]:
        """The value taken apart: plain integers, texts and lists of integers; `bytes` where unknown."""
        if self.type in (context.DEVICE_FEATURES, context.DRIVER_FEATURES):
            return feature_bits(self.value)
        if self.type in (context.BLK_EXTENT, context.BLK_CHANGE) and len(self.value) >= 8:
            data = self.value[8:]
            return {"offset": self.key[1], "length": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        found = net_context.members(self.type, bytes(self.value))
        if found is not None:
            return found
        layout = LAYOUTS.get(self.type)
        if self.type == context.DEVICE_CFG and self.device_type is not None:
            layout = CONFIG_LAYOUTS.get(self.device_type)
        if layout is not None and self._fits(layout):
            return structure(self.value, layout)
        return undecoded(self.value)

    def _fits(self, layout: np.dtype[Any]) -> bool:
        """Fixed values have one length; a configuration may lack members at its end."""
        if self.type == context.DEVICE_CFG:
            return 0 < len(self.value) <= layout.itemsize
        return len(self.value) == layout.itemsize

    def text(self) -> str:
        """The value in one line; long bytes are cut."""
        return one_line(self.value, self.members())


@dataclass(frozen=True)
class Difference:
    """A field or part that two streams do not have alike; None where one lacks it."""

    label: str
    first: Item | None
    second: Item | None

    def members(self) -> list[str]:
        """The members that differ, by name."""
        if self.first is None or self.second is None:
            return []
        one, two = self.first.members(), self.second.members()
        return [name for name in one | two if one.get(name) != two.get(name)]


def decode(stream: ReadBytes) -> list[Field]:
    """The fields of a stream of contexts, in order; values are views of it.

    Unknown types are fields like any others. Raises `BadContextError` where the stream breaks off, does not
    begin with START_MARKER, or has a header that makes no sense.
    """
    view = as_view(stream)
    fields: list[Field] = []
    walker = ContextWalker()
    device_type: int | None = None
    for kind, start, length in walker.feed(view):
        if start + length > len(view):
            raise BadContextError(
                f"field {kind:#x} at byte {start} has {length} bytes, {len(view) - start} are left"
            )
        value = view[start : start + length]
        if kind == context.DEVICE_ID:
            device_type = int.from_bytes(value[:2], "little")
        fields.append(Field(kind, value, start - context.FIELD.itemsize, device_type))
    if walker.partial or not fields:
        raise BadContextError(f"no END_MARKER in {len(view)} bytes")
    return fields


def compare(first: Sequence[Item], second: Sequence[Item]) -> Iterator[Difference]:
    """Where two streams differ, each field by its last value (DEV-38), in the order of their types."""
    ones = {item.key: item for item in first}
    twos = {item.key: item for item in second}
    for key in sorted(ones | twos):
        one, two = ones.get(key), twos.get(key)
        if one is None or two is None or one.value != two.value:
            known = one or two
            assert known is not None
            yield Difference(known.label, one, two)


def feature_bits(value: ReadBytes) -> dict[str, Any]:
    """The numbers of the features in a value, for `Item.members`."""
    bits = int.from_bytes(value, "little")
    return {"bits": [bit for bit in range(bits.bit_length()) if bits >> bit & 1]}


def structure(value: ReadBytes, layout: np.dtype[Any]) -> dict[str, Any]:
    """The members of a structure, of which `value` may lack some at its end, for `Item.members`."""
    padded = bytes(value).ljust(layout.itemsize, b"\0")
    return _members(np.frombuffer(padded, layout)[0], len(value))


def undecoded(value: ReadBytes) -> dict[str, Any]:
    """A value that is not known or damaged, for `Item.members`."""
    return {"bytes": bytes(value).hex()} if len(value) else {}


def one_line(value: memoryview, members: dict[str, Any]) -> str:
    """Members for `Item.text`; bytes that are not taken apart are cut where there are many."""
    if list(members) == ["bytes"]:
        shown = bytes(value[:SHOWN_BYTES]).hex(" ")
        return f"{shown} ... ({len(value)} bytes)" if len(value) > SHOWN_BYTES else shown
    return " ".join(f"{name}={_member_text(name, item)}" for name, item in members.items())


def _members(record: np.void, size: int) -> dict[str, Any]:
    """The members of a structure that begin within `size` bytes, without reserved ones that are zero."""
    found: dict[str, Any] = {}
    for name, (_, offset, *_) in (record.dtype.fields or {}).items():
        if offset >= size:
            continue
        value = record[name]
        if isinstance(value, np.void):
            found |= {f"{name}.{inner}": item for inner, item in _members(value, size - offset).items()}
            continue
        plain = BYTES[name](value.tobytes()) if name in BYTES else value.tolist()
        if name.startswith(("reserved", "unused")) and not np.any(value):
            continue
        found[name] = plain
    return found


def _member_text(name: str, value: object) -> str:
    if isinstance(value, int) and name in HEXADECIMAL:
        return f"{value:#x}"
    if isinstance(value, list):
        return ",".join(map(str, value)) or "none"
    return str(value)
