"""Target `context`: what CTX_WRITE is given, and what a VF does that runs on it.

A WRITE that failed changed nothing; whatever was taken, the VF lives when it is Active, works after a
reset, and its own context written back reads back byte for byte.
"""

from __future__ import annotations

import random
import struct
from itertools import pairwise

from pymodel.spec import pci
from tests.fuzz.campaign import Step
from tests.fuzz.hands import AVAIL, DATA, DESC, LOOSE, READ_ONLY, USED, Hands
from tests.fuzz.owner import ACTIVE, DISCARD, FREEZE, READABLE, STOP, WRITE, Owner
from tests.fuzz.world import DISKS, Finding, World

TYPES = [0, 1, 2, *range(0x0F, 0x19), 0x100, 0x101, *range(0x200, 0x205), 0xF000, 0xFFFF, 0xFFFFFFFF]
FEATURES = 0x11
QUEUE = 0x14
SPLIT = 0x15
PACKED = 0x16
# VERSION_1, and some that change what a ring is.
DRIVERS = [1 << 32, 1 << 32 | 1 << 34, 1 << 32 | 1 << 34 | 1 << 29, 1 << 32 | 1 << 34 | 1 << 35 | 1 << 28]
EXTENTS = (0x200, 0x201)
BASE = 0x202
CONTENT = 0x203
# What contents are called: VF 1's, VF 2's, and one that nobody has. Fixed, so that a seed means one run.
OWN, FOREIGN, UNKNOWN = b"the VF's content", b"another's disk..", bytes(16)
WORDS16 = [0, 1, 2, 3, 15, 16, 17, 255, 256, 0x7FFF, 0x8000, 0xFFFF]
ADDRESSES = [0, DESC, AVAIL, USED, DATA, LOOSE, READ_ONLY, (1 << 64) - 16, (1 << 63), DESC + 1, 0xDEAD0000]
LENGTHS = [0, 1, 8, 15, 16, 17, 24, 40, 1 << 24, (1 << 24) + 1, 1 << 32, 1 << 63, (1 << 64) - 1]
# Room for one WRITE in guest memory.
MOST = 4 << 20

Part = tuple[int, int, int, bytes]  # type, reserved, announced length, value


def encode(parts: list[Part]) -> bytes:
    """A stream of fields."""
    return b"".join(
        struct.pack("<IIQ", kind, reserved, length) + value for kind, reserved, length, value in parts
    )


def decode(stream: bytes) -> list[Part]:
    """The fields of a valid stream."""
    parts = []
    while stream:
        kind, reserved, length = struct.unpack_from("<IIQ", stream)
        parts.append((kind, reserved, length, stream[16 : 16 + length]))
        stream = stream[16 + length :]
    return parts


def part(kind: int, value: bytes = b"") -> Part:
    return kind, 0, len(value), value


def named(parts: list[Part], name: bytes) -> list[Part]:
    """The context with another name for its content."""
    return [part(CONTENT, name) if found[0] == CONTENT else found for found in parts]


def queue_moved(source: random.Random, parts: list[Part]) -> list[Part]:
    """A queue somewhere else, or further on; perhaps of the other format."""
    size = source.choice([1, 2, 8, 16, 16, 16, 256, *WORDS16])
    place = [source.choice(ADDRESSES) if source.random() < 0.5 else own for own in (DESC, AVAIL, USED)]
    vector, enable = source.choice([0, 1, 2, 3, 0xFFFF]), source.choice([0, 1, 1, 1, 2])
    config = struct.pack("<8H3Q", source.choice([0, 0, 0, 1]), size, vector, enable, 0, 0, 0, 0, *place)
    used = source.choice(WORDS16)
    avail = (used + source.choice([0, 0, 1, 16, 17, 0x8000])) & 0xFFFF
    ring = struct.pack("<4H", 0, avail, used, source.choice([0, 1, 2]))
    added = [part(QUEUE, config), part(source.choice([SPLIT, SPLIT, PACKED]), ring)]
    if source.random() < 0.3:
        place = [source.choice([0, 1, 15, 16]) | source.choice([0, 0x8000]) for _ in range(2)]
        if source.random() < 0.5:
            place[1] = place[0]
        added[1] = part(PACKED, struct.pack("<4H", 0, *place, source.choice([0, 1])))
        added.append(part(FEATURES, source.choice(DRIVERS).to_bytes(16, "little")))
    return [*parts[:-1], *added, *parts[-1:]]


