"""Streams of device parts: taken apart, put together, and made wrong in every way there is."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from tests.fuzz.context import ADDRESSES, WORDS16
from tests.fuzz.net import SHAPES

COMMON_CFG, STATUS, VQ_CFG, VQ_NOTIFY, NET, OURS = 0x102, 0x103, 0x104, 0x105, 0x200, 0x5F0
TYPES = [0, 0xFF, *range(0x100, 0x107), 0x200, 0x201, 0x2FF, OURS, OURS + 1, 0x600, 0xFFFF]
FIELDS = [0, 1, 2, *range(0x0F, 0x19), *range(0x100, 0x107), 0x200, 0x203, 0xF000, 0xFFFF]
LENGTHS = [0, 1, 2, 8, 16, 32, 40, 1 << 16, 1 << 31, (1 << 32) - 1]
MOST = 256 << 10

Shape = Callable[[random.Random], bytes]


def _vlans(source: random.Random) -> bytes:
    count, first = source.choice([0, 1, 5, 4096, 4097, 100_000]), source.randrange(4096)
    return struct.pack(f"<{count}H", *((first + at) % 4096 for at in range(count)))


NET_SHAPES: Mapping[tuple[int, int], Shape] = {**SHAPES, (2, 0): _vlans}


class Part(NamedTuple):
    """One part, as it is sent; `length` is what its header says."""

    kind: int
    flags: int
    reserved: int
    selector: bytes
    length: int
    value: bytes

    @classmethod
    def of(cls, kind: int, selector: bytes, value: bytes, flags: int = 0) -> Part:
        return cls(kind, flags, 0, selector.ljust(8, b"\0"), len(value), value)

    def encode(self) -> bytes:
        head = struct.pack("<HBB8sI", self.kind, self.flags, self.reserved, self.selector, self.length)
        return head + self.value

    def exact(self, among: Sequence[Part]) -> bool:
        """Whether, once taken, it is to be told just as it was given: no other one says more, and it is not
        one that may be passed over.
        """
        told = self.kind in (COMMON_CFG, STATUS, VQ_CFG, VQ_NOTIFY) and not self.flags & 1
        return told and all(part.kind != OURS for part in among)


def encode(parts: Sequence[Part]) -> bytes:
    """The parts one behind the other."""
    return b"".join(part.encode() for part in parts)


def decode(stream: bytes) -> list[Part]:
    """The parts of a valid stream; what is left at its end is padding."""
    parts = []
    while len(stream) >= 16:
        kind, flags, reserved, selector, length = struct.unpack_from("<HBB8sI", stream)
        parts.append(Part(kind, flags, reserved, selector, length, stream[16 : 16 + length]))
        stream = stream[16 + length :]
    return parts


def mutated(source: random.Random, parts: list[Part], shapes: Mapping[tuple[int, int], Shape]) -> bytes:
    """A stream of the parts, changed here and there."""
    if source.random() < 0.3:
        parts = [part for part in parts if part.kind != OURS]
    if source.random() < 0.3:
        parts = [part for part in parts if source.random() < 0.3] or parts
    mutations = list(MUTATIONS) + (["command"] * 4 if shapes else [])
    for _ in range(source.choice([0, 0, 1, 1, 2, 4])):
        at = source.randrange(len(parts)) if parts else 0
        mutation = source.choice(mutations)
        if mutation == "command":
            kind = source.choice([*shapes, (6, 0), (255, 255)])
            data = shapes[kind](source) if kind in shapes else b"\1"
            parts.append(Part.of(NET, bytes(kind), data))
        elif parts:
            parts = MUTATIONS[mutation](source, parts, at)
    if source.random() < 0.1:
        source.shuffle(parts)
    stream = encode(parts)
    if source.random() < 0.05:
        many = [Part.of(0x300, struct.pack("<Q", at), b"", 1) for at in range(source.choice([100, 17000]))]
        stream += encode(many)
    if source.random() < 0.1:
        at = source.randrange(len(stream) + 1)
        stream = stream[:at] + source.randbytes(source.randint(0, 3)) + stream[at + source.randint(0, 9) :]
    return (stream + bytes(source.choice([0, 0, 0, 1, 7, 8, 15, 16])))[: MOST + 64]


def _put(parts: list[Part], at: int, *others: Part) -> list[Part]:
    return [*parts[:at], *others, *parts[at + 1 :]]


def _drop(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    return _put(parts, at)


def _copy(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    return _put(parts, at, *[parts[at]] * source.randint(2, 5))


def _swap(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    rest = _put(parts, at)
    rest.insert(source.randint(0, len(rest)), parts[at])
    return rest


def _flip(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    value = bytearray(parts[at].value)
    if value:
        value[source.randrange(len(value))] = source.choice([0, 1, 2, 0x7F, 0x80, 0xFF])
    return _put(parts, at, parts[at]._replace(value=bytes(value)))


def _head(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    part = parts[at]
    selector = bytearray(part.selector)
    selector[source.randrange(8)] = source.choice([0, 1, 2, 20, 60, 0xFF])
    others = [
        part._replace(kind=source.choice(TYPES)),
        part._replace(flags=source.choice([0, 1, 2, 0x80, 0xFF])),
        part._replace(reserved=source.choice([1, 0xFF])),
        part._replace(selector=bytes(selector)),
        part._replace(length=source.choice(LENGTHS)),
    ]
    return _put(parts, at, source.choice(others))


def _length(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    value = parts[at].value
    value = value[: source.randrange(len(value) + 1)] + bytes(source.choice([0, 1, 8, 4096]))
    return _put(parts, at, parts[at]._replace(value=value, length=len(value)))


def _queue(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    """A queue somewhere else, or further on; its position perhaps in memory only."""
    selector = struct.pack("<H", source.choice([0, 0, 0, 1, 2]))
    size = source.choice([1, 2, 8, 16, 16, 16, 256, *WORDS16])
    vector, enable = source.choice([0, 1, 2, 3, 0xFFFF]), source.choice([0, 1, 1, 1, 2])
    place = [source.choice(ADDRESSES) for _ in range(3)]
    config = Part.of(VQ_CFG, selector, struct.pack("<4H3Q", size, vector, enable, 0, *place))
    kept = [part for part in parts if (part.kind, part.selector) != (VQ_CFG, config.selector)]
    if source.random() < 0.5:
        kept = [part for part in kept if part.kind != OURS]
    return [*kept, config]


def _ours(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    """A field of the context: a value of any kind, or a position of a queue."""
    kind, queue = source.choice(FIELDS), source.choice([0, 0, 0, 1, 2, 0xFFFF])
    value = source.randbytes(source.choice([0, 1, 8, 8, 16, 24, 40, 48]))
    if source.random() < 0.5:
        kind = source.choice([0x15, 0x16])
        used = source.choice(WORDS16)
        value = struct.pack(
            "<4H", queue, used + source.choice([0, 0, 1, 16]) & 0xFFFF, used, source.randrange(3)
        )
    return [*parts, Part.of(OURS, struct.pack("<HH", kind, queue), value, 1)]


def _features(source: random.Random, parts: list[Part], at: int) -> list[Part]:
    bits = 1 << 32 | source.choice([0, 1 << 34, 1 << 35, 1 << 29, source.getrandbits(64)])
    kept = [part for part in parts if part.kind != 0x101]
    return [*kept, Part.of(0x101, b"", bits.to_bytes(16, "little"))]


MUTATIONS: Mapping[str, Callable[[random.Random, list[Part], int], list[Part]]] = {
    "drop": _drop,
    "copy": _copy,
    "swap": _swap,
    "flip": _flip,
    "head": _head,
    "length": _length,
    "queue": _queue,
    "ours": _ours,
    "features": _features,
}
