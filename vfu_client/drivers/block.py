"""A virtio-blk driver with several requests in flight. virtio 1.4, "Block Device"."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pymodel.spec import block
from vfu_client.drivers.driver import Driver
from vfu_client.vfio.connection import DEFAULT_TIMEOUT
from vfu_client.vfio.memory import Buffer, Bytes
from vfu_client.vfio.pci import field_range
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

FEATURES = frozenset(
    {
        block.F_SIZE_MAX,
        block.F_SEG_MAX,
        block.F_RO,
        block.F_BLK_SIZE,
        block.F_FLUSH,
        block.F_TOPOLOGY,
        block.F_CONFIG_WCE,
        block.F_MQ,
        block.F_DISCARD,
        block.F_WRITE_ZEROES,
    }
)
# The types whose data the device reads.
_DATA_OUT = (block.T_OUT, block.T_DISCARD, block.T_WRITE_ZEROES)

# What the status byte holds until the device writes it.
NO_STATUS = 0xFF


class BlockError(Exception):
    """A request that the device answered with IOERR, UNSUPP or nothing; `status` is its answer."""

    def __init__(self, status: int) -> None:
        self.status = status
        names = {block.S_IOERR: "IOERR", block.S_UNSUPP: "UNSUPP"}
        super().__init__(f"block request failed: {names.get(status, hex(status))}")


@dataclass
class BlockRequest:
    """One request: `status` is None until it has completed."""

    type: int
    sector: int
    head: int
    queue: int
    frame: Buffer
    data: Buffer | None
    owns_data: bool
    status: int | None = None

    def check(self) -> None:
        """Raise `BlockError` unless the request succeeded."""
        if self.status != block.S_OK:
            raise BlockError(NO_STATUS if self.status is None else self.status)


class BlockDriver(Driver):
    """Drives a block function. Made ready to run by the constructor, on `queues` request queues."""

    def __init__(
        self,
        device: VirtioPci,
        *,
        queues: int = 1,
        queue_size: int | None = None,
        use_msix: bool = True,
        features: frozenset[int] = KNOWN_FEATURES | FEATURES,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        super().__init__(device, wanted=features, use_msix=use_msix, timeout=timeout)
        self.queues: list[DriverQueue] = [
            device.setup_queue(index, size=queue_size) for index in range(queues)
        ]
        device.driver_ok()
        self._requests: dict[tuple[int, int], BlockRequest] = {}

    @property
    def capacity(self) -> int:
        """The size of the disk in sectors of 512 bytes."""
        return int.from_bytes(self.device.config_field(block.CONFIG, "capacity"), "little")

    @property
    def writeback(self) -> bool:
        """Whether a write may be volatile until the next flush."""
        return bool(self.device.config_read(*field_range(block.CONFIG, "writeback")))

    @writeback.setter
    def writeback(self, on: bool) -> None:
        offset, size = field_range(block.CONFIG, "writeback")
        self.device.config_write(offset, size, int(on))

    @property
    def in_flight(self) -> int:
        """Requests that were submitted and have not completed."""
        return len(self._requests)

    # One at a time.

    def read(self, sector: int, sectors: int = 1) -> Bytes:
        """Read whole sectors. Raises `BlockError` and `TimeoutError`."""
        return self._fetch(block.T_IN, sector, sectors * block.SECTOR)

    def write(self, sector: int, data: bytes | Bytes) -> None:
        """Write whole sectors. Raises `BlockError` and `TimeoutError`."""
        self._send(block.T_OUT, sector, np.frombuffer(data, np.uint8))

    def flush(self) -> None:
        """Have the disk keep what was written. Raises `BlockError` and `TimeoutError`."""
        self.finish(self.submit(block.T_FLUSH, 0, None))

    def discard(self, *ranges: tuple[int, int]) -> None:
        """Give up (sector, sectors): they then hold anything. Raises `BlockError` and `TimeoutError`."""
        self._send_ranges(block.T_DISCARD, ranges, 0)

    def write_zeroes(self, *ranges: tuple[int, int], unmap: bool = False) -> None:
        """Make (sector, sectors) 0, with `unmap` by freeing them. Raises `BlockError` and `TimeoutError`."""
        self._send_ranges(block.T_WRITE_ZEROES, ranges, block.RANGE_UNMAP if unmap else 0)

    def get_id(self) -> bytes:
        """The disk's serial number, without padding. Raises `BlockError` and `TimeoutError`."""
        return self._fetch(block.T_GET_ID, 0, block.ID_BYTES).tobytes().rstrip(b"\0")

    def _send_ranges(self, kind: int, ranges: Sequence[tuple[int, int]], flags: int) -> None:
        data = np.array([(sector, count, flags) for sector, count in ranges], block.RANGE)
        self._send(kind, 0, data.view(np.uint8))

    def _send(self, kind: int, sector: int, data: Bytes) -> None:
        buffer = self.device.memory.allocate(data.size)
        buffer.view[:] = data
        self.finish(self.submit(kind, sector, buffer, owns_data=True))

    def _fetch(self, kind: int, sector: int, size: int) -> Bytes:
        """What the device puts into a buffer of `size` bytes; after `TimeoutError` it may still do so."""
        data = self.device.memory.allocate(size)
        request = self.submit(kind, sector, data)
        try:
            self.finish(request)
            return data.view.copy()
        finally:
            if request.status is not None:
                self.device.memory.free(data)

    # Several in flight.

    def submit(
        self,
        kind: int,
        sector: int,
        data: Buffer | None,
        *,
        queue: int = 0,
        owns_data: bool = False,
        kick: bool = True,
    ) -> BlockRequest:
        """Put a request on a queue. Raises `QueueFullError`, and then nothing was submitted.

        `data` must stay until the request has completed; with `owns_data` it is freed then.
        """
        frame = self.device.memory.allocate(block.REQUEST.itemsize + 1)
        frame.view[: block.REQUEST.itemsize].view(block.REQUEST)[0] = (kind, 0, sector)
        frame.view[-1] = NO_STATUS
        readable = [(frame.address, block.REQUEST.itemsize)]
        status = [(frame.address + block.REQUEST.itemsize, 1)]
        payload = [] if data is None else [data.segment]
        if kind in _DATA_OUT:
            readable, writable = readable + payload, status
        else:
            writable = payload + status
        try:
            head = self.queues[queue].add(readable, writable)
        except BaseException:
            self.device.memory.free(frame)
            raise
        request = BlockRequest(kind, sector, head, queue, frame, data, owns_data)
        self._requests[queue, head] = request
        if kick:
            self.queues[queue].kick()
        return request

    def finish(self, request: BlockRequest, timeout: float | None = None) -> None:
        """Wait until a request has completed. Raises `BlockError`, `TimeoutError` if it has not."""
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        while request.status is None:
            self.completions(max(deadline - time.monotonic(), 0), queue=request.queue)
        request.check()

    def completions(self, timeout: float | None = None, *, queue: int = 0) -> list[BlockRequest]:
        """Wait until at least one request of a queue has completed, and take all that have.

        Raises `TimeoutError`. Their statuses are the caller's to look at.
        """
        done = []
        for completion in self.queues[queue].wait(self.timeout if timeout is None else timeout):
            request = self._requests.pop((queue, completion.head))
            request.status = int(request.frame.view[-1])
            self.device.memory.free(request.frame)
            if request.owns_data and request.data is not None:
                self.device.memory.free(request.data)
            done.append(request)
        return done
