"""Guest memory as the model sees it, and the device's view of one virtqueue element.

Addresses are guest physical (or what the client mapped at that I/O virtual address). Views are numpy
arrays of bytes over the mapped memory, looked up for each access and never kept: the client may unmap
memory between two messages. Nothing here trusts a length or an address.
"""

from __future__ import annotations

import ctypes
from array import array
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]

HOW_TO_SHARE = (
    "with QEMU: -object memory-backend-memfd,id=mem,size=...,share=on -machine q35,memory-backend=mem"
)


_MOST = 1024


class Vectors:
    """Pieces of the process's own memory, as readv(2) and its like take them.

    `pieces` has an address and a length in bytes for each of the `count`; there can be no more than `MOST`.
    `size` is how many bytes they are in all, `sealed` the number of those that nothing is joined to.
    """

    MOST = _MOST

    def __init__(self) -> None:
        self.pieces = array("Q", bytes(16 * _MOST))
        self.clear()

    def clear(self) -> int:
        """Begin anew."""
        self.count = self.sealed = 0
        self.size = 0
        return 0

    def seal(self) -> int:
        """Whatever comes now begins a piece of its own."""
        self.sealed = self.count
        return 0

    def cut(self, count: int) -> int:
        """Leave the first `count` pieces."""
        while self.count > count:
            self.count -= 1
            self.size -= self.pieces[2 * self.count + 1]
        return 0

    def add(self, place: int, length: int) -> int:
        """Append a piece. Whether there was room for it."""
        if self.count == _MOST:
            return 0
        self.pieces[2 * self.count] = place
        self.pieces[2 * self.count + 1] = length
        self.count += 1
        self.size += length
        return 1


class GuestMemory:
    """The memory that a client mapped. Each method raises `MemoryFault` where it is not (wholly) mapped.

    Whoever implements it has `view`, `is_mapped`, `load_u16`, `store_u16` and `fence`; the other methods are
    made of those. Rings and engines, which are compiled to run without the interpreter, call those at the
    end: `word` and what follows. They take addresses of 64 bits, and come back to the methods ahead of them
    unless a class that is compiled too has better ones.
    """

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        """Byte views that cover [address, address + length), in order, one for each mapped region crossed.

        Without `write` they are read-only. An access of no bytes gives no views.
        """
        raise NotImplementedError

    def views(
        self, segments: Sequence[tuple[int, int]], start: int, length: int, *, write: bool
    ) -> list[Bytes]:
        """The same for [start, start + length) of a scatter-gather list of (address, length), cut at its end.

        Segments that follow each other in memory are covered together.
        """
        found: list[Bytes] = []
        for address, size in runs(segments, start, length):
            found += self.view(address, size, write=write)
        return found

    def read(self, address: int, length: int) -> bytes:
        """Copy `length` bytes out; for small structures, where a view would cost more than the copy."""
        views = self.view(address, length, write=False)
        return b"".join(view.tobytes() for view in views)

    def write(self, address: int, data: bytes) -> None:
        """Copy `data` in; for small structures. Raises with nothing written."""
        start = 0
        for view in self.view(address, len(data), write=True):
            view[:] = np.frombuffer(data, np.uint8)[start : start + len(view)]
            start += len(view)

    def is_mapped(self, address: int, length: int) -> bool:
        """Whether any of [address, address + length), which is within 2**64, is memory, shared or not."""
        raise NotImplementedError

    def load_u16(self, address: int) -> int:
        """One aligned 16-bit load with acquire order."""
        raise NotImplementedError

    def store_u16(self, address: int, value: int) -> None:
        """One aligned 16-bit store with release order."""
        raise NotImplementedError

    def fence(self) -> None:
        """A full barrier: no load after it is done before a store ahead of it."""
        raise NotImplementedError

    # -- without the interpreter --------------------------------------------------------------------------

    def word(self, address: int) -> int:
        """`load_u16`."""
        return self.load_u16(address)

    def set_word(self, address: int, value: int) -> int:
        """`store_u16`."""
        self.store_u16(address, value)
        return 0

    def barrier(self) -> int:
        """`fence`."""
        self.fence()
        return 0

    def peek(self, address: int) -> int:
        """Eight bytes, at any address and in no order, as a little-endian number."""
        return int.from_bytes(self.read(address, 8), "little")

    def poke(self, address: int, value: int, length: int) -> int:
        """The low `length` bytes of a little-endian number, 8 at most, at any address and in no order."""
        self.write(address, value.to_bytes(8, "little")[:length])
        return 0

    def copy_in(self, address: int, place: int, length: int) -> int:
        """Copy `length` bytes of the process's own memory at `place` to guest memory. Raises with nothing
        written.
        """
        self.write(address, ctypes.string_at(place, length))
        return 0

    def copy_out(self, address: int, place: int, length: int) -> int:
        """Copy `length` bytes of guest memory to the process's own at `place`. May fault half-way."""
        ctypes.memmove(place, self.read(address, length), length)
        return 0

    def places(self, address: int, length: int, write: bool, found: Vectors) -> int:
        """Where in the process's own memory the bytes of a range are, for a system call: added to `found`, as
        far as there is room.
        """
        for view in self.view(address, length, write=write):
            found.add(place_of(view), len(view))
        return 0

    def spread(self, place: int, length: int, found: Vectors, first: int) -> int:
        """Copy `length` bytes of the process's own memory to pieces from number `first` on."""
        while length:
            count = min(length, found.pieces[2 * first + 1])
            ctypes.memmove(found.pieces[2 * first], place, count)
            place += count
            length -= count
            first += 1
        return 0

    def collect(self, place: int, length: int, found: Vectors, first: int) -> int:
        """Copy `length` bytes to the process's own memory from pieces from number `first` on."""
        while length:
            count = min(length, found.pieces[2 * first + 1])
            ctypes.memmove(place, found.pieces[2 * first], count)
            place += count
            length -= count
            first += 1
        return 0


