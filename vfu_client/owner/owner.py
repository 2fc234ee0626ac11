"""The owner driver: drives the PF of the group and, through its admin queue, its VFs' contexts."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import admin, context, virtio
from vfu_client.drivers.driver import Driver
from vfu_client.owner.admin import AdminError, AdminQueue, AdminReply, CommandParts, PendingCommand
from vfu_client.owner.stream import BadContextError, ContextWalker, ReadBytes, as_view, is_whole
from vfu_client.vfio.connection import DEFAULT_TIMEOUT
from vfu_client.vfio.memory import PAGE, Buffer, Bytes
from vfu_client.vfio.sriov import SrIov
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

CONTEXT_OPCODES = 0x40
# Largest READ and WRITE that are made by default; a context may be larger.
READ_SIZE = 256 << 20
WRITE_SIZE = 4 << 20
# What is read and written in memory that is mapped already, as mapping more takes longer than the command.
SMALL_SIZE = 64 << 10
RECORDS_SIZE = 64 << 10

# context.READ_RESULT: what comes ahead of the bytes.
_READ_RESULT = struct.Struct("<II")
assert _READ_RESULT.size == context.READ_RESULT.itemsize

CONTEXT_COMMANDS = range(context.MODE_GET, context.WRITE_RECORD_STOP + 1)
PARTS_COMMANDS = frozenset(range(admin.RESOURCE_OBJ_CREATE, admin.DEV_MODE_SET + 1))


class DriverRuleError(Exception):
    """What was asked for would break a rule for drivers; nothing was sent."""


class OwnerDriver(Driver):
    """Drives a PF with its admin queue. The constructor raises as `Driver` and `AdminQueue` do.

    `close` leaves modes, read positions and contexts of the VFs as they are (A-29).

    With `obey` (the default) it refuses what the draft forbids a driver to do (DRV-03, -04, -07 to -09).
    `commands` is what the device lists for its VFs and this driver has chosen; a device that goes by the
    letter lists none while it has no VFs.
    """

    def __init__(
        self,
        device: VirtioPci,
        *,
        context_opcodes: int = CONTEXT_OPCODES,
        obey: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(
            device,
            wanted=KNOWN_FEATURES | {virtio.F_SR_IOV},
            required=(virtio.F_VERSION_1, virtio.F_ADMIN_VQ),
            timeout=timeout,
        )
        self.base = context_opcodes
        self.obey = obey
        self.commands: frozenset[int] = frozenset()
        self.listed: frozenset[int] = frozenset()
        self._written: dict[int, ContextWalker] = {}
        self.sriov = SrIov(device.function)
        self.admin = AdminQueue(device, timeout=timeout)
        device.driver_ok()
        self.select_commands()

    # The group.

    def select_commands(self) -> frozenset[int]:
        """LIST_QUERY, then LIST_USE of what is listed and known here; none where the group does not exist."""
        try:
            self.listed = self.admin.list_query(admin.GROUP_SRIOV)
        except AdminError as error:
            if error.qualifier != admin.Q_INVALID_GROUP:
                raise
            self.listed = self.commands = frozenset()
            return self.commands
        contexts = {self.base + number for number in CONTEXT_COMMANDS}
        self.commands = self.listed & (contexts | PARTS_COMMANDS | {admin.LIST_QUERY, admin.LIST_USE})
        self.admin.list_use(admin.GROUP_SRIOV, self.commands)
        return self.commands

    def enable_vfs(self, count: int) -> None:
        """Have `count` VFs, and choose the commands for them.

        Raises `ValueError` as `SrIov.enable` does, `DriverRuleError` as `disable_vfs` does.
        """
        self.check_idle()
        self.sriov.enable(count)
        self._written.clear()
        self.select_commands()

    def disable_vfs(self) -> None:
        """Have no VFs. Raises `DriverRuleError` while a command is on its way (P-DRV-02, P-DRV-06)."""
        self.check_idle()
        self.sriov.disable()
        self._written.clear()
        self.select_commands()

    def submit(
        self, number: int, vf: int, *, kick: bool = True, **parts: Unpack[CommandParts]
    ) -> PendingCommand:
        """As `command`, without waiting (`AdminQueue.submit`)."""
        opcode = self.base + number
        return self.admin.submit(opcode, group=admin.GROUP_SRIOV, member=vf, kick=kick, **parts)

    def command(
        self, number: int, vf: int, *, timeout: float | None = None, **parts: Unpack[CommandParts]
    ) -> AdminReply:
        """One command of the context set, by its number in `pymodel.spec.context` (`AdminQueue.execute`).

        Raises `AdminError` and `TimeoutError`.
        """
        opcode = self.base + number
        return self.admin.execute(opcode, group=admin.GROUP_SRIOV, member=vf, timeout=timeout, **parts)

    # Modes.

    def mode_get(self, vf: int) -> int:
        """The mode of a VF."""
        reply = self.command(context.MODE_GET, vf, result=context.MODE.itemsize)
        return int(reply.array(context.MODE, 1)[0]["mode"])

    def mode_set(self, vf: int, mode: int, *, timeout: float | None = None) -> None:
        """Change the mode of a VF; it is in force when this returns, and the VF does no DMA unless Active.

        Raises `DriverRuleError` where this driver's context for the VF is partial (DRV-04), `AdminError`.
        """
        if self.obey and mode != context.MODE_FREEZE and self.partly_written(vf):
            raise DriverRuleError(f"VF {vf} has a partly written context: write the rest, or discard it")
        self.command(context.MODE_SET, vf, data=_mode(mode), timeout=timeout)

    # Reading.

    def context_size(self, vf: int, *, freeze: bool = False) -> int:
        """What is left to read in the present mode, or the whole size as it would be in Freeze."""
        data = bytes([freeze]).ljust(context.SIZE_GET_DATA.itemsize, b"\0")
        size = context.SIZE_GET_RESULT.itemsize
        reply = self.command(context.CTX_SIZE_GET, vf, data=data, result=size)
        return int(reply.array(context.SIZE_GET_RESULT, 1)[0]["size"])

    def context_read_into(self, vf: int, destination: Buffer) -> tuple[int, int]:
        """One READ, straight into DMA memory; returns how many bytes came and how many are left."""
        reply = self.command(context.CTX_READ, vf, result=_READ_RESULT.size, into=[destination])
        return _read_result(reply, destination)

    def freeze_and_read_into(self, vf: int, destination: Buffer) -> tuple[int, int]:
        """Stop, Freeze and a READ as `context_read_into`, for the price of one notification.

        Raises `AdminError` for the first command that was refused; the ones after it were sent too.
        """
        pending = [
            self.submit(context.MODE_SET, vf, data=_mode(context.MODE_STOP), kick=False),
            self.submit(context.MODE_SET, vf, data=_mode(context.MODE_FREEZE), kick=False),
            self.submit(context.CTX_READ, vf, result=_READ_RESULT.size, into=[destination]),
        ]
        return _read_result(self.admin.wait_all(pending)[-1], destination)

    def context_peek_into(self, vf: int, destination: Buffer) -> int:
        """The first bytes of a VF's whole context, for the price of one notification; how many came.

        What was read or written in part before is dropped. Raises as `freeze_and_read_into`.
        """
        pending = [
            self.submit(context.CTX_DISCARD, vf, kick=False),
            self.submit(context.CTX_READ, vf, result=_READ_RESULT.size, into=[destination], kick=False),
            self.submit(context.CTX_DISCARD, vf),
        ]
        self._written.pop(vf, None)
        return _read_result(self.admin.wait_all(pending)[1], destination)[0]

    def context_read(self, vf: int, buffer_size: int | None = None) -> Iterator[Bytes]:
        """What is left of a VF's context, in READs of at most `buffer_size` bytes (DRV-01).

        The device writes into the arrays themselves; they stay valid. Dropping the iterator early leaves
        the read position where it is: `context_discard` starts anew.
        """
        memory = self.device.memory
        left = self.context_size(vf)
        most = READ_SIZE if buffer_size is None else buffer_size
        while left:
            # All that is left goes into one region, so that a small buffer size costs no mapping per READ.
            region = memory.add_region(min(left, max(most, READ_SIZE)), allocatable=False)
            try:
                whole = memory.buffer(region.address, region.size)
                at = 0
                while left and at < whole.size:
                    # A short piece at a region's end would break the caller's buffer size.
                    if at and whole.size - at < min(most, left):
                        break
                    size, left = self.context_read_into(vf, whole.part(at, min(most, whole.size - at)))
                    if not size:
                        return
                    yield whole.view[at : at + size]
                    at += size
            finally:
                memory.remove(region)

    # Writing.

    def partly_written(self, vf: int) -> bool:
        """Whether this driver has begun a context for the VF and not ended it."""
        return vf in self._written and self._written[vf].partial

    def context_write(
        self,
        vf: int,
        data: ReadBytes | Iterable[ReadBytes],
        *,
        chunk_size: int = WRITE_SIZE,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        """Write complete contexts, in WRITEs of `chunk_size` bytes (the last one is shorter).

        `progress` hears after each how many bytes are written, and how many there are.

        Raises `DriverRuleError` before anything is sent where the bytes are no complete contexts (DRV-03,
        DRV-07 to DRV-09), `AdminError` where the device refuses; then earlier WRITEs may have left a
        partial context, which `context_discard` drops.
        """
        pieces = [data] if isinstance(data, (bytes, bytearray, memoryview, np.ndarray)) else list(data)
        views = [as_view(piece) for piece in pieces]
        if self.obey:
            self._check_whole(vf, views)
        whole, done = sum(map(len, views)), 0
        with self._stage(min(chunk_size, max(whole, 1))) as stage:
            filled = 0
            for view in views:
                at = 0
                while at < len(view):
                    step = min(stage.size - filled, len(view) - at)
                    stage.view[filled : filled + step] = np.frombuffer(view[at : at + step], np.uint8)
                    at, filled = at + step, filled + step
                    if filled == stage.size:
                        self.context_write_part(vf, stage)
                        filled, done = 0, done + stage.size
                        if progress is not None:
                            progress(done, whole)
            if filled:
                self.context_write_part(vf, stage.part(0, filled))
                if progress is not None:
                    progress(whole, whole)

    @contextlib.contextmanager
    def _stage(self, size: int) -> Iterator[Buffer]:
        """DMA memory of that size, to write from."""
        if size <= SMALL_SIZE:
            with self.room(size) as buffer:
                yield buffer
            return
        memory = self.device.memory
        region = memory.add_region(size, allocatable=False)
        try:
            yield memory.buffer(region.address, size)
        finally:
            memory.remove(region)

    def context_write_part(self, vf: int, data: bytes | Buffer) -> None:
        """One WRITE of bytes cut anywhere, unpadded; a `Buffer` is sent from where it is.

        Raises `AdminError`, and then the device took nothing of it.
        The caller is the one to end the context before the VF leaves Freeze.
        """
        self.command(context.CTX_WRITE, vf, data=data, pad=False)
        view = as_view(data if isinstance(data, bytes) else data.view)
        if not self.partly_written(vf) and is_whole(view):
            return
        walker = self._written.setdefault(vf, ContextWalker())
        try:
            walker.walk(view)
        except BadContextError:
            # The device took what this driver cannot follow; it alone knows whether that is partial.
            self._written.pop(vf)

    def write_and_activate(self, vf: int, data: Buffer) -> None:
        """One WRITE of whole contexts, and Active, for the price of one notification.

        Raises `DriverRuleError` before anything is sent where the bytes are no whole contexts, or continue
        one: were that WRITE refused, Active would break DRV-04. Raises `AdminError` for the first command
        that was refused. A VF whose WRITE was refused is Active with what it had before, as Active was sent
        too: use this where nobody drives it yet.
        """
        if self.obey:
            if self.partly_written(vf):
                raise DriverRuleError(f"VF {vf} has a partly written context: write the rest, or discard it")
            self._check_whole(vf, [as_view(data.view)])
        pending = [
            self.submit(context.CTX_WRITE, vf, data=data, pad=False, kick=False),
            self.submit(context.MODE_SET, vf, data=_mode(context.MODE_ACTIVE)),
        ]
        self.admin.wait_all(pending)
        self._written.pop(vf, None)

    def context_discard(self, vf: int) -> None:
        """Drop the read position and a partly written context."""
        self.command(context.CTX_DISCARD, vf)
        self._written.pop(vf, None)

    def fields(self, vf: int) -> NDArray[Any]:
        """The field types that the VF can send or take, as `pymodel.spec.context.FIELD_SUPPORT`."""
        reply = self.command(context.CTX_FIELDS_QUERY, vf, result=PAGE)
        return reply.array(context.FIELD_SUPPORT)

    @contextlib.contextmanager
    def room(self, size: int) -> Iterator[Buffer]:
        """Memory that is mapped already, for commands within the context. Raises `OutOfMemoryError`.

        It is not used again after one that was not answered in time: the device may get to that yet.
        """
        memory = self.device.memory
        buffer = memory.allocate(size)
        try:
            yield buffer
        except TimeoutError:
            raise
        except BaseException:
            memory.free(buffer)
            raise
        memory.free(buffer)

    # Write records.

    def write_record_start(self, vf: int) -> None:
        """Begin to record which guest memory the VF writes."""
        self.command(context.WRITE_RECORD_START, vf)

    def write_record_read(self, vf: int) -> tuple[NDArray[Any], int]:
        """Take records out, as `pymodel.spec.context.WRITE_RECORD`; also how many are left."""
        reply = self.command(context.WRITE_RECORD_READ, vf, result=RECORDS_SIZE)
        head = context.WRITE_RECORD_RESULT.itemsize
        fields = np.frombuffer(reply.result[:head].ljust(head, b"\0"), context.WRITE_RECORD_RESULT)[0]
        size = int(fields["count"]) * context.WRITE_RECORD.itemsize
        records = np.frombuffer(reply.result[head : head + size], context.WRITE_RECORD)
        return records, int(fields["remaining"])

    def write_record_stop(self, vf: int) -> None:
        """End the recording, and forget what was recorded."""
        self.command(context.WRITE_RECORD_STOP, vf)

    def check_idle(self) -> None:
        """Raise `DriverRuleError` while a command is on its way."""
        if self.obey and self.admin.queue.in_flight:
            raise DriverRuleError(f"{self.admin.queue.in_flight} admin commands are on their way")

    def _check_whole(self, vf: int, views: list[memoryview]) -> None:
        """Raise `DriverRuleError` unless the bytes end the context that was begun, or are whole ones."""
        if len(views) == 1 and not self.partly_written(vf) and is_whole(views[0]):
            return
        walker = self._written[vf].copy() if vf in self._written else ContextWalker()
        try:
            for view in views:
                walker.walk(view)
        except BadContextError as error:
            raise DriverRuleError(str(error)) from error
        if walker.partial:
            raise DriverRuleError(f"the context has no END_MARKER after {walker.position} bytes")


def _mode(mode: int) -> bytes:
    return bytes((mode, 0, 0, 0, 0, 0, 0, 0))


def _read_result(reply: AdminReply, destination: Buffer) -> tuple[int, int]:
    """What a READ says: bytes that came, bytes that are left. Raises `BadContextError`."""
    head = reply.result.ljust(_READ_RESULT.size, b"\0")
    remaining, size = _READ_RESULT.unpack(head)
    if reply.used_length != admin.RESULT.itemsize + len(head) + size or size > destination.size:
        raise BadContextError(f"READ says {size} bytes, used length is {reply.used_length}")
    return size, remaining
