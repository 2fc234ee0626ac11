"""Stand-ins for what surrounds the admin queue: guest memory, a function to migrate, an owner, a driver.

The driver packs bytes by hand with numbers from docs/wire.md, never with the layouts under test.
"""

from __future__ import annotations

import itertools
import struct
from collections.abc import Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass, field

import numpy as np

from pymodel.admin.queue import AdminQueue
from pymodel.errors import InvalidField, MemoryFault
from pymodel.memory import Buffer, Bytes, GuestMemory, Segments
from pymodel.migration.legacy_access import LegacyAccess
from pymodel.migration.member import Member
from pymodel.migration.parts import Part
from pymodel.migration.state import DeviceField, FunctionState, Mark, QueueState

EXTENT, CHANGE, TABLE, MAC = 0x200, 0x201, 0x100, 0x101
START, END, DISCARD = 0, 1, 2


class FakeMemory(GuestMemory):
    """Guest memory of `size` bytes at address 0, cut into regions of `region` bytes; the rest faults."""

    def __init__(self, size: int = 1 << 20, region: int = 1 << 20) -> None:
        self.data: Bytes = np.zeros(size, np.uint8)
        self.region = region

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        if address + length > len(self.data):
            raise MemoryFault(f"{address:#x}+{length:#x}")
        views = []
        while length:
            count = min(length, self.region - address % self.region)
            part = self.data[address : address + count]
            part.flags.writeable = write
            views.append(part)
            address, length = address + count, length - count
        return views

    def is_mapped(self, address: int, length: int) -> bool:
        return length > 0 and address < len(self.data)

    def load_u16(self, address: int) -> int:
        return int(self.data[address]) | int(self.data[address + 1]) << 8

    def store_u16(self, address: int, value: int) -> None:
        self.data[address], self.data[address + 1] = value & 0xFF, value >> 8

    def fence(self) -> None:
        pass


def segments(data: bytes, cuts: Sequence[int] = ()) -> Segments:
    """`data` as a scatter-gather list cut at `cuts`, each segment somewhere else in memory."""
    edges = [0, *sorted(cuts), len(data)]
    memory = FakeMemory(len(data) + 16 * len(edges))
    pieces, at = [], 0
    for first, end in itertools.pairwise(edges):
        memory.data[at : at + end - first] = np.frombuffer(data[first:end], np.uint8)
        pieces.append((at, end - first))
        at += end - first + 16
    return Segments(memory, pieces)


def part(kind: int, value: bytes = b"", reserved: int = 0) -> bytes:
    """One field of a context."""
    return struct.pack("<IIQ", kind, reserved, len(value)) + value


def extent(offset: int, data: bytes, kind: int = EXTENT) -> bytes:
    return part(kind, struct.pack("<Q", offset) + data)


def context(*parts: bytes) -> bytes:
    return part(START) + b"".join(parts) + part(END)


def isr(value: int) -> bytes:
    return part(0x17, bytes([value]) + bytes(7))


def split(stream: bytes) -> list[tuple[int, bytes]]:
    """The fields of a stream, as (type, value)."""
    found = []
    while stream:
        kind, reserved, length = struct.unpack_from("<IIQ", stream)
        assert reserved == 0
        assert len(stream) >= 16 + length
        found.append((kind, stream[16 : 16 + length]))
        stream = stream[16 + length :]
    return found


def present_state() -> FunctionState:
    return FunctionState(
        virtio_id=2,
        device_features=0x1_0000_0000_0000_0001_0000_0040,
        driver_features=0x1_0000_0000,
        device_feature_select=1,
        driver_feature_select=2,
        config_msix_vector=3,
        num_queues=2,
        queue_select=1,
        device_status=15,
        config_generation=7,
        device_config=bytes(range(24)),
        queues=[
            QueueState(0, 128, 1, 1, 0, 0, 0, 0x1000, 0x2000, 0x3000, 41, 40, interrupt_owed=True),
            QueueState(1, 64),
        ],
        isr=1,
        config_changed=True,
    )


@dataclass
class FakeFunction:
    """A function with a disk and two small tables. What happened to it is counted."""

    state: FunctionState = field(default_factory=present_state)
    disk: Bytes = field(default_factory=lambda: np.zeros(4096, np.uint8))
    table: bytes = b"table"
    mac: bytes = b"\x02\0\0\0\0\x01"
    in_transition: bool = False
    legacy: LegacyAccess | None = None
    outstanding: int = 0
    quiet: bool | Exception = True
    restored: int = 0
    captured: int = 0
    seen: list[tuple[int, bool]] = field(default_factory=list)
    expected: list[bool] = field(default_factory=list)
    member: Member | None = None

    def expect_quiesce(self, *, soon: bool) -> None:
        self.expected.append(soon)

    def quiesce(self) -> bool:
        if isinstance(self.quiet, Exception):
            raise self.quiet
        return self.quiet

    def mark(self) -> Mark:
        return Mark()

    def capture(self, since: Mark | None = None, *, own_fields: bool = True) -> FunctionState:
        self.captured += 1
        state = deepcopy(self.state)
        if not own_fields:
            return state
        state.device = [
            DeviceField(EXTENT, [np.zeros(8, np.uint8), self.disk.copy()]),
            DeviceField(MAC, [np.frombuffer(self.mac, np.uint8)]),
            DeviceField(TABLE, [np.frombuffer(self.table, np.uint8)]),
        ]
        return state

    def check(self, state: FunctionState) -> None:
        if len(state.device_config) != 24 or state.device_status & 0x80:
            raise InvalidField("status")
        for found in state.device:
            if found.type in (EXTENT, CHANGE):
                raw = b"".join(buffer.tobytes() for buffer in found.value)
                offset = struct.unpack_from("<Q", raw)[0]
                if offset + len(raw) - 8 > len(self.disk):
                    raise InvalidField("beyond the disk")

    def restore(self, state: FunctionState) -> None:
        self.restored += 1
        if any(found.type == EXTENT for found in state.device):
            self.disk[:] = 0
        for found in state.device:
            raw = b"".join(buffer.tobytes() for buffer in found.value)
            if found.type == TABLE:
                self.table = raw
            elif found.type == MAC:
                self.mac = raw
            else:
                offset = struct.unpack_from("<Q", raw)[0]
                self.disk[offset : offset + len(raw) - 8] = np.frombuffer(raw[8:], np.uint8)
        state.device = []
        self.state = state

    def device_fields(self) -> dict[int, int]:
        return {EXTENT: 0xFFFFFFFF, CHANGE: 0xFFFFFFFF, TABLE: 0xFFFFFFFF, MAC: 6}

    @property
    def parts_of_type(self) -> FakeFunction:
        return self

    part_types: tuple[int, ...] = ()

    def encode_parts(self, state: FunctionState) -> list[Part]:
        return []

    def decode_parts(self, found: list[Part], state: FunctionState) -> None:
        pass

    @property
    def content_size(self) -> int:
        return len(self.disk)

    def mode_changed(self) -> None:
        assert self.member is not None
        self.seen.append((self.member.mode, self.member.active))

    def all(self) -> tuple[object, ...]:
        """Everything that a context can change."""
        return deepcopy(self.state), self.disk.tobytes(), self.table, self.mac


