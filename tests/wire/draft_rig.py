"""What the tests of the draft's requirements share: a PF under an owner, a VF under a disk driver, literals.

Numbers are those of docs/wire.md, repeated here on purpose. Nothing obeys a rule unless the test does.
"""

from __future__ import annotations

import contextlib
import select
import struct
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import pytest

from tests.server_process import ServerProcess
from tests.wire.running import running
from vfu_client.drivers.block import FEATURES, BlockDriver, BlockRequest
from vfu_client.owner.admin import PendingCommand
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import Buffer, Bytes, GuestMemory
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

MODE_GET, MODE_SET, SIZE_GET, CTX_READ, CTX_WRITE, FIELDS_QUERY, CTX_DISCARD = range(0x40, 0x47)
ACTIVE, STOP, FREEZE = 0, 1, 2
MODES = {"active": ACTIVE, "stop": STOP, "freeze": FREEZE}
EACH = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
SILENT = pytest.mark.parametrize("mode", [STOP, FREEZE], ids=["stop", "freeze"])

START, END, FORGET = 0x0, 0x1, 0x2
DRIVER_FEATURES, COMMON_CFG, DEVICE_CFG, VQ_CFG = 0x11, 0x12, 0x13, 0x14
VQ_SPLIT_STATE, VQ_PACKED_STATE = 0x15, 0x16
ISR_STATUS, PENDING, EXTENT = 0x17, 0x18, 0x200
RING_PACKED = 34

OK = (0, 0)
WRONG_STATE = (22, 1)  # EINVAL, Q_INVALID_COMMAND
WRONG_CONTENT = (22, 3)  # EINVAL, Q_INVALID_FIELD

T_IN, T_OUT = 0, 1
# A sector.
PATTERN = bytes(range(256)) * 2
NEEDS_RESET = 0x40
# Offsets in the common configuration structure.
QUEUE_SELECT, QUEUE_DESC = 0x16, 0x20

SMALL = ("--vfs", "2", "--queues", "2", "--disk", "ram:4k")
# How long something that must not come is waited for.
QUIET = 0.1
TIMEOUT = 20.0
MEMORY_SIZE = 1 << 20

Field = tuple[int, bytes]


def field(kind: int, value: bytes = b"") -> bytes:
    """One field of a context."""
    return struct.pack("<IIQ", kind, 0, len(value)) + value


def context(*fields: bytes) -> bytes:
    """START_MARKER, the fields, END_MARKER."""
    return field(START) + b"".join(fields) + field(END)


def parse(stream: bytes) -> list[Field]:
    """The fields of a stream; asserts that it ends where a field ends."""
    found: list[Field] = []
    at = 0
    while at < len(stream):
        kind, reserved, length = struct.unpack_from("<IIQ", stream, at)
        assert reserved == 0
        assert at + 16 + length <= len(stream), f"field {kind:#x} at {at} is cut"
        found.append((kind, stream[at + 16 : at + 16 + length]))
        at += 16 + length
    return found


def build(fields: list[Field]) -> bytes:
    """A stream of fields; the other way round than `parse`."""
    return b"".join(field(kind, value) for kind, value in fields)


def value(stream: bytes, kind: int, number: int = 0) -> bytes:
    """The value of the nth field of a type."""
    return [content for found, content in parse(stream) if found == kind][number]


def patched(stream: bytes, kind: int, at: int, data: bytes, number: int = 0) -> bytes:
    """The stream with some bytes of the nth field of a type replaced."""
    fields = parse(stream)
    place = [index for index, (found, _) in enumerate(fields) if found == kind][number]
    old = fields[place][1]
    fields[place] = (kind, old[:at] + data + old[at + len(data) :])
    return build(fields)


def queue_select(stream: bytes) -> int:
    """queue_select as a context says it: the field that most tests change, because nothing acts on it."""
    return int.from_bytes(value(stream, COMMON_CFG)[12:14], "little")


def whole(stream: bytes) -> bool:
    """Whether the stream is one context: START_MARKER first, END_MARKER last, neither of them elsewhere."""
    kinds = [kind for kind, _ in parse(stream)]
    return kinds[0] == START and kinds[-1] == END and kinds.count(START) == kinds.count(END) == 1


@dataclass(frozen=True)
class Answer:
    """What came back for one admin command."""

    code: tuple[int, int]
    used: int
    result: bytes


