"""The block device. virtio 1.4, "Block Device".

A request is a run of jobs for its disk, one after another. Each is attempted at once on the guest's memory;
what would wait is started on memory of our own, and goes on in `service` when the disk is done. So no disk
ever touches guest memory behind the driver's back, and requests end in any order.
"""

from __future__ import annotations

import errno
import logging
import os
import struct
from collections import Counter, deque
from collections.abc import Callable, Iterable

import numpy as np

from pymodel.devices.block import config as block_config
from pymodel.devices.block import content as block_content
from pymodel.devices.block.disk import Disk, Job, Kind
from pymodel.devices.block.engine import BlockEngine
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.devices.block.request import HEADER, Request, pieces, private
from pymodel.devices.device import Notifier
from pymodel.errors import BrokenQueue, InvalidCommand, InvalidField, MemoryFault
from pymodel.memory import Buffer, Bytes, GuestMemory
from pymodel.migration.parts import Part
from pymodel.migration.state import DeviceField, FunctionState, Mark
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import block, virtio

# block.RANGE: sector, num_sectors, flags.
_RANGE = struct.Struct("<QII")

# Bytes of our own memory that the jobs of a function may hold at once; one job more is always let through.
STARTED_BYTES = 32 << 20


class BlockDevice:
    """A virtio block device on a disk. It completes requests in order if its disk is `in_order`."""

    virtio_id = virtio.ID_BLOCK
    class_code = 0x018000  # mass storage controller, other
    config_layout = block.CONFIG
    config_length = block.CONFIG.itemsize
    in_order = True
    part_types = ()
    waits = ()

    def __init__(self, disk: Disk, *, name: str, queues: int) -> None:
        self._disk = disk
        self._serial = f"pymodel-{name}".encode()[: block.ID_BYTES].ljust(block.ID_BYTES, b"\0")
        self._log = logging.getLogger(f"virtio.{name}")
        self.queue_sizes = (block_config.QUEUE_SIZE,) * queues
        self.features = block_config.features(disk, queues)
        self.in_order = disk.in_order
        self._config = block_config.configuration(disk, queues)
        self._plans: dict[int, Callable[[Buffer, int, int], Iterable[Job] | int]] = {
            block.T_IN: self._read,
            block.T_OUT: self._write,
            block.T_FLUSH: self._flush,
            block.T_GET_ID: self._get_id,
            block.T_DISCARD: self._discard,
            block.T_WRITE_ZEROES: self._write_zeroes,
        }
        self._forget()

    def _forget(self) -> None:
        # One that is at work meanwhile ends that by itself, into nothing.
        self._engines: dict[int, BlockEngine] = {}
        self._accepted = 0
        self._writeback = block.WRITEBACK
        self._started: dict[Job, Request] = {}
        self._started_bytes = 0
        self._landed: deque[Job] = deque()
        # Requests whose next job has not been started.
        self._pending: deque[Request] = deque()
        # Started jobs of queues that were reset.
        self._stale: Counter[int] = Counter()

    def connect(self, notifier: Notifier) -> None:
        """The disk wakes the function."""
        self._disk.connect(notifier.wake)

    def acceptable(self, features: int) -> str | None:
        """No feature needs another one."""
        return None

    def delayable(self, queue: int) -> bool:
        """Each request."""
        return True

    def engine(self, queue: Virtqueue, memory: GuestMemory) -> Engine | None:
        """See `Device`. Requests that wait for memory of ours, or for a disk, come first."""
        store = self._disk.at_once()
        if store is None or queue.waiting or self._pending or self._stale.get(queue.index):
            return None
        engine = self._engines.get(queue.index)
        if engine is None or engine.life != queue.life or (engine.store is not store and not engine.landed):
            engine = BlockEngine(
                queue,
                memory,
                store,
                size=self._disk.size,
                unit=self._disk.shape.block,
                serial=self._serial,
            )
            self._engines[queue.index] = engine
        if engine.landed:
            return None  # `service` has yet to tell of what it did
        if engine.failed:
            self._log.error("request type %d: %s", block.T_OUT, os.strerror(engine.failed))
            engine.failed = 0
        engine.may_write = not self._disk.read_only and (self._disk.in_order or not self._durable)
        return engine

    def counters(self, queue: int | None = None) -> dict[str, int]:
        """The queues count requests and bytes."""
        return {}

    def negotiated(self, features: int) -> None:
        """A driver that will not flush has each write made durable ("Device Initialization")."""
        self._accepted = features
        self._writeback = block.WRITEBACK if features >> block.F_FLUSH & 1 else block.WRITETHROUGH

    def started(self) -> None:
        """Nothing happens by itself."""

    def reset(self) -> None:
        """Forget all requests. Jobs that the disk has begun end, before it takes any of the next driver."""
        self._forget()
        self._disk.abandon()

    def drop(self, queue: int) -> None:
        """Forget the requests of a queue. It takes none before its jobs have ended."""
        self._engines.pop(queue, None)
        self._pending = deque(request for request in self._pending if request.buffer.queue != queue)
        for request in self._started.values():
            if request.buffer.queue == queue and not request.dropped:
                request.dropped = True
                self._stale[queue] += 1

    def work_unlocked(self) -> bool:
        """See `Device`."""
        return self._disk.work_unlocked()

    def expect_quiesce(self, *, soon: bool) -> None:
        """See `Device`: a disk can make durable ahead what is written."""
        self._disk.expect_release(soon=soon)

    def quiesce(self) -> bool:
        """See `Device`: what was written is on the disk, and another host may have that."""
        try:
            return self._disk.release()
        except OSError as error:
            raise InvalidCommand(f"the disk can't be flushed: {error}") from None

    # -- configuration -----------------------------------------------------------------------------------

    def read_config(self, offset: int, length: int) -> bytes:
        """Read configuration; bytes past its end are 0."""
        at = block_config.WRITEBACK_AT
        config = self._config[:at] + bytes((self._writeback,)) + self._config[at + 1 :]
        return config[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """The driver may write `writeback`, 0 or 1, with CONFIG_WCE; all else is dropped."""
        at = block_config.WRITEBACK_AT - offset
        if self._has(block.F_CONFIG_WCE) and 0 <= at < len(data) and data[at] <= block.WRITEBACK:
            self._writeback = data[at]

    def _has(self, feature: int) -> bool:
        return bool(self._accepted >> feature & 1)

    # -- requests ----------------------------------------------------------------------------------------

    def accepts(self, queue: int) -> bool:
        """Whether the disk can be had, and nothing of the queue before its reset is under way."""
        return not self._stale.get(queue) and self._disk.ready()

    def take(self, buffer: Buffer) -> None:
        """Begin one request. Raises `BrokenQueue` if it has no header or no room for a status.

        A failed request reports 0 bytes written, as the data before the status byte was not.
        """
        header = buffer.readable.read(0, HEADER.size)
        room = buffer.writable.length - 1
        if len(header) < HEADER.size or room < 0:
            lengths = f"{buffer.readable.length} bytes to read and {buffer.writable.length} to write"
            raise BrokenQueue(f"a block request of {lengths}: its header has 16, its status needs 1")
        kind, _, sector = HEADER.unpack(header)
        plan = self._plans.get(kind)
        found = block.S_UNSUPP if plan is None else plan(buffer, sector * block.SECTOR, room)
        jobs = iter(()) if isinstance(found, int) else iter(found)
        request = Request(buffer, kind, jobs, next(jobs, None), room)
        if isinstance(found, int):
            request.status = found
        if kind == block.T_GET_ID:
            request.written = min(room, block.ID_BYTES)
        self._advance(request)

    def fail(self, buffer: Buffer) -> int:
        """See `Device`: IOERR."""
        if buffer.writable.length:
            buffer.writable.put(buffer.writable.length - 1, bytes((block.S_IOERR,)))
        return 0

    def service(self) -> None:
        """Go on with requests whose jobs have ended, and with those that wait for memory of ours.

        Raises `MemoryFault` where the guest's is gone; what it befell can be tried again.
        """
        for engine in self._engines.values():
            if engine.landed:
                engine.complete()
        self._landed.extend(self._disk.finished())
        while self._landed:
            job = self._landed[0]
            request = self._started[job]
            if request.dropped:
                self._stale[request.buffer.queue] -= 1
            elif job.error is None and job.kind is Kind.READ and job.data is not None:
                request.buffer.writable.write(request.written, [job.data])
            self._landed.popleft()
            del self._started[job]
            self._started_bytes -= job.length if job.data is not None else 0
            if request.dropped:
                continue
            if job.error is None:
                request.go_on(job)
            else:
                self._fail(request, job.error)
            self._resume(request)
        for _ in range(len(self._pending)):
            if not self._may_start():
                break
            self._resume(self._pending.popleft())

    def _resume(self, request: Request) -> None:
        try:
            self._advance(request)
        except MemoryFault:
            self._pending.appendleft(request)
            raise

    def _advance(self, request: Request) -> None:
        """Do jobs of a request until one must be started, or all are done."""
        while (job := request.job) is not None:
            views = request.views(job)
            try:
                done = self._disk.attempt(job, views)
            except OSError as error:
                self._fail(request, error)
                break
            if done:
                request.go_on(job)
            elif self._may_start():
                if self._start(request, job, views):
                    return
                break
            else:
                self._pending.append(request)
                return
        ok = request.status == block.S_OK
        written = request.written if ok and request.kind in (block.T_IN, block.T_GET_ID) else 0
        request.buffer.writable.put(request.room, bytes((request.status,)))
        request.buffer.complete(written + 1 if written == request.room else 0)

    def _may_start(self) -> bool:
        return self._started_bytes < STARTED_BYTES and self._disk.ready()

    def _start(self, request: Request, job: Job, views: list[Bytes]) -> bool:
        """Have the disk begin a job. False: there is no memory for it, and the request has failed."""
        if job.kind in (Kind.READ, Kind.WRITE):
            try:
                job.data = private(job.length)
            except MemoryError:
                self._fail(request, OSError(errno.ENOMEM, "no memory for its data"))
                return False
            self._started_bytes += job.length
        if job.kind is Kind.WRITE and job.data is not None:
            at = 0
            for view in views:
                job.data[at : at + len(view)] = view
                at += len(view)
        self._started[job] = request
        self._disk.start(job)
        return True

    def _fail(self, request: Request, error: OSError) -> None:
        self._log.error("request type %d: %s", request.kind, error)
        request.status = block.S_IOERR
        request.job = None

    # -- what a request asks for: its jobs, or the status of one that is refused or done --------------------

    def _fits(self, offset: int, length: int) -> bool:
        unit = self._disk.shape.block
        return not length % unit and not offset % unit and offset + length <= self._disk.size

    @property
    def _durable(self) -> bool:
        """Whether a write is to be stable when it completes, whatever a context said of `writeback`."""
        may_be_volatile = self._has(block.F_FLUSH) or self._has(block.F_CONFIG_WCE)
        return self._writeback == block.WRITETHROUGH or not may_be_volatile

    def _read(self, buffer: Buffer, offset: int, room: int) -> Iterable[Job] | int:
        if not self._fits(offset, room):
            return block.S_IOERR
        return pieces(Kind.READ, offset, room)

    def _write(self, buffer: Buffer, offset: int, room: int) -> Iterable[Job] | int:
        length = buffer.readable.length - HEADER.size
        if self._disk.read_only or not self._fits(offset, length):
            return block.S_IOERR
        return pieces(Kind.WRITE, offset, length, durable=self._durable)

    def _flush(self, buffer: Buffer, offset: int, room: int) -> Iterable[Job] | int:
        return (Job(Kind.FLUSH),)

    def _get_id(self, buffer: Buffer, offset: int, room: int) -> Iterable[Job] | int:
        buffer.writable.write(0, [np.frombuffer(self._serial, np.uint8)[:room]])
        return block.S_OK

    def _discard(self, buffer: Buffer, offset: int, room: int) -> Iterable[Job] | int:
        if not self._has(block.F_DISCARD):
            return block.S_UNSUPP
        return self._ranges(buffer, Kind.DISCARD, block_config.DISCARD_SECTORS, flags=0)

    def _write_zeroes(self, buffer: Buffer, offset: int, room: int) -> Iterable[Job] | int:
        if not self._has(block.F_WRITE_ZEROES):
            return block.S_UNSUPP
        return self._ranges(buffer, Kind.ZERO, block_config.ZEROES_SECTORS, flags=block.RANGE_UNMAP)

    def _ranges(self, buffer: Buffer, kind: Kind, most: int, *, flags: int) -> list[Job] | int:
        """All ranges are checked before anything is done about one."""
        length = buffer.readable.length - HEADER.size
        if length % _RANGE.size or not 0 < length <= block_config.RANGES_MAX * _RANGE.size:
            return block.S_IOERR
        ranges = list(_RANGE.iter_unpack(buffer.readable.read(HEADER.size, length)))
        if any(flag & ~flags for _, _, flag in ranges):
            return block.S_UNSUPP
        jobs = []
        for sector, count, flag in ranges:
            offset, size = sector * block.SECTOR, count * block.SECTOR
            if count > most or not self._fits(offset, size):
                return block.S_IOERR
            if count:
                unmap = bool(flag & block.RANGE_UNMAP)
                jobs.append(Job(kind, offset, size, durable=self._durable, unmap=unmap))
        return jobs

    # -- the context -------------------------------------------------------------------------------------

    def field_lengths(self) -> dict[int, int]:
        """Content travels for a disk in memory; a file is taken to be shared between hosts."""
        return dict(block_content.FIELD_LENGTHS) if isinstance(self._disk, RamDisk) else {}

    @property
    def content_size(self) -> int:
        """The size of a disk in memory."""
        return self._disk.size if isinstance(self._disk, RamDisk) else 0

    def mark(self) -> Mark:
        """See `Device`."""
        return self._disk.mark() if isinstance(self._disk, RamDisk) else Mark()

    def capture_fields(self, since: Mark | None) -> list[DeviceField]:
        """The content of a disk in memory."""
        return block_content.capture(self._disk, since) if isinstance(self._disk, RamDisk) else []

    def check(self, config: bytes, fields: list[DeviceField]) -> None:
        """Raise `InvalidField` for another configuration, or for an extent that is not on the disk."""
        block_config.check(config, self._config)
        if isinstance(self._disk, RamDisk):
            block_content.check(self._disk, fields)
        elif fields:
            raise InvalidField("disk content, but the disk here is a file")

    def encode_parts(self, state: FunctionState) -> list[Part]:
        """See `PartsOfType`: the standard has none for a block device."""
        return []

    def decode_parts(self, found: list[Part], state: FunctionState) -> None:
        """See `PartsOfType`."""

    def reserve(self, fields: list[DeviceField]) -> None:
        """The chunks of a disk in memory."""
        if isinstance(self._disk, RamDisk):
            block_content.reserve(self._disk, fields)

    def restore(self, config: bytes, fields: list[DeviceField]) -> None:
        """Take over the cache mode and the content."""
        self._writeback = config[block_config.WRITEBACK_AT]
        if isinstance(self._disk, RamDisk):
            block_content.restore(self._disk, fields)