class ContextTarget:
    """VF 1 in Freeze, with a client whose driver is in the middle of its work."""

    def __init__(self, world: World) -> None:
        self.owner = Owner(world)
        self.vf = Hands(world, "vf1", 0, 16)
        self.vf.poke(DATA, struct.pack("<IIQ", 1, 0, 5) + bytes(range(256)) * 2)
        self.vf.chain([(DATA, 16 + 512)], [(DATA + 4096, 1)], indirect=False)
        if self.vf.answered() is None:
            raise Finding("VF 1 does not work")
        self.owner.set_mode(1, FREEZE)
        self._good = encode(named(decode(self.owner.context(1)), OWN))
        # A client may have read, so the content of the disk is small enough to be sent often.
        self._template = [part for part in decode(self._good) if part[0] not in (*EXTENTS, CONTENT)]
        self.owner.set_mode(2, FREEZE)
        self._foreign = named(decode(self.owner.context(2)), FOREIGN)
        if not self.owner.write(1, self._good).ok:
            raise Finding("the VF's own context is refused")
        self._known: bytes | None = self._good
        self._mode = FREEZE

    def close(self) -> None:
        self.owner.hands.close()
        self.vf.close()

    # --- cases -------------------------------------------------------------------------------------------

    def generate(self, source: random.Random) -> list[Step]:
        steps: list[Step] = []
        for _ in range(source.randint(1, 6)):
            kind = source.choice(["write"] * 8 + ["tiny", "huge", "active", "read", "flr", "mode"])
            steps += getattr(self, f"_make_{kind}")(source)
        return steps

    def _make_write(self, source: random.Random) -> list[Step]:
        """One context or several, mutated and cut."""
        stream = b""
        for _ in range(source.choice([1, 1, 1, 2, 5])):
            stream += encode(self._mutated(source))
        if source.random() < 0.15:
            at = source.randrange(len(stream) or 1)
            stream = (
                stream[:at] + source.randbytes(source.randint(0, 3)) + stream[at + source.randint(0, 9) :]
            )
        cuts = sorted(source.randrange(len(stream) + 1) for _ in range(source.choice([0, 0, 0, 1, 2, 8])))
        edges = [0, *cuts, len(stream)]
        return [
            (
                "write",
                [
                    stream[low:high].hex(),
                    [source.randrange(high - low + 1) for _ in range(source.choice([0, 2]))],
                ],
            )
            for low, high in pairwise(edges)
        ]

    def _mutated(self, source: random.Random) -> list[Part]:
        parts = list(self._template if source.random() < 0.9 else self._foreign)
        if source.random() < 0.4:
            for _ in range(source.randint(1, 4)):
                end = DISKS["vf1"]
                offset = source.choice([0, 1, 512, 4096, end - 4, end, end + 1, (1 << 64) - 1, 1 << 63])
                content = source.randbytes(source.choice([0, 1, 4, 512, 5000]))
                parts.insert(-1, part(source.choice(EXTENTS), struct.pack("<Q", offset) + content))
        if source.random() < 0.3:
            for kind in source.choice([[BASE], [CONTENT], [BASE, CONTENT], [CONTENT, BASE]]):
                parts.insert(-1, part(kind, source.choice([OWN, OWN, OWN, FOREIGN, UNKNOWN])))
        for _ in range(source.choice([0, 0, 1, 1, 2, 4])):
            at = source.randrange(len(parts))
            mutation = source.choice(
                ["drop", "copy", "move", "flip", "type", "length", "reserved", "queue", "queue"]
            )
            parts = getattr(self, f"_{mutation}")(source, parts, at) or [part(0), part(1)]
        return parts

    @staticmethod
    def _drop(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        return parts[:at] + parts[at + 1 :]

    @staticmethod
    def _copy(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        return parts[:at] + [parts[at]] * source.randint(1, 5) + parts[at:]

    @staticmethod
    def _move(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        rest = parts[:at] + parts[at + 1 :]
        rest.insert(source.randint(0, len(rest)), parts[at])
        return rest

    @staticmethod
    def _flip(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        kind, reserved, length, value = parts[at]
        changed = bytearray(value)
        if changed:
            changed[source.randrange(min(len(changed), 64))] = source.choice([0, 1, 0x7F, 0x80, 0xFF])
        return [*parts[:at], (kind, reserved, length, bytes(changed)), *parts[at + 1 :]]

    @staticmethod
    def _type(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        return [*parts[:at], (source.choice(TYPES), *parts[at][1:]), *parts[at + 1 :]]

    @staticmethod
    def _length(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        kind, reserved, length, value = parts[at]
        if source.random() < 0.5:
            value = value[: source.randrange(len(value) + 1)] + source.randbytes(source.choice([0, 1, 8]))
            return [*parts[:at], (kind, reserved, len(value), value), *parts[at + 1 :]]
        # It may have been made the largest that there is before.
        announced = source.choice([*LENGTHS, (length + 1) % (1 << 64)])
        return [*parts[:at], (kind, reserved, announced, value), *parts[at + 1 :]]

    @staticmethod
    def _reserved(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        kind, _, length, value = parts[at]
        return [*parts[:at], (kind, source.choice([1, 0xFFFFFFFF]), length, value), *parts[at + 1 :]]

    @staticmethod
    def _queue(source: random.Random, parts: list[Part], at: int) -> list[Part]:
        return queue_moved(source, parts)

    def _make_tiny(self, source: random.Random) -> list[Step]:
        """Very many fields of next to nothing."""
        value = struct.pack("<Q", source.randrange(9000))
        kind = source.choice([part(2), part(0x17, bytes(8)), part(0x201, value), part(0x200, value + b"x")])
        count = source.choice([1, 1, 20, 20, 500, 500, 3000, 16000])
        return [("tiny", [encode([kind]).hex(), count, source.random() < 0.8])]

    def _make_huge(self, source: random.Random) -> list[Step]:
        """A command of more bytes than guest memory has: the same again and again."""
        return [("huge", [source.choice(TYPES), source.choice([1 << 20, 8 << 20]), source.randint(1, 61)])]

    def _make_active(self, source: random.Random) -> list[Step]:
        return [("active", [source.choice(WORDS16), source.random() < 0.3])]

    def _make_read(self, source: random.Random) -> list[Step]:
        return [("read", [source.choice([8, 16, 17, 40, 100, 4096])])]

    def _make_flr(self, source: random.Random) -> list[Step]:
        return [("flr", [])]

    def _make_mode(self, source: random.Random) -> list[Step]:
        return [("mode", [source.choice([STOP, FREEZE, FREEZE, 3])])]

    # --- steps -------------------------------------------------------------------------------------------

    def play(self, step: Step) -> None:
        name, arguments = step
        getattr(self, f"_do_{name}")(*arguments)

    def _judge(self, ok: bool) -> None:
        """After a WRITE: one that was taken may have changed anything, one that was not has not."""
        if ok:
            if self._mode != FREEZE:
                raise Finding(f"a WRITE was taken in mode {self._mode}")
            self._known = None
        elif self._known is not None and self._mode == FREEZE and self.owner.context(1) != self._known:
            raise Finding("a WRITE that failed changed the context")

    def _do_write(self, stream: str, cuts: list[int]) -> None:
        raw = struct.pack("<HH12xQ", WRITE, 1, 1) + bytes.fromhex(stream)
        if self._known is None and self._mode == FREEZE and not stream:
            self._known = self.owner.context(1)
        self._judge(self.owner.command(raw, read_cuts=[24, *(24 + at for at in cuts)]).ok)

    def _do_tiny(self, field: str, count: int, ended: bool) -> None:
        raw = bytes.fromhex(field)
        body = encode([part(0)]) + raw * min(count, MOST // len(raw)) + (encode([part(1)]) if ended else b"")
        self._judge(self.owner.write(1, body).ok)

    def _do_huge(self, kind: int, length: int, times: int) -> None:
        hands = self.owner.hands
        hands.poke(READABLE, struct.pack("<HH12xQ", WRITE, 1, 1) + encode([(kind, 0, length - 16, b"")]))
        start = READABLE + 0x1000
        hands.poke(start, encode([part(0)]))
        segments = [(READABLE, 24), (start, 16)] + [(READABLE + 24, length)] * times
        hands.chain(segments, [(start + 0x1000, 64)], indirect=False)
        if hands.answered() is None:
            raise Finding("a well-formed chain broke the PF")
        self._judge(hands.peek(start + 0x1000, 1) == b"\0")

    def _do_active(self, avail: int, loose: bool) -> None:
        """The VF runs on what it was given, its rings as they happen to be."""
        self.owner.set_mode(1, ACTIVE)
        self.vf.device.function.set_command(pci.COMMAND_MEMORY | pci.COMMAND_MASTER)
        self.vf.poke(AVAIL + 2, avail.to_bytes(2, "little"))
        self.vf.map_loose(not loose)
        self.vf.kick()
        self.vf.settle()
        self.owner.set_mode(1, STOP)
        self.owner.set_mode(1, FREEZE)
        self._mode = FREEZE
        self._known = None

    def _do_read(self, room: int) -> None:
        self.owner.member(0x43, 1, room=room)

    def _do_flr(self) -> None:
        self.vf.connection.device_reset()
        self._known = None

    def _do_mode(self, mode: int) -> None:
        if self.owner.member(0x41, 1, bytes([mode])).ok:
            self._mode = mode

    def finish(self) -> None:
        """After DISCARD the VF takes its own context and gives the same back; reset, it works."""
        self.owner.must(DISCARD, 1)
        self.owner.set_mode(1, FREEZE)
        self.vf.map_loose(True)
        if not self.owner.write(1, self._good).ok:
            raise Finding("the VF's own context is refused")
        for name, holds in ((OWN, True), (FOREIGN, False), (UNKNOWN, False)):
            if self.owner.write(1, encode([part(0), part(BASE, name), part(1)])).ok != holds:
                raise Finding(f"the VF holds {OWN!r}, and takes what builds on {name!r}: {not holds}")
        if self.owner.context(1) != self._good:
            raise Finding("the VF's own context came back changed")
        self._known, self._mode = self._good, FREEZE
