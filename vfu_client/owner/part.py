"""Device parts for people, and the streams that they come in (virtio 1.4, "Device parts")."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from pymodel.spec import context, parts, virtio_pci
from vfu_client.owner import net_part
from vfu_client.owner.context import KEYED, Field, feature_bits, one_line, structure, undecoded
from vfu_client.owner.context import TYPE_NAMES as FIELD_NAMES
from vfu_client.owner.stream import ReadBytes, as_view

# parts.PART: type, flags, selector, length.
_HEADER = struct.Struct("<HBx8sI")
assert _HEADER.size == parts.PART.itemsize

TYPE_NAMES = {
    parts.DEV_FEATURES: "DEV_FEATURES",
    parts.DRV_FEATURES: "DRV_FEATURES",
    parts.PCI_COMMON_CFG: "PCI_COMMON_CFG",
    parts.DEVICE_STATUS: "DEVICE_STATUS",
    parts.VQ_CFG: "VQ_CFG",
    parts.VQ_NOTIFY_CFG: "VQ_NOTIFY_CFG",
    parts.NET_CVQ_CFG: "NET_CVQ_CFG",
    parts.CONTEXT_FIELD: "CONTEXT_FIELD",
}
LAYOUTS: dict[int, np.dtype[Any]] = {
    parts.DEVICE_STATUS: parts.DEVICE_STATUS_VALUE,
    parts.VQ_CFG: parts.VQ_CFG_VALUE,
    parts.VQ_NOTIFY_CFG: parts.VQ_NOTIFY_CFG_VALUE,
}
COMMON_NAMES = {offset: name for name, (_, offset, *_) in (virtio_pci.COMMON_CFG.fields or {}).items()}

VFIO_RECORD = np.dtype([("size", "<u8"), ("flags", "<u4"), ("tag", "<u4")])
"""Ahead of each set of parts where Linux's virtio_vfio_pci hands it to VFIO's user; tag 0 is device parts."""


class BadPartsError(ValueError):
    """Bytes that are no device parts: cut, or with a header that makes no sense."""


@dataclass(frozen=True)
class Part:
    """One device part. `field` is what a CONTEXT_FIELD carries."""

    type: int
    flags: int
    selector: bytes
    value: memoryview
    offset: int
    field: Field | None = None

    @property
    def optional(self) -> bool:
        """Whether a device may leave it alone."""
        return bool(self.flags & parts.F_OPTIONAL)

    @property
    def name(self) -> str:
        """The name of the type, or its number where it has none here."""
        return TYPE_NAMES.get(self.type, f"{self.type:#06x}")

    @property
    def key(self) -> tuple[int, int]:
        """What tells this part from others of its set."""
        # A command's class stands ahead of its number, and counts for more.
        order: Literal["big", "little"] = "big" if self.type == parts.NET_CVQ_CFG else "little"
        return self.type, int.from_bytes(self.selector, order)

    @property
    def label(self) -> str:
        """The name, with what its selector chooses."""
        chosen = self._chosen()
        return f"{self.name} {chosen}" if chosen else self.name

    def _chosen(self) -> str:
        match self.type:
            case parts.PCI_COMMON_CFG:
                offset = int.from_bytes(self.selector[:4], "little")
                return COMMON_NAMES.get(offset, f"{offset:#x}")
            case parts.VQ_CFG | parts.VQ_NOTIFY_CFG:
                return str(int.from_bytes(self.selector[:2], "little"))
            case parts.NET_CVQ_CFG:
                return net_part.name(self.selector[0], self.selector[1])
            case parts.CONTEXT_FIELD:
                kind, queue = struct.unpack_from("<HH", self.selector)
                name = FIELD_NAMES.get(kind, f"{kind:#06x}")
                return f"{name} {queue}" if kind in KEYED else name
        return self.selector.hex() if any(self.selector) else ""

    def members(self) -> dict[str, Any]:
        """The value taken apart: plain integers, texts and lists; `bytes` where unknown or damaged."""
        if self.field is not None:
            return self.field.members()
        found = None
        match self.type:
            case parts.DEV_FEATURES | parts.DRV_FEATURES:
                found = feature_bits(self.value)
            case parts.PCI_COMMON_CFG:
                found = {self._chosen(): int.from_bytes(self.value, "little")}
            case parts.NET_CVQ_CFG:
                found = net_part.members(self.selector[0], self.selector[1], bytes(self.value))
        layout = LAYOUTS.get(self.type)
        if layout is not None and len(self.value) == layout.itemsize:
            found = structure(self.value, layout)
        return undecoded(self.value) if found is None else found

    def text(self) -> str:
        """The value in one line; long bytes are cut."""
        return one_line(self.value, self.members())


def walk(stream: ReadBytes) -> Iterator[tuple[int, int, bytes, int, int]]:
    """Type, flags, selector, and where the value begins and ends, of each part.

    Raises `BadPartsError` where one is cut.
    """
    view = as_view(stream)
    at = 0
    while at < len(view):
        if len(view) - at < _HEADER.size:
            raise BadPartsError(f"the header of a part at byte {at} is cut")
        kind, flags, selector, length = _HEADER.unpack_from(view, at)
        start = at + _HEADER.size
        at = start + length
        if at > len(view):
            raise BadPartsError(f"part {kind:#x} has {length} bytes, {len(view) - start} are left")
        yield kind, flags, selector, start, at


def decode(stream: ReadBytes, *, at: int = 0) -> list[Part]:
    """The parts of one set, in order; values are views of it. `at` is where it stands in its file.

    Unknown types are parts like any others. Raises `BadPartsError`.
    """
    view = as_view(stream)
    found: list[Part] = []
    device_type: int | None = None
    for kind, flags, selector, start, end in walk(view):
        value = view[start:end]
        offset = at + start - _HEADER.size
        field = None
        if kind == parts.CONTEXT_FIELD:
            number = int.from_bytes(selector[:2], "little")
            if number == context.DEVICE_ID:
                device_type = int.from_bytes(value[:2], "little")
            field = Field(number, value, offset, device_type)
        found.append(Part(kind, flags, selector, value, offset, field))
    if not found:
        raise BadPartsError("no device parts in 0 bytes")
    return found


def header(kind: int, flags: int, selector: bytes, length: int) -> bytes:
    """The header of a part."""
    return _HEADER.pack(kind, flags, selector, length)


def is_vfio(stream: ReadBytes) -> bool:
    """Whether a stream is one of VFIO's records. Their tag is 0, where a set's first part has its length."""
    view = as_view(stream)
    size, rest = view[:8], view[8:16]
    return any(size) and len(rest) == 8 and rest[0] <= 1 and not any(rest[1:])


def sets(stream: ReadBytes) -> list[tuple[int, memoryview]]:
    """The sets of parts in a stream, each with its place: one, or one for each record of VFIO's.

    Raises `BadPartsError` where a record is cut, or is something else than parts.
    """
    view = as_view(stream)
    if not is_vfio(view):
        return [(0, view)]
    found = []
    at = 0
    while at < len(view):
        start = at + VFIO_RECORD.itemsize
        if start > len(view):
            raise BadPartsError(f"the record at byte {at} is cut")
        record = np.frombuffer(view[at:start], VFIO_RECORD)[0]
        end = start + int(record["size"])
        if record["tag"] or end > len(view):
            raise BadPartsError(f"the record at byte {at} is cut, or no device parts")
        found.append((start, view[start:end]))
        at = end
    return found
