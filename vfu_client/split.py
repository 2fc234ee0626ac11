"""The driver's half of a split virtqueue. virtio 1.4, "Split Virtqueues"."""

from __future__ import annotations

import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import ring
from vfu_client.memory import Buffer, GuestMemory

Segment = tuple[int, int]

# Descriptors that a kept indirect table has at least, so that requests of a kind reuse it.
INDIRECT_TABLE = 16


# ring.DESC and ring.USED_ELEM.
_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
assert (_DESC.size, _USED.size) == (ring.DESC.itemsize, ring.USED_ELEM.itemsize)


class QueueFullError(Exception):
    """Not enough free descriptors; nothing was added."""


class QueueBrokenError(Exception):
    """The device published something that it was not given."""


class Waitable(Protocol):
    """What a queue needs of its interrupt."""

    def wait(self, timeout: float) -> int: ...

    def drain(self) -> int: ...


@dataclass(slots=True)
class Completion:
    """A chain that the device has used: its first descriptor, and how many bytes were written to it."""

    head: int
    length: int


class SplitQueue:
    """Rings of one queue in guest memory, and what the driver must remember about them.

    `desc`, `avail`, `used` are views of the rings for tests that break the rules. Index words are
    16-bit loads and stores; publishing relies on the machine's store order (x86) and on `_fence`.
    """

    def __init__(
        self,
        memory: GuestMemory,
        index: int,
        size: int,
        *,
        notify: Callable[[int, int], None],
        interrupt: Waitable | None = None,
        event_idx: bool = False,
        indirect: bool = False,
    ) -> None:
        self.index = index
        self.size = size
        self.interrupt = interrupt
        self.event_idx = event_idx
        self.indirect = indirect
        self._memory = memory
        self._notify = notify
        self._lock = threading.Lock()
        self.desc_buffer = memory.allocate(size * ring.DESC.itemsize, ring.DESC_ALIGN)
        self.avail_buffer = memory.allocate(ring.RING_ENTRIES + 2 * size + 2, ring.AVAIL_ALIGN)
        used_size = ring.RING_ENTRIES + ring.USED_ELEM.itemsize * size + 2
        self.used_buffer = memory.allocate(used_size, ring.USED_ALIGN)
        self.desc: NDArray[np.void] = self.desc_buffer.view.view(ring.DESC)
        self.avail: NDArray[np.uint16] = self.avail_buffer.view.view("<u2")
        self.used: NDArray[np.uint16] = self.used_buffer.view.view("<u2")
        # The same once more: numpy's own way to one element takes several times as long.
        self._desc_bytes = self.desc_buffer.view.data
        self._used_bytes = self.used_buffer.view.data
        self._avail_words = self.avail_buffer.view.data.cast("H")
        self._used_words = self.used_buffer.view.data.cast("H")
        self._free = list(range(size - 1, -1, -1))
        self._chains: dict[int, list[int]] = {}
        self._tables: dict[int, Buffer] = {}
        self._avail_idx = 0
        self._kicked_idx = 0
        self._used_idx = 0

    @property
    def in_flight(self) -> int:
        """Chains that were added and not collected."""
        return len(self._chains)

    @property
    def device_used_idx(self) -> int:
        """The used index as the device published it last, collected or not."""
        return self._used_words[ring.RING_IDX // 2]

    def add(
        self, readable: Sequence[Segment], writable: Sequence[Segment] = (), *, indirect: bool | None = None
    ) -> int:
        """Make a chain of buffers available, and return its head. The device is not told: see `kick`.

        Raises `QueueFullError`. With indirect descriptors a chain of two or more takes one slot.
        """
        total = len(readable) + len(writable)
        if not total:
            raise ValueError("a chain needs at least one buffer")
        table = self.indirect and total > 1 if indirect is None else indirect
        if len(self._free) < (1 if table else total):
            raise QueueFullError(f"queue {self.index}: {len(self._free)} free descriptors, {total} needed")
        slots = [self._free.pop() for _ in range(1 if table else total)]
        head = slots[0]
        if table:
            buffer = self._table(head, total)
            _fill(buffer.view.data, range(total), readable, writable)
            _DESC.pack_into(
                self._desc_bytes,
                head * _DESC.size,
                buffer.address,
                total * _DESC.size,
                ring.DESC_F_INDIRECT,
                0,
            )
        else:
            _fill(self._desc_bytes, slots, readable, writable)
        self._chains[head] = slots
        self.publish(head)
        return head

    def publish(self, head: int) -> None:
        """Put any number into the available ring, and advance its index."""
        words = self._avail_words
        words[ring.RING_ENTRIES // 2 + self._avail_idx % self.size] = head
        self._fence()
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        words[ring.RING_IDX // 2] = self._avail_idx

    def kick(self, *, force: bool = False) -> bool:
        """Notify the device of what was added, where it wants to know; says whether it was notified."""
        self._fence()
        old, new = self._kicked_idx, self._avail_idx
        self._kicked_idx = new
        if not force:
            if self.event_idx:
                event = self._used_words[-1]
                if not (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF:
                    return False
            elif self._used_words[ring.RING_FLAGS] & ring.USED_F_NO_NOTIFY:
                return False
        self._notify(self.index, new)
        return True

    def collect(self) -> list[Completion]:
        """All chains that the device has used since the last time; never waits.

        Raises `QueueBrokenError` for a head that was not available; that entry is consumed.
        """
        done: list[Completion] = []
        published = self.device_used_idx
        self._fence()
        while self._used_idx != published:
            at = ring.RING_ENTRIES + self._used_idx % self.size * _USED.size
            head, length = _USED.unpack_from(self._used_bytes, at)
            self._used_idx = (self._used_idx + 1) & 0xFFFF
            slots = self._chains.pop(head, None)
            if slots is None:
                raise QueueBrokenError(f"queue {self.index}: used entry for descriptor {head}, not in flight")
            self._free.extend(reversed(slots))
            done.append(Completion(head, length))
        return done

    def wait(self, timeout: float, count: int = 1) -> list[Completion]:
        """Block on the interrupt until something was used. Raises `TimeoutError` and `QueueBrokenError`.

        With `count` the device is asked to tell only of that many, where it can be (EVENT_IDX); there must
        be as many in flight.
        """
        if self.interrupt is None:
            raise ValueError(f"queue {self.index} has no interrupt to wait for")
        deadline = time.monotonic() + timeout
        while True:
            done = self.collect()
            if done:
                return done
            if self.event_idx:
                self._avail_words[-1] = (self._used_idx + count - 1) & 0xFFFF
                self._fence()
                if (self.device_used_idx - self._used_idx) & 0xFFFF >= count:
                    continue
            try:
                self.interrupt.wait(deadline - time.monotonic())
            except TimeoutError:
                done = self.collect()
                if done:
                    return done
                raise TimeoutError(
                    f"queue {self.index}: nothing used within {timeout:.3g} s, {self.in_flight} in flight"
                ) from None

    def free(self) -> None:
        """Give the rings' memory back; the device must not use the queue any more."""
        for table in self._tables.values():
            self._memory.free(table)
        self._tables.clear()
        for buffer in (self.desc_buffer, self.avail_buffer, self.used_buffer):
            self._memory.free(buffer)

    def _table(self, head: int, total: int) -> Buffer:
        """The indirect table that belongs to a slot, grown where it is too short."""
        table = self._tables.get(head)
        if table is None or table.size < total * ring.DESC.itemsize:
            if table is not None:
                self._memory.free(table)
            table = self._memory.allocate(max(total, INDIRECT_TABLE) * ring.DESC.itemsize, ring.DESC_ALIGN)
            self._tables[head] = table
        return table

    def _fence(self) -> None:
        """Order what was stored before what is loaded after: taking a lock is a locked instruction on x86."""
        with self._lock:
            pass


def _fill(
    table: memoryview, slots: Sequence[int], readable: Sequence[Segment], writable: Sequence[Segment]
) -> None:
    """Write a chain of descriptors into the given slots of a table."""
    last = len(slots) - 1
    flags, following, at = ring.DESC_F_NEXT, 0, 0
    for part in (readable, writable):
        for address, length in part:
            if at < last:
                following = slots[at + 1]
            else:
                flags, following = flags & ~ring.DESC_F_NEXT, 0
            _DESC.pack_into(table, slots[at] * _DESC.size, address, length, flags, following)
            at += 1
        flags |= ring.DESC_F_WRITE
