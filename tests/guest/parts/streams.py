"""A VF's migration stream, as Linux has it: records, each a head with device parts behind it.

virtio 1.4, "Device parts".
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

_RECORD: Final = struct.Struct("<QII")
_PART: Final = struct.Struct("<HBx8sI")

DEV_FEATURES, DRV_FEATURES, PCI_COMMON_CFG, DEVICE_STATUS, VQ_CFG, VQ_NOTIFY_CFG = range(0x100, 0x106)
NET_CVQ_CFG = 0x200
CONTEXT_FIELD = 0x5F0
NOBODYS = 0x4FF
"""A type that no part has."""

COMMON_CFG, VQ_SPLIT_STATE, VQ_PACKED_STATE = 0x12, 0x15, 0x16
"""Fields that a CONTEXT_FIELD may be."""


@dataclass(frozen=True)
class Part:
    """One part."""

    type: int
    optional: bool
    selector: bytes
    value: bytes

    def __bytes__(self) -> bytes:
        return _PART.pack(self.type, self.optional, self.selector, len(self.value)) + self.value


Change = Callable[[Part], Part | None]


def parts_of(stream: bytes) -> list[Part]:
    """The parts of a stream with one record."""
    size, flags, tag = _RECORD.unpack_from(stream)
    data = stream[_RECORD.size :]
    assert (size, flags, tag) == (len(data), 0, 0)
    found, at = [], 0
    while at < size:
        kind, optional, selector, length = _PART.unpack_from(data, at)
        at += _PART.size
        found.append(Part(kind, bool(optional), selector, data[at : at + length]))
        at += length
    assert at == size
    return found


def record(data: bytes | Sequence[Part], *, size: int | None = None, flags: int = 0, tag: int = 0) -> bytes:
    """A stream of one record, whose head may say something else than what is behind it."""
    if not isinstance(data, bytes):
        data = b"".join(map(bytes, data))
    return _RECORD.pack(len(data) if size is None else size, flags, tag) + data


def changed(parts: Sequence[Part], kind: int, change: Change, *, selector: bytes = b"") -> list[Part]:
    """The parts, the first one of a type (and selector, as far as given) changed, or gone."""
    at = next(
        index for index, part in enumerate(parts) if part.type == kind and part.selector.startswith(selector)
    )
    other = change(parts[at])
    return [*parts[:at], *([other] if other else []), *parts[at + 1 :]]


def patched(at: int, data: bytes) -> Change:
    """The same part with other bytes at a place of its value."""
    return lambda part: replace(part, value=part.value[:at] + data + part.value[at + len(data) :])


def flipped(part: Part) -> Part:
    """The same part with another lowest bit."""
    return replace(part, value=bytes([part.value[0] ^ 1]) + part.value[1:])


def lengthened(part: Part) -> Part:
    """The same part with a byte more."""
    return replace(part, value=part.value + b"\0")