class Rig:
    """A server's PF and one of its VFs in the hands of a test.

    The VF's rings are split ones unless they shall be `packed`; `vq_state` is the field that says where they
    are. Leaving it makes the VF Active and resets it, so that the next test finds it new, but for the disk.
    """

    def __init__(
        self, server: ServerProcess, vf: int = 1, *, packed: bool = False, memory: int = MEMORY_SIZE
    ) -> None:
        self.server = server
        self.vf = vf
        self.vq_state = VQ_PACKED_STATE if packed else VQ_SPLIT_STATE
        self.packed = packed
        # Little by default, as it is compared byte by byte.
        self._memory = GuestMemory()
        self._memory.add_region(memory)
        self.owner = OwnerDriver.open(server.socket("pf"), obey=False, timeout=TIMEOUT)
        try:
            self._drive(server.socket(f"vf{vf}"))
        except BaseException:
            self.owner.close()
            raise
        assert self.mode == ACTIVE

    def _drive(self, socket: Path) -> None:
        """Have a driver of the device's type."""
        features = KNOWN_FEATURES | FEATURES
        if not self.packed:
            features -= {RING_PACKED}
        self.disk = BlockDriver.open(socket, memory=self._memory, features=features, timeout=TIMEOUT)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if not self.device.connection.closed:
                # Whatever a test left: rings, a reset under way, a partial context.
                self.device.connection.device_reset()
                self.device.close()
            self.adm(CTX_DISCARD)
            self.adm(MODE_SET, bytes([ACTIVE, 0, 0, 0, 0, 0, 0, 0]))
        finally:
            self.owner.close()
            self._memory.close()

    # The VF.

    @property
    def device(self) -> VirtioPci:
        """The VF."""
        return self.disk.device

    @property
    def queue(self) -> DriverQueue:
        """Its first queue."""
        return self.disk.queues[0]

    def placed(self, data: bytes) -> Buffer:
        """A copy of `data` in the VF's memory."""
        buffer = self.device.memory.allocate(len(data))
        buffer.view[:] = list(data)
        return buffer

    def poisoned(self, size: int = 512) -> Buffer:
        """`size` bytes of 0xee in the VF's memory."""
        return self.placed(b"\xee" * size)

    def read_request(self, sector: int = 0, *, kick: bool = True) -> BlockRequest:
        """A read on its way, into poisoned memory."""
        return self.disk.submit(T_IN, sector, self.poisoned(), kick=kick)

    def finish(self, request: BlockRequest) -> bytes:
        """Wait for a request; what it read."""
        self.disk.finish(request)
        assert request.data is not None
        return request.data.view.tobytes()

    def memory(self) -> Bytes:
        """A copy of all memory that the VF can reach."""
        (region,) = self._memory.regions
        return region.view.copy()

    def signalled(self, seconds: float = QUIET) -> list[int]:
        """The vectors that were signalled within `seconds`, all drained."""
        assert self.device.msix is not None
        interrupts = self.device.msix.interrupts
        poll = select.poll()
        for interrupt in interrupts:
            poll.register(interrupt.fileno(), select.POLLIN)
        poll.poll(seconds * 1000)
        return [vector for vector, interrupt in enumerate(interrupts) if interrupt.drain()]

    def lay_out(self) -> None:
        """Have the pattern on the disk's first sectors, there and back, queue_select 0, and no eventfd
        signalled.
        """
        self.disk.write(0, PATTERN)
        self.disk.write(1, PATTERN[::-1])
        self.device.common.write("queue_select", 0)
        self.drain()

    def drain(self) -> None:
        """Take what was signalled so far."""
        self.signalled(0)

    @contextlib.contextmanager
    def silence(self, seconds: float = QUIET) -> Iterator[None]:
        """Asserts that in the block, and for `seconds` after it, the VF wrote nothing and signalled nothing.

        The block must not write to guest memory itself.
        """
        self.drain()
        before = self.memory()
        yield
        assert self.signalled(seconds) == []
        after = self.memory()
        changed = (before != after).nonzero()[0]
        assert changed.size == 0, f"{changed.size} bytes changed, the first at {changed[0]:#x}"

    def break_device(self, queue: int = 1) -> None:
        """Make the device need a reset by registers alone: a queue whose ring is not aligned.

        A configuration change is owed from then on. Works in Active and Stop; needs `queue` unused.
        """
        common = self.device.common
        common.write("queue_select", queue)
        common.write("queue_desc", 0x1001)
        common.write("queue_enable", 1)
        assert self.device.status & NEEDS_RESET

    # The owner.

    def send(
        self, opcode: int, data: bytes = b"", room: int | list[Buffer] = 0, *, vf: int | None = None
    ) -> PendingCommand:
        """Put a command on the admin queue; `data` goes unpadded."""
        result, into = (room, []) if isinstance(room, int) else (0, room)
        member = self.vf if vf is None else vf
        return self.owner.admin.submit(
            opcode, group=1, member=member, data=data, result=result, into=into, pad=False
        )

    def done(self, pending: PendingCommand) -> bool:
        """Whether a command has been answered."""
        return self.owner.admin.done(pending)

    def answer(self, pending: PendingCommand) -> Answer:
        """Wait for the answer."""
        reply = self.owner.admin.wait(pending, timeout=TIMEOUT)
        return Answer((reply.status, reply.qualifier), reply.used_length, reply.result)

    def adm(self, opcode: int, data: bytes = b"", room: int = 0, *, vf: int | None = None) -> Answer:
        """One command, answered."""
        return self.answer(self.send(opcode, data, room, vf=vf))

    @property
    def mode(self) -> int:
        """MODE_GET."""
        answer = self.adm(MODE_GET, room=8)
        assert (answer.code, answer.used) == (OK, 16)
        assert answer.result[1:] == bytes(7)
        return answer.result[0]

    def set_mode(self, mode: int) -> tuple[int, int]:
        """MODE_SET; how it was answered."""
        return self.adm(MODE_SET, bytes([mode, 0, 0, 0, 0, 0, 0, 0])).code

    def go(self, mode: int) -> None:
        """MODE_SET that must succeed."""
        assert self.set_mode(mode) == OK

    def size(self, freeze_mode: int = 0) -> int:
        """SIZE_GET."""
        answer = self.adm(SIZE_GET, bytes([freeze_mode, 0, 0, 0, 0, 0, 0, 0]), 8)
        assert (answer.code, answer.used) == (OK, 16)
        return int.from_bytes(answer.result, "little")

    def read(self, room: int) -> tuple[int, bytes]:
        """One READ with room for `room` bytes of context: (remaining_ctx_size, data).

        Asserts what the result says of itself: size, used length, and not a byte behind them.
        """
        memory = self.owner.device.memory
        buffer = memory.allocate(8 + room)
        buffer.view[:] = 0xEE
        try:
            answer = self.answer(self.send(CTX_READ, room=[buffer]))
            assert answer.code == OK
            remaining, size = struct.unpack("<II", buffer.view[:8].tobytes())
            assert answer.used == 16 + size
            assert size == room or remaining == 0
            assert (buffer.view[8 + size :] == 0xEE).all()
            return remaining, buffer.view[8 : 8 + size].tobytes()
        finally:
            memory.free(buffer)

    def read_rest(self, room: int = 1 << 16) -> bytes:
        """What is left to read, in READs of `room` bytes."""
        pieces: list[bytes] = []
        remaining = 1
        while remaining:
            remaining, data = self.read(room)
            pieces.append(data)
            assert data or not remaining
        return b"".join(pieces)

    def context(self) -> bytes:
        """A context from its start on, whatever was read before."""
        assert self.adm(CTX_DISCARD).code == OK
        stream = self.read_rest()
        assert whole(stream)
        return stream

    def write(self, data: bytes) -> tuple[int, int]:
        """One WRITE; how it was answered."""
        return self.adm(CTX_WRITE, data).code


def until_done(rig: Rig, pending: PendingCommand, under_way: Callable[[], bool]) -> Answer:
    """Wait for a command that must not be answered while `under_way`; asserts that, and that it waited."""
    looks = 0
    deadline = time.monotonic() + TIMEOUT
    while True:
        # In this order: what is answered and then still under way was answered too early.
        answered, busy = rig.done(pending), under_way()
        assert not (answered and busy), "answered before the operation ended"
        if answered:
            break
        looks += busy
        assert time.monotonic() < deadline, "not answered"
    assert looks > 0, "the operation was over before the command could wait for it"
    return rig.answer(pending)


@contextlib.contextmanager
def small_server(*options: str) -> Iterator[ServerProcess]:
    """A server with two VFs of two queues and contexts of a few kilobytes."""
    with running() as start:
        yield start(*SMALL, *options)


def outstanding(server: ServerProcess, function: str) -> int:
    """Buffers that a function has fetched and not completed."""
    (found,) = server.ask("query-functions", function=function)
    return sum(queue["outstanding"] for queue in found["queues"])