def make_member(function: FakeFunction, name: str = "vf1") -> Member:
    function.member = Member(function, nullcontext(), name)
    return function.member


@dataclass
class FakeOwner:
    """A PF with an admin queue; `wakes` counts how often its thread was woken."""

    functions: dict[int, FakeFunction] = field(default_factory=lambda: {1: FakeFunction(), 2: FakeFunction()})
    sriov: bool = True
    vf_enabled: bool = True
    wakes: int = 0
    members: dict[int, Member] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.members = {
            number: make_member(function, f"vf{number}") for number, function in self.functions.items()
        }

    def wake(self) -> None:
        self.wakes += 1


@dataclass
class Answer:
    """What the driver got back; `used` is None while the command is held."""

    memory: FakeMemory
    writable_at: int
    used: int | None = None

    @property
    def raw(self) -> bytes:
        assert self.used is not None
        return self.memory.data[self.writable_at : self.writable_at + self.used].tobytes()

    @property
    def status(self) -> tuple[int, int]:
        status, qualifier, reserved = struct.unpack("<HHI", self.raw[:8])
        assert reserved == 0
        return status, qualifier

    @property
    def result(self) -> bytes:
        return self.raw[8:]

    @property
    def poisoned(self) -> bool:
        """Whether all behind the used bytes is untouched."""
        return bool(np.all(self.memory.data[self.writable_at + (self.used or 0) :] == 0xA5))


OK = (0, 0)
INVALID_COMMAND = (22, 1)
INVALID_OPCODE = (22, 2)
INVALID_FIELD = (22, 3)
INVALID_GROUP = (22, 4)
INVALID_MEMBER = (22, 5)

ALL_OF_OURS = 0x3FF << 0x40 | 3


class Driver:
    """The owner's driver: puts commands on an admin queue and looks at the answer."""

    def __init__(
        self, owner: FakeOwner | None = None, *, strict: bool = False, base: int | None = 0x40
    ) -> None:
        self.owner = owner or FakeOwner()
        self.queue = AdminQueue(self.owner, self.owner.wake, context_opcodes=base, strict=strict)

    def open(self) -> Driver:
        """Allow all of the SR-IOV group's commands."""
        assert self.raw(1, 1, 0, ALL_OF_OURS.to_bytes(16, "little")).status == OK
        return self

    def raw(
        self, opcode: int, group: int, member: int, data: bytes = b"", room: int = 4096, queue: int = 2
    ) -> Answer:
        return self.send(struct.pack("<HH12xQ", opcode, group, member) + data, room, queue)

    def send(self, readable: bytes, room: int = 4096, queue: int = 2, region: int = 1 << 30) -> Answer:
        at = len(readable)
        memory = FakeMemory(at + room + 64, region)
        memory.data[:at] = np.frombuffer(readable, np.uint8)
        memory.data[at:] = 0xA5
        answer = Answer(memory, at)

        def complete(used: int) -> None:
            assert answer.used is None, "completed twice"
            answer.used = used

        source = Segments(memory, [(0, at // 3), (at // 3, at - at // 3)])
        target = Segments(memory, [(at, room // 3), (at + room // 3, room - room // 3)])
        assert self.queue.accepts(queue)
        self.queue.take(Buffer(queue, source, target, complete))
        return answer

    def adm(self, op: int, vf: int = 1, data: bytes = b"", room: int = 4096, queue: int = 2) -> Answer:
        """One of the context commands, counted from the base."""
        return self.raw(0x40 + op, 1, vf, data, room, queue)

    def mode(self, value: int, vf: int = 1) -> tuple[int, int]:
        return self.adm(1, vf, bytes([value])).status

    def mode_get(self, vf: int = 1) -> int:
        return self.adm(0, vf).result[0]

    def read_all(self, vf: int = 1, room: int = 1 << 17) -> bytes:
        """Read to the end."""
        stream = b""
        while True:
            answer = self.adm(3, vf, room=room)
            assert answer.status == OK
            left, size = struct.unpack_from("<II", answer.result)
            assert answer.used == 16 + size
            stream += answer.result[8:]
            if not left:
                return stream
