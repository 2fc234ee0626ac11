"""The admin virtqueue from the driver's side. virtio 1.4, "Group administration commands"."""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import admin
from vfu_client.vfio.connection import DEFAULT_TIMEOUT
from vfu_client.vfio.memory import Buffer, GuestMemory
from vfu_client.virtio.driver_queue import DriverQueue, Segment
from vfu_client.virtio.function import VirtioPci

# EAGAIN is worth a new try (P-DRV-11): this many, with this pause between them.
RETRIES = 5
RETRY_PAUSE = 0.01

# admin.COMMAND and admin.RESULT as far as they are not reserved: a command that is small spends more time
# with numpy's structures than with anything else.
_COMMAND = struct.Struct("<HH12xQ")
_RESULT = struct.Struct("<HH4x")
assert (_COMMAND.size, _RESULT.size) == (admin.COMMAND.itemsize, admin.RESULT.itemsize)

# P-DRV-07: each part of a command is a multiple of 8 bytes long.
ALIGN = 8

STATUS_NAMES = {
    admin.STATUS_ENXIO: "ENXIO",
    admin.STATUS_EAGAIN: "EAGAIN",
    admin.STATUS_ENOMEM: "ENOMEM",
    admin.STATUS_EBUSY: "EBUSY",
    admin.STATUS_EEXIST: "EEXIST",
    admin.STATUS_EINVAL: "EINVAL",
    admin.STATUS_ENOSPC: "ENOSPC",
}
QUALIFIER_NAMES = {
    admin.Q_OK: "OK",
    admin.Q_INVALID_COMMAND: "INVALID_COMMAND",
    admin.Q_INVALID_OPCODE: "INVALID_OPCODE",
    admin.Q_INVALID_FIELD: "INVALID_FIELD",
    admin.Q_INVALID_GROUP: "INVALID_GROUP",
    admin.Q_INVALID_MEMBER: "INVALID_MEMBER",
    admin.Q_NORESOURCE: "NORESOURCE",
    admin.Q_TRYAGAIN: "TRYAGAIN",
}


class AdminError(Exception):
    """A command that the device refused: EINVAL has left no side effects.

    Unknown statuses count as EINVAL, unknown qualifiers as INVALID_COMMAND (P-DRV-05); the numbers as
    they came are in `status` and `qualifier`.
    """

    def __init__(self, opcode: int, status: int, qualifier: int) -> None:
        self.opcode = opcode
        self.status = status
        self.qualifier = qualifier
        self.status_name = STATUS_NAMES.get(status, "EINVAL")
        self.qualifier_name = QUALIFIER_NAMES.get(qualifier, "INVALID_COMMAND")
        super().__init__(f"command {opcode:#x}: {self.status_name}, {self.qualifier_name}")


@dataclass(slots=True)
class AdminReply:
    """The answer to one command. `used_length` counts the 8-byte header; `result` is what follows it.

    What was written to buffers of the caller's is not in it.
    """

    status: int
    qualifier: int
    used_length: int
    result: bytes

    def array(self, dtype: np.dtype[Any], count: int | None = None) -> NDArray[Any]:
        """The result as elements of `dtype`; what the device did not write is zero (P-DRV-09)."""
        if count is None:
            count = len(self.result) // dtype.itemsize
        return np.frombuffer(self.result.ljust(count * dtype.itemsize, b"\0"), dtype, count)


@dataclass(slots=True)
class PendingCommand:
    """A command on its way: its chain, its memory, and where in that the device writes its answer."""

    opcode: int
    head: int
    frame: Buffer
    answer_at: int


class CommandParts(TypedDict, total=False):
    """What a command has beside its header, and the room for its answer: see `AdminQueue.submit`."""

    data: bytes | Buffer | Sequence[Buffer]
    result: int
    into: Sequence[Buffer]
    pad: bool