def place_of(data: Bytes) -> int:
    """Where an array begins in the process's own memory."""
    place: int = data.__array_interface__["data"][0]
    return place


def runs(segments: Sequence[tuple[int, int]], start: int, length: int) -> list[tuple[int, int]]:
    """[start, start + length) of a scatter-gather list, as (address, length) with what is adjacent joined."""
    found: list[tuple[int, int]] = []
    first = end = 0
    for address, size in segments:
        if length <= 0:
            break
        if start >= size:
            start -= size
            continue
        count = min(size - start, length)
        if end != first and address + start == end:
            end += count
        else:
            if end != first:
                found.append((first, end - first))
            first = address + start
            end = first + count
        length -= count
        start = 0
    if end != first:
        found.append((first, end - first))
    return found


class Segments:
    """A scatter-gather list in guest memory, read and written as if it were one run of bytes.

    `length` is the sum of the segments' lengths, `written` whether anything was written there, or may have
    been through views to write to. Memory is looked up when it is touched.
    """

    __slots__ = ("_memory", "_segments", "length", "written")

    def __init__(
        self, memory: GuestMemory, segments: Sequence[tuple[int, int]], length: int | None = None
    ) -> None:
        """`length` is for those who know it already."""
        self._memory = memory
        self._segments = segments
        self.length = sum(size for _, size in segments) if length is None else length
        self.written = False

    def views(self, start: int, length: int, *, write: bool) -> list[Bytes]:
        """Byte views of [start, start + length), cut at the end of the list. Raises `MemoryFault`."""
        found = self._memory.views(self._segments, start, length, write=write)
        if write and found:
            self.written = True
        return found

    def probe(self, *, write: bool) -> None:
        """Raise `MemoryFault` unless all of the list can be accessed now."""
        self._memory.views(self._segments, 0, self.length, write=write)

    def read(self, start: int, length: int) -> bytes:
        """Copy up to `length` bytes out from `start` on, to the end of the list. Raises `MemoryFault`."""
        parts = []
        for address, size in self._segments:
            if length <= 0:
                break
            if start >= size:
                start -= size
                continue
            count = min(size - start, length)
            parts.append(self._memory.read(address + start, count))
            length -= count
            start = 0
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def put(self, start: int, data: bytes) -> int:
        """As `write`, for a few bytes."""
        at = start
        for address, size in self._segments:
            if at < size:
                if at + len(data) <= size:
                    self._memory.write(address + at, data)
                    self.written = True
                    return len(data)
                break
            at -= size
        return self.write(start, [np.frombuffer(data, np.uint8)])

    def write(self, start: int, sources: Sequence[Bytes]) -> int:
        """Copy `sources`, one after another, to `start` and on; surplus is dropped.

        Returns how many bytes fitted. Each byte is copied once. Raises `MemoryFault` with nothing written.
        """
        targets = iter(self.views(start, sum(len(source) for source in sources), write=True))
        target = next(targets, None)
        written = 0
        for source in sources:
            at = 0
            while target is not None and at < len(source):
                count = min(len(source) - at, len(target))
                target[:count] = source[at : at + count]
                at += count
                written += count
                target = target[count:] if count < len(target) else next(targets, None)
            if target is None:
                break
        return written


class Buffer:
    """One virtqueue element that the driver made available: a readable part, then a writable part.

    Whoever took it calls `complete` exactly once, now or later, or gives it back. Buffers of a queue have
    methods of its own; this one stands alone, and `complete` calls what it was made with.
    """

    __slots__ = ("_complete", "queue", "readable", "writable")

    def __init__(
        self, queue: int, readable: Segments, writable: Segments, complete: Callable[[int], None]
    ) -> None:
        self.queue = queue
        self.readable = readable
        self.writable = writable
        self._complete = complete

    def complete(self, written: int) -> None:
        """The device is done with it; `written` bytes were written from the start of the writable part on."""
        self._complete(written)

    def next(self) -> Buffer | None:
        """The next buffer that the driver made available on the same queue, taken too; None if there is none.

        Raises `BrokenQueue`.
        """
        return None

    @property
    def ring_is_full(self) -> bool:
        """Whether what was taken and not completed is all that the ring holds: the driver can add no more."""
        return False

    def give_back(self) -> None:
        """As if it had never been taken. Only the buffer taken last: several go back in reverse order.

        The queue then has its next turn when the driver adds to it, when its consumer accepts again after it
        did not, or by `Notifier.resume`. Raises RuntimeError for any other buffer.
        """
        raise RuntimeError("a buffer of no queue")


class Consumer(Protocol):
    """What takes the buffers of a queue: a device, or the admin queue."""

    def accepts(self, queue: int) -> bool:
        """Whether a buffer of `queue` can be taken now. If not, the queue waits until `Function.service`."""
        ...

    def take(self, buffer: Buffer) -> None:
        """Take a buffer and complete it, now or later and in any order, or give it back.

        Raises `BrokenQueue`, the buffer untaken, and with it those that were taken as its `next`.
        """
        ...

    def service(self) -> None:
        """Go on with buffers that were taken and not completed. Raises `BrokenQueue`."""
        ...

    def drop(self, queue: int) -> None:
        """`queue` was reset: forget its buffers, which complete into nothing."""
        ...

    def reset(self) -> None:
        """The function was reset: forget everything that does not outlive it."""
        ...
