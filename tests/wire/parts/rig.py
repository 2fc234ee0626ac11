"""What the tests of device parts share: a PF under raw commands, a VF under a disk driver, literals.

Numbers are virtio 1.4's and those of docs/wire.md, repeated here on purpose. Nothing obeys a rule unless the
test does.
"""

from __future__ import annotations

import contextlib
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from tests.server_process import ServerProcess
from tests.wire.draft_rig import COMMON_CFG, OK, Answer, Rig
from tests.wire.running import running

LIST_QUERY, LIST_USE = 0x00, 0x01
CAP_ID_LIST_QUERY, DEVICE_CAP_GET, DRIVER_CAP_SET = 0x07, 0x08, 0x09
CREATE, QUERY, MODIFY, DESTROY = 0x0A, 0x0B, 0x0C, 0x0D
METADATA_GET, PARTS_GET, PARTS_SET, MODE_SET = 0x0E, 0x0F, 0x10, 0x11
ALL_COMMANDS = (CREATE, QUERY, MODIFY, DESTROY, METADATA_GET, PARTS_GET, PARTS_SET, MODE_SET)

TO_GET, TO_SET = 0, 1
SIZE, COUNT, LIST = 0, 1, 2
SELECTED, ALL = 0, 1
RUNNING, STOPPED = b"\0", b"\1"

# Statuses, where the qualifier says no more.
ENXIO, ENOMEM, EBUSY, EEXIST, ENOSPC = 6, 12, 16, 17, 28
# (status, qualifier): EINVAL with Q_INVALID_COMMAND, Q_INVALID_FIELD.
WRONG_STATE, WRONG_CONTENT = (22, 1), (22, 3)

DEV_FEATURES, DRV_FEATURES, PCI_COMMON_CFG, DEVICE_STATUS = 0x100, 0x101, 0x102, 0x103
VQ_CFG, VQ_NOTIFY_CFG = 0x104, 0x105
NET_CVQ_CFG = 0x200
OURS = 0x5F0
STANDARD = range(0x600)
"""Types that are not reserved."""

# Offsets in the common configuration structure that parts tell of, and the length of each field.
OFFSETS = {0: 4, 8: 4, 16: 2, 18: 2, 22: 2}
QUEUE_SELECT = 22

GET_ID, SET_ID = 3, 200
"""Objects that `PartsRig` has of its member."""


class Part(NamedTuple):
    """One part, as it is sent."""

    kind: int
    selector: bytes = bytes(8)
    value: bytes = b""
    flags: int = 0

    def encode(self, *, length: int | None = None, reserved: int = 0) -> bytes:
        """Header and value; the header may lie."""
        said = len(self.value) if length is None else length
        return struct.pack("<HBB8sI", self.kind, self.flags, reserved, self.selector, said) + self.value


def common(offset: int, value: int = 0) -> Part:
    """The part of a field of the common configuration."""
    size = OFFSETS.get(offset, 2)
    return Part(PCI_COMMON_CFG, struct.pack("<I4x", offset), value.to_bytes(size, "little"))


def of_queue(kind: int, index: int, value: bytes = b"") -> Part:
    """VQ_CFG or VQ_NOTIFY_CFG of a queue."""
    return Part(kind, struct.pack("<H6x", index), value)


def ours(field: int, value: bytes = b"", queue: int = 0) -> Part:
    """A field of the context, as a part."""
    return Part(OURS, struct.pack("<HH4x", field, queue), value, 1)


def build(parts: list[Part]) -> bytes:
    """The parts one behind the other."""
    return b"".join(part.encode() for part in parts)


def parse(stream: bytes) -> list[Part]:
    """The parts of a stream; asserts that it ends where a part ends, and what is reserved."""
    found: list[Part] = []
    at = 0
    while at < len(stream):
        kind, flags, reserved, selector, length = struct.unpack_from("<HBB8sI", stream, at)
        assert (flags & ~1, reserved) == (0, 0)
        assert kind in STANDARD
        assert at + 16 + length <= len(stream), f"part {kind:#x} at {at} is cut"
        found.append(Part(kind, selector, stream[at + 16 : at + 16 + length], flags))
        at += 16 + length
    return found


def headers(parts: list[Part]) -> bytes:
    """Their headers alone."""
    return b"".join(part.encode()[:16] for part in parts)


def find(parts: list[Part], kind: int, selector: bytes = bytes(8)) -> Part:
    """The part of a type and a selector."""
    (found,) = [part for part in parts if (part.kind, part.selector) == (kind, selector)]
    return found


def changed(parts: list[Part], *others: Part) -> list[Part]:
    """The parts, some of them with another value."""
    new = {(part.kind, part.selector): part for part in others}
    assert new.keys() <= {(part.kind, part.selector) for part in parts}
    return [part._replace(value=new[part[:2]].value) if part[:2] in new else part for part in parts]


def without_ours(parts: list[Part]) -> list[Part]:
    """What a device that knows the standard only would send."""
    return [part for part in parts if part.kind != OURS]


def named(kind: int, id_: int) -> bytes:
    """What the data of every command about an object begins with."""
    return struct.pack("<HxxI", kind, id_)