class AdminQueue:
    """The first admin queue of a function. Raises `LookupError` where the function has none.

    Needs ADMIN_VQ negotiated and FEATURES_OK; usable after DRIVER_OK.
    """

    def __init__(
        self, device: VirtioPci, *, number: int = 0, size: int | None = None, timeout: float = DEFAULT_TIMEOUT
    ) -> None:
        if number >= device.common.read("admin_queue_num"):
            raise LookupError(f"the function has no admin queue {number}")
        self.index = device.common.read("admin_queue_index") + number
        self.queue: DriverQueue = device.setup_queue(self.index, size=size)
        self.timeout = timeout
        self._memory: GuestMemory = device.memory
        self._lengths: dict[int, int] = {}

    def submit(
        self,
        opcode: int,
        *,
        group: int,
        member: int = 0,
        data: bytes | Buffer | Sequence[Buffer] = b"",
        result: int = 0,
        into: Sequence[Buffer] = (),
        pad: bool = True,
        kick: bool = True,
    ) -> PendingCommand:
        """Put a command on the queue and notify the device.

        `data` in DMA memory is sent from where it is; any other is padded to 8 bytes unless `pad` is off.
        `result` is the number of bytes to make room for, `into` where the device shall write what comes
        after those. Without `kick` the device is told with the next command: it takes those of a queue in
        order, so a driver may send several that build on each other and look at the answers together.
        Raises `QueueFullError`, and then nothing was submitted.
        """
        copied = data if isinstance(data, bytes) else b""
        size = -(-len(copied) // ALIGN) * ALIGN
        answer_at = _COMMAND.size + size
        frame = self._memory.allocate(answer_at + _RESULT.size + -(-result // ALIGN) * ALIGN)
        content = frame.view.data
        _COMMAND.pack_into(content, 0, opcode, group, member)
        if copied:
            content[_COMMAND.size : _COMMAND.size + len(copied)] = copied
        readable: list[Segment] = [(frame.address, answer_at if pad else _COMMAND.size + len(copied))]
        if isinstance(data, Buffer):
            readable.append(data.segment)
        elif not isinstance(data, bytes):
            readable += [part.segment for part in data]
        writable: list[Segment] = [(frame.address + answer_at, frame.size - answer_at)]
        writable += [part.segment for part in into]
        try:
            head = self.queue.add(readable, writable)
        except BaseException:
            self._memory.free(frame)
            raise
        if kick:
            self.queue.kick()
        return PendingCommand(opcode, head, frame, answer_at)

    def done(self, command: PendingCommand) -> bool:
        """Whether the device has answered; never waits."""
        self._note(self.queue.collect())
        return command.head in self._lengths

    def wait(self, command: PendingCommand, *, timeout: float | None = None) -> AdminReply:
        """Wait for the answer to a command; others may be answered first.

        Raises `TimeoutError`; the command then stays on its way, and may be waited for again.
        """
        if command.head not in self._lengths:
            self._await([command], timeout)
        used = self._lengths.pop(command.head)
        # What lies beyond the used length counts as zero (P-DRV-09).
        answer = bytes(command.frame.view.data[command.answer_at :][:used])
        self._memory.free(command.frame)
        status, qualifier = _RESULT.unpack(answer[: _RESULT.size].ljust(_RESULT.size, b"\0"))
        return AdminReply(status, qualifier, used, answer[_RESULT.size :])

    def wait_all(
        self, commands: Sequence[PendingCommand], *, timeout: float | None = None
    ) -> list[AdminReply]:
        """Wait for all of these. Raises `TimeoutError`, and `AdminError` for the first that was refused."""
        self._await(commands, timeout)
        replies = [self.wait(command, timeout=timeout) for command in commands]
        for command, reply in zip(commands, replies, strict=True):
            if reply.status != admin.STATUS_OK:
                raise AdminError(command.opcode, reply.status, reply.qualifier)
        return replies

    def execute(
        self,
        opcode: int,
        *,
        group: int,
        member: int = 0,
        timeout: float | None = None,
        **parts: Unpack[CommandParts],
    ) -> AdminReply:
        """`submit` and `wait`, again after EAGAIN. Raises `AdminError` and `TimeoutError`."""
        for _ in range(RETRIES):
            command = self.submit(opcode, group=group, member=member, **parts)
            reply = self.wait(command, timeout=timeout)
            if reply.status == admin.STATUS_OK:
                return reply
            if reply.status != admin.STATUS_EAGAIN:
                break
            time.sleep(RETRY_PAUSE)
        raise AdminError(opcode, reply.status, reply.qualifier)

    def list_query(self, group: int) -> frozenset[int]:
        """The opcodes that the device offers for a group."""
        # Room for a bit of every 16-bit opcode.
        reply = self.execute(admin.LIST_QUERY, group=group, result=1 << 13)
        bits = int.from_bytes(reply.result, "little")
        return frozenset(opcode for opcode in range(bits.bit_length()) if bits >> opcode & 1)

    def list_use(self, group: int, opcodes: Iterable[int]) -> None:
        """Say which commands this driver will use for a group; no other command may be on its way."""
        bits = 0
        for opcode in opcodes:
            bits |= 1 << opcode
        words = -(-bits.bit_length() // 64) or 1
        self.execute(admin.LIST_USE, group=group, data=bits.to_bytes(words * 8, "little"))

    def _await(self, commands: Sequence[PendingCommand], timeout: float | None) -> None:
        """Wait until all of these were answered, with one interrupt where nothing else is on its way."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while missing := sum(command.head not in self._lengths for command in commands):
            self._note(self.queue.wait(max(deadline - time.monotonic(), 0), missing))

    def _note(self, completions: Sequence[Any]) -> None:
        for completion in completions:
            self._lengths[completion.head] = completion.length
