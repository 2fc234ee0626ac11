"""The guest's memory: shared files that devices reach at I/O virtual addresses.

Memory belongs to the machine, not to a device: attach as many connections as there are functions.
"""

from __future__ import annotations

import bisect
import mmap
import os
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import DTypeLike, NDArray

from vfu_client.vfio.connection import Connection, VfioUserError

PAGE = 4096
# What `allocate` gives out is a multiple of this, so that what is left begins at one too.
GRAIN = 16
# Where regions go that ask for no address of their own.
DEFAULT_BASE = 0x1_0000_0000

Bytes = NDArray[np.uint8]


class OutOfMemoryError(Exception):
    """No region has a free range of that size."""


@dataclass
class MemoryRegion:
    """A memfd mapped here, and at `address` for the attached devices while `mapped`.

    `view` stays valid for as long as anybody holds it, also after the region was unmapped or removed.
    """

    address: int
    size: int
    writable: bool
    fd: int
    view: Bytes
    mapped: bool = True
    free_ranges: list[tuple[int, int]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return self.address + self.size


@dataclass(slots=True)
class Buffer:
    """A range of guest memory: where the device finds it, and the driver's view of it."""

    address: int
    view: Bytes

    @property
    def size(self) -> int:
        return self.view.size

    @property
    def segment(self) -> tuple[int, int]:
        """(address, length), as descriptors want it."""
        return self.address, self.view.size

    def part(self, start: int, size: int) -> Buffer:
        """`size` bytes from `start` on, the same memory."""
        if start < 0 or size < 0 or start + size > self.size:
            raise ValueError(f"bytes {start}..{start + size} of a buffer of {self.size}")
        return Buffer(self.address + start, self.view[start : start + size])

    def array(self, dtype: DTypeLike, offset: int = 0, count: int | None = None) -> NDArray[np.generic]:
        """Elements of `dtype` from `offset` on; all that fit without `count`."""
        kind = np.dtype(dtype)
        if count is None:
            count = (self.size - offset) // kind.itemsize
        return self.view[offset : offset + count * kind.itemsize].view(kind)


class GuestMemory:
    """Regions of guest memory, an allocator over them, and the connections they are mapped to."""

    def __init__(self) -> None:
        self.regions: list[MemoryRegion] = []
        self._connections: list[Connection] = []

    def attach(self, connection: Connection) -> None:
        """Map every region to one more device; raises `VfioUserError` as `Connection.dma_map` does."""
        for region in self.regions:
            if region.mapped:
                connection.dma_map(region.fd, 0, region.address, region.size, writable=region.writable)
        self._connections.append(connection)

    def detach(self, connection: Connection) -> None:
        """Forget a connection; the mappings in its server end when it hangs up."""
        if connection in self._connections:
            self._connections.remove(connection)

    def add_region(
        self, size: int, address: int | None = None, *, writable: bool = True, allocatable: bool = True
    ) -> MemoryRegion:
        """A new region of `size` bytes, rounded up to pages, zeroed and mapped to every device.

        `address` is after all others by default. Regions that are not `allocatable` are left alone by
        `allocate`. Raises `VfioUserError` when a device refuses; the region then does not exist.
        """
        size = -(-size // PAGE) * PAGE
        if address is None:
            address = max([DEFAULT_BASE] + [region.end for region in self.regions])
        fd = os.memfd_create("guest-memory", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, size)
            view = np.frombuffer(mmap.mmap(fd, size), dtype=np.uint8)
        except BaseException:
            os.close(fd)
            raise
        region = MemoryRegion(address, size, writable, fd, view, mapped=False)
        if allocatable:
            region.free_ranges.append((address, address + size))
        try:
            self.map(region)
        except BaseException:
            os.close(fd)
            raise
        self.regions.append(region)
        return region

    def map(self, region: MemoryRegion) -> None:
        """Map a region to every device, as after `add_region`; undone where one refuses."""
        done: list[Connection] = []
        try:
            for connection in self._connections:
                connection.dma_map(region.fd, 0, region.address, region.size, writable=region.writable)
                done.append(connection)
        except VfioUserError:
            for connection in done:
                connection.dma_unmap(region.address, region.size)
            raise
        region.mapped = True

    def unmap(self, region: MemoryRegion) -> None:
        """Take a region from every device, whatever the devices do with it at the time. `map` undoes it."""
        region.mapped = False
        for connection in self._connections:
            if not connection.closed:
                connection.dma_unmap(region.address, region.size)

    def remove(self, region: MemoryRegion) -> None:
        """Unmap a region and forget it, with all that was allocated in it."""
        if region not in self.regions:
            return
        self.regions.remove(region)
        try:
            if region.mapped:
                self.unmap(region)
        finally:
            os.close(region.fd)

    def close(self) -> None:
        """Forget all regions. Devices keep their mappings until they are hung up on."""
        for region in self.regions:
            os.close(region.fd)
        self.regions.clear()
        self._connections.clear()

    def allocate(self, size: int, align: int = GRAIN) -> Buffer:
        """A zeroed buffer, at the first address that fits. Raises `OutOfMemoryError`."""
        grains = -(-size // GRAIN) * GRAIN
        for region in self.regions:
            for index, (start, end) in enumerate(region.free_ranges):
                address = -(-start // align) * align
                if address + grains <= end:
                    if start == address and address + grains < end:
                        region.free_ranges[index] = (address + grains, end)
                    else:
                        rest = [(start, address)] if start < address else []
                        if address + grains < end:
                            rest.append((address + grains, end))
                        region.free_ranges[index : index + 1] = rest
                    at = address - region.address
                    view = region.view[at : at + size]
                    view.fill(0)
                    return Buffer(address, view)
        raise OutOfMemoryError(f"no {size} free bytes of guest memory")

    def free(self, buffer: Buffer) -> None:
        """Give a buffer of `allocate` back."""
        if not buffer.size:
            return
        ranges = self._region(buffer.address, buffer.size).free_ranges
        start, end = buffer.address, buffer.address + -(-buffer.size // GRAIN) * GRAIN
        at = bisect.bisect(ranges, (start, end))
        if at < len(ranges) and ranges[at][0] == end:
            end = ranges.pop(at)[1]
        if at and ranges[at - 1][1] == start:
            at -= 1
            start = ranges.pop(at)[0]
        ranges.insert(at, (start, end))

    def buffer(self, address: int, size: int) -> Buffer:
        """The memory at an address. Raises `LookupError` where no one region has all of it."""
        region = self._region(address, size)
        start = address - region.address
        return Buffer(address, region.view[start : start + size])

    def _region(self, address: int, size: int) -> MemoryRegion:
        for region in self.regions:
            if region.address <= address and address + size <= region.end:
                return region
        raise LookupError(f"no region has {size} bytes at {address:#x}")