def created(id_: int, operation: int, *, flags: int = 0, kind: int = 0) -> bytes:
    """The data of CREATE and MODIFY."""
    return named(kind, id_) + struct.pack("<QB7x", flags, operation)


class PartsRig(Rig):
    """A server's PF and one of its VFs in the hands of a test, with an object of either operation.

    All commands are in use; the limits are 255 each.
    """

    def __init__(self, server: ServerProcess, vf: int = 1, *, packed: bool = False) -> None:
        super().__init__(server, vf, packed=packed)
        try:
            self.begin()
        except BaseException:
            self.__exit__(None, None, None)
            raise

    def begin(self) -> None:
        """What an owner's driver does first: the lists, the capability, two objects."""
        for group in (0, 1):
            listed = self.owner.admin.execute(LIST_QUERY, group=group, result=64).result
            self.owner.admin.execute(LIST_USE, group=group, data=listed)
        assert self.own(DRIVER_CAP_SET, struct.pack("<H6xBB", 0, 255, 255)) == OK
        for id_, operation in ((GET_ID, TO_GET), (SET_ID, TO_SET)):
            assert self.create(id_, operation) == OK

    def __exit__(self, *_: object) -> None:
        try:
            if not self.device.connection.closed:
                # Whatever a test left: stopped, rings, a reset under way.
                self.device.connection.device_reset()
                self.device.close()
        finally:
            self.owner.close()
            self._memory.close()

    # Commands.

    def own(self, opcode: int, data: bytes = b"") -> tuple[int, int]:
        """A command of the Self group; how it was answered."""
        admin = self.owner.admin
        reply = admin.wait(admin.submit(opcode, group=0, data=data, result=64, pad=False))
        return reply.status, reply.qualifier

    def create(self, id_: int, operation: int, *, vf: int | None = None) -> tuple[int, int]:
        """RESOURCE_OBJ_CREATE; how it was answered."""
        return self.adm(CREATE, created(id_, operation), vf=vf).code

    def destroy(self, id_: int, *, vf: int | None = None) -> tuple[int, int]:
        """RESOURCE_OBJ_DESTROY; how it was answered."""
        return self.adm(DESTROY, named(0, id_), vf=vf).code

    def metadata(self, kind: int, *, id_: int = GET_ID, room: int = 1 << 14) -> Answer:
        """METADATA_GET into `room` bytes, not one more."""
        return self.exact(METADATA_GET, named(0, id_) + struct.pack("<B7x", kind), room)

    def parts_get(
        self, kind: int = ALL, wanted: bytes = b"", *, id_: int = GET_ID, room: int = 1 << 16
    ) -> Answer:
        """PARTS_GET into `room` bytes, not one more."""
        return self.exact(PARTS_GET, named(0, id_) + struct.pack("<B7x", kind) + wanted, room)

    def exact(self, opcode: int, data: bytes, room: int) -> Answer:
        """A command with room for `room` bytes of result; asserts that nothing more was written."""
        if not room:
            return self.adm(opcode, data)
        buffer = self.owner.device.memory.allocate(room)
        buffer.view[:] = 0xEE
        try:
            answer = self.answer(self.send(opcode, data, [buffer]))
            size = answer.used - 8
            assert 0 <= size <= room
            assert (buffer.view[size:] == 0xEE).all()
            return Answer(answer.code, answer.used, buffer.view[:size].tobytes())
        finally:
            self.owner.device.memory.free(buffer)

    def parts(self) -> list[Part]:
        """All parts that there are now."""
        answer = self.parts_get()
        assert answer.code == OK
        return parse(answer.result)

    def set(self, parts: list[Part] | bytes, *, id_: int = SET_ID, vf: int | None = None) -> tuple[int, int]:
        """PARTS_SET; how it was answered."""
        data = parts if isinstance(parts, bytes) else build(parts)
        return self.adm(PARTS_SET, named(0, id_) + data, vf=vf).code

    def stop(self, *, vf: int | None = None) -> None:
        """Stop the member."""
        assert self.adm(MODE_SET, STOPPED, vf=vf).code == OK

    def resume(self, *, vf: int | None = None) -> None:
        """Have it go on."""
        assert self.adm(MODE_SET, RUNNING, vf=vf).code == OK

    @property
    def queue_select(self) -> int:
        """The register that most tests change by parts, because nothing acts on it."""
        return self.device.common.read("queue_select")

    def selecting(self, number: int) -> list[Part]:
        """The member's parts, with another queue_select: in the standard's part and in ours, which wins."""
        parts = self.parts()
        exact = find(parts, OURS, ours(COMMON_CFG).selector).value
        exact = exact[:12] + struct.pack("<H", number) + exact[14:]
        return changed(parts, common(QUEUE_SELECT, number), ours(COMMON_CFG, exact))


@contextlib.contextmanager
def file_server(folder: Path, *options: str) -> Iterator[ServerProcess]:
    """A server with two VFs of two queues that share a disk of 32 KiB: a file in `folder`."""
    with running() as start:
        disk = os.fspath(folder / "disk").replace(",", ",,")
        yield start("--vfs", "2", "--queues", "2", "--disk", f"{disk},size=32k", *options)
