"""The admin virtqueue from the driver's side. virtio 1.4, "Group administration commands"."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import admin
from vfu_client.connection import DEFAULT_TIMEOUT
from vfu_client.memory import Buffer, GuestMemory
from vfu_client.split import Segment, SplitQueue
from vfu_client.virtio import VirtioPci

# EAGAIN is worth a new try (P-DRV-11): this many, with this pause between them.
RETRIES = 5
RETRY_PAUSE = 0.01

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


@dataclass(frozen=True)
class AdminReply:
    """The answer to one command. `used_length` counts the 8-byte header; `result` is what follows it.

    With a destination of the caller's (`Buffer`) the result is in there, and `result` is empty.
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


@dataclass(frozen=True)
class PendingCommand:
    """A command on its way: its chain, and the memory that is its own."""

    opcode: int
    head: int
    header: Buffer
    answer: Buffer
    result: Buffer | None
    owned: Sequence[Buffer]


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
        self.queue: SplitQueue = device.setup_queue(self.index, size=size)
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
        result: int | Sequence[Buffer] = 0,
        pad: bool = True,
    ) -> PendingCommand:
        """Put a command on the queue and notify the device.

        `data` in DMA memory is sent from where it is, and then not padded; `result` is the number of
        bytes to make room for, or the buffers that the device shall write to.
        """
        header = self._memory.allocate(admin.COMMAND.itemsize)
        header.view.view(admin.COMMAND)[0] = (opcode, group, np.zeros(12, np.uint8), member)
        answer = self._memory.allocate(admin.RESULT.itemsize)
        owned = [header, answer]
        readable: list[Segment] = [header.segment]
        if isinstance(data, bytes):
            if data:
                size = -(-len(data) // ALIGN) * ALIGN if pad else len(data)
                copy = self._memory.allocate(size)
                copy.view[: len(data)] = np.frombuffer(data, np.uint8)
                owned.append(copy)
                readable.append(copy.segment)
        else:
            readable += [part.segment for part in ([data] if isinstance(data, Buffer) else data)]
        writable: list[Segment] = [answer.segment]
        room: Buffer | None = None
        if isinstance(result, int):
            if result:
                room = self._memory.allocate(-(-result // ALIGN) * ALIGN)
                owned.append(room)
                writable.append(room.segment)
        else:
            writable += [part.segment for part in result]
        head = self.queue.add(readable, writable)
        self.queue.kick()
        return PendingCommand(opcode, head, header, answer, room, owned)

    def done(self, command: PendingCommand) -> bool:
        """Whether the device has answered; never waits."""
        self._note(self.queue.collect())
        return command.head in self._lengths

    def wait(self, command: PendingCommand, *, timeout: float | None = None) -> AdminReply:
        """Wait for the answer to a command; others may be answered first.

        Raises `TimeoutError`; the command then stays on its way, and may be waited for again.
        """
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while command.head not in self._lengths:
            self._note(self.queue.wait(max(deadline - time.monotonic(), 0)))
        used = self._lengths.pop(command.head)
        answer = command.answer.view.copy()
        answer[used:] = 0
        fields = answer.view(admin.RESULT)[0]
        written = max(used - admin.RESULT.itemsize, 0)
        result = b"" if command.result is None else command.result.view[:written].tobytes()
        for buffer in command.owned:
            self._memory.free(buffer)
        return AdminReply(int(fields["status"]), int(fields["status_qualifier"]), used, result)

    def execute(
        self,
        opcode: int,
        *,
        group: int,
        member: int = 0,
        data: bytes | Buffer | Sequence[Buffer] = b"",
        result: int | Sequence[Buffer] = 0,
        pad: bool = True,
        timeout: float | None = None,
    ) -> AdminReply:
        """`submit` and `wait`, again after EAGAIN. Raises `AdminError` and `TimeoutError`."""
        for _ in range(RETRIES):
            command = self.submit(opcode, group=group, member=member, data=data, result=result, pad=pad)
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

    def _note(self, completions: Sequence[Any]) -> None:
        for completion in completions:
            self._lengths[completion.head] = completion.length
