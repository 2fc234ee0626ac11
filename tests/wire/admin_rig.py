"""A PF with nothing but its admin queue, in the hands of a test. The numbers are virtio 1.4's, repeated."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from tests.server_process import ServerProcess
from tests.wire.driving import INDIRECT_DESC, VERSION_1
from vfu_client.owner.admin import AdminQueue, AdminReply
from vfu_client.virtio.function import VirtioPci

ADMIN_VQ, SR_IOV = 41, 37
SELF, SRIOV = 0, 1
QUERY, USE = 0x00, 0x01
# (status, qualifier): EINVAL with each of its qualifiers.
OK = (0, 0)
COMMAND, OPCODE, FIELD, GROUP, MEMBER = ((22, qualifier) for qualifier in (1, 2, 3, 4, 5))


@dataclass
class Admin:
    """A PF with nothing but its admin queue."""

    device: VirtioPci
    queue: AdminQueue
    more: tuple[int, ...]
    """Features that are negotiated beside those that it needs."""

    def reply(
        self, opcode: int, group: int = SRIOV, member: int = 0, data: bytes = b"", room: int = 256
    ) -> AdminReply:
        """One command, answered; `data` goes unpadded."""
        queue = self.queue
        command = queue.submit(opcode, group=group, member=member, data=data, result=room, pad=False)
        reply = queue.wait(command)
        assert self.device.status == 15  # no error state (P-DEV-04)
        return reply

    def status(self, opcode: int, group: int = SRIOV, member: int = 0, data: bytes = b"") -> tuple[int, int]:
        """(status, qualifier) of one command."""
        reply = self.reply(opcode, group, member, data)
        return reply.status, reply.qualifier

    def listed(self, group: int) -> int:
        """LIST_QUERY, as bits."""
        reply = self.queue.execute(QUERY, group=group, result=64)
        return int.from_bytes(reply.result, "little")

    def use(self, bits: int, group: int = SRIOV) -> tuple[int, int]:
        """LIST_USE."""
        return self.status(USE, group, data=bits.to_bytes(16, "little"))

    def open(self) -> None:
        """LIST_USE of all that both groups have."""
        for group in (SELF, SRIOV):
            assert self.use(self.listed(group), group) == OK

    def reset(self) -> None:
        """Reset the device, and begin anew."""
        self.device.reset()
        start(self)

    def raw(self, readable: list[bytes], writable: list[int]) -> tuple[int, bytes]:
        """A command of these pieces as direct descriptors: (used length, the writable part)."""
        memory = self.device.memory
        parts = [memory.allocate(len(piece)) for piece in readable]
        rooms = [memory.allocate(size) for size in writable]
        for part, piece in zip(parts, readable, strict=True):
            part.view[:] = list(piece)
        for room in rooms:
            room.view[:] = 0xEE
        head = self.queue.queue.add(
            [part.segment for part in parts], [room.segment for room in rooms], indirect=False
        )
        self.queue.queue.kick()
        (done,) = self.queue.queue.wait(10)
        assert done.head == head
        return done.length, b"".join(room.view.tobytes() for room in rooms)


def header(opcode: int, group: int = SRIOV, member: int = 0) -> bytes:
    """What each command begins with."""
    return struct.pack("<HH12xQ", opcode, group, member)


def start(admin: Admin) -> None:
    """From reset to DRIVER_OK."""
    admin.device.initialize(
        wanted=(VERSION_1, INDIRECT_DESC, ADMIN_VQ, SR_IOV, *admin.more), required=(VERSION_1, ADMIN_VQ)
    )
    admin.queue = AdminQueue(admin.device, timeout=10)
    admin.device.driver_ok()


@contextlib.contextmanager
def administered(server: ServerProcess, *more: int) -> Iterator[Admin]:
    """The PF of a server."""
    with VirtioPci.open(server.socket("pf"), timeout=10) as device:
        admin = Admin.__new__(Admin)
        admin.device = device
        admin.more = more
        start(admin)
        yield admin
