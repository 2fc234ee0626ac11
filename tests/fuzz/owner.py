"""Admin commands by bare hands, and what their answers must always be."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.fuzz.hands import DATA, Hands, Segment
from tests.fuzz.world import Finding, Reachable

READABLE = DATA
WRITABLE = DATA + (8 << 20)
READ_ROOM = (1 << 20) + 4096
POISON = 0xA5
BASE = 0x40
GET, SET, SIZE, READ, WRITE, FIELDS, DISCARD = range(BASE, BASE + 7)
ALL = 0x3FF << BASE | 0b11
ACTIVE, STOP, FREEZE = range(3)

# Statuses and qualifiers that virtio 1.4 has.
STATUSES = (0, 6, 11, 12, 16, 17, 22, 28)
QUALIFIERS = range(8)


@dataclass
class Answer:
    """What a command came to. `status` is None where there was no room for it."""

    status: tuple[int, int] | None
    result: bytes

    @property
    def ok(self) -> bool:
        return self.status == (0, 0)


def cut(address: int, length: int, cuts: Sequence[int]) -> list[Segment]:
    """A run of memory as segments; a cut that comes twice makes an empty one."""
    edges = [0, *sorted(min(at, length) for at in cuts), length]
    return [(address + low, high - low) for low, high in pairwise(edges)]


class Owner:
    """The PF's admin queue."""

    def __init__(self, world: Reachable, size: int = 64) -> None:
        self.hands = Hands(world, "pf", -1, size)
        self.open()

    def open(self) -> None:
        """Allow every command of the SR-IOV group."""
        if not self.command(struct.pack("<HH12xQ", 1, 1, 0) + ALL.to_bytes(16, "little")).ok:
            raise Finding("LIST_USE was refused")

    def restart(self) -> None:
        """Reset the PF and begin anew."""
        self.hands.bring_up()
        self.open()

    def command(
        self,
        readable: bytes,
        room: int = 4096,
        read_cuts: Sequence[int] = (),
        write_cuts: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> Answer:
        """Send bytes as a command. Raises `Finding` unless the answer is one."""
        hands = self.hands
        hands.poke(READABLE, readable)
        hands.poke(WRITABLE, bytes([POISON]) * (room + 64))
        sources = cut(READABLE, len(readable), read_cuts) if readable else []
        targets = cut(WRITABLE, room, write_cuts) if room else []
        if not sources and not targets:
            sources = [(READABLE, 0)]
        hands.chain(sources, targets, indirect=indirect)
        used = hands.answered()
        if used is None:
            raise Finding("a well-formed chain broke the PF")
        if used > room:
            raise Finding(f"used length {used} of {room}")
        if hands.peek(WRITABLE + used, room + 64 - used).strip(bytes([POISON])):
            raise Finding(f"bytes behind the {used} used ones were written")
        raw = hands.peek(WRITABLE, used)
        if used < 8:
            if used != room:
                raise Finding(f"a status of {used} bytes in {room}")
            return Answer(None, b"")
        status, qualifier, reserved = struct.unpack("<HHI", raw[:8])
        if status not in STATUSES or qualifier not in QUALIFIERS or reserved:
            raise Finding(f"status {status}, qualifier {qualifier}, reserved {reserved}")
        if (status == 0) != (qualifier == 0):
            raise Finding(f"status {status} with qualifier {qualifier}")
        return Answer((status, qualifier), raw[8:])

    def member(self, opcode: int, vf: int, data: bytes = b"", room: int = 4096) -> Answer:
        """A command about a VF."""
        return self.command(struct.pack("<HH12xQ", opcode, 1, vf) + data, room)

    def must(self, opcode: int, vf: int, data: bytes = b"", room: int = 4096) -> bytes:
        """The result of a command that has to succeed."""
        answer = self.member(opcode, vf, data, room)
        if not answer.ok:
            raise Finding(f"command {opcode:#x} of VF {vf}: {answer.status}")
        return answer.result

    def mode(self, vf: int) -> int:
        """The mode of a VF."""
        return self.must(GET, vf)[0]

    def set_mode(self, vf: int, mode: int) -> None:
        """Change the mode of a VF; a context that was written in part is dropped."""
        self.must(DISCARD, vf)
        self.must(SET, vf, bytes([mode]))

    def context(self, vf: int) -> bytes:
        """The whole context of a VF; what was written in part is dropped."""
        self.must(DISCARD, vf)
        size = int.from_bytes(self.must(SIZE, vf), "little")
        stream = b""
        while True:
            result = self.must(READ, vf, room=READ_ROOM)
            left, count = struct.unpack_from("<II", result)
            if len(result) != 8 + count:
                raise Finding(f"READ says {count} bytes, {len(result) - 8} came")
            stream += result[8:]
            if not left:
                if len(stream) != size:
                    raise Finding(f"SIZE_GET said {size}, {len(stream)} bytes came")
                return stream

    def write(self, vf: int, stream: bytes) -> Answer:
        """Write a context in one command."""
        return self.member(WRITE, vf, stream)
