"""The driver's half of a split virtqueue. virtio 1.4, "Split Virtqueues"."""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence

from numpy import uint16, void
from numpy.typing import NDArray

from pymodel.spec import ring
from vfu_client.driver_queue import (
    Added,
    Completion,
    DriverQueue,
    QueueFullError,
    Segment,
    Waitable,
    entries_of,
)
from vfu_client.memory import GuestMemory

# ring.DESC and ring.USED_ELEM: numpy's own way to one element takes several times as long.
_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
assert (_DESC.size, _USED.size) == (ring.DESC.itemsize, ring.USED_ELEM.itemsize)


class SplitQueue(DriverQueue):
    """`desc`, `avail`, `used` are views of the rings for tests that break the rules. Index words are 16-bit
    loads and stores.
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
        in_order: bool = False,
    ) -> None:
        super().__init__(
            memory,
            index,
            size,
            notify=notify,
            interrupt=interrupt,
            event_idx=event_idx,
            indirect=indirect,
            in_order=in_order,
        )
        self.desc_buffer = memory.allocate(size * ring.DESC.itemsize, ring.DESC_ALIGN)
        self.avail_buffer = memory.allocate(ring.RING_ENTRIES + 2 * size + 2, ring.AVAIL_ALIGN)
        used_size = ring.RING_ENTRIES + ring.USED_ELEM.itemsize * size + 2
        self.used_buffer = memory.allocate(used_size, ring.USED_ALIGN)
        self.parts = (self.desc_buffer, self.avail_buffer, self.used_buffer)
        self.desc: NDArray[void] = self.desc_buffer.view.view(ring.DESC)
        self.avail: NDArray[uint16] = self.avail_buffer.view.view("<u2")
        self.used: NDArray[uint16] = self.used_buffer.view.view("<u2")
        self._desc_bytes = self.desc_buffer.view.data
        self._used_bytes = self.used_buffer.view.data
        # The next one at the end. With IN_ORDER they come back in the order of the table.
        self._free = list(range(size - 1, -1, -1))
        self._avail_idx = 0
        self._kicked_idx = 0
        self._used_idx = 0

    @property
    def device_used_idx(self) -> int:
        """The used index as the device published it last."""
        return int(self.used[ring.RING_IDX // 2])

    def add(
        self, readable: Sequence[Segment], writable: Sequence[Segment] = (), *, indirect: bool | None = None
    ) -> int:
        """See `DriverQueue`. Returns the first descriptor of the chain."""
        needed = self._needed(readable, writable, indirect)
        if len(self._free) < (needed or 1):
            raise QueueFullError(
                f"queue {self.index}: {len(self._free)} free descriptors, {needed or 1} needed"
            )
        slots = [self._free.pop() for _ in range(needed or 1)]
        head = slots[0]
        entries = entries_of(readable, writable)
        if needed:
            _fill(self._desc_bytes, slots, entries)
        else:
            table = self._table(head, len(entries))
            _fill(table.view.data, range(len(entries)), entries)
            length = len(entries) * _DESC.size
            place = head * _DESC.size
            _DESC.pack_into(self._desc_bytes, place, table.address, length, ring.DESC_F_INDIRECT, 0)
        self._added[head] = Added(slots, sum(size for _, size in writable))
        self.publish(head)
        return head

    def publish(self, head: int) -> None:
        """Put any number into the available ring, and advance its index."""
        self.avail[ring.RING_ENTRIES // 2 + self._avail_idx % self.size] = head
        self._fence()
        self._avail_idx = (self._avail_idx + 1) & 0xFFFF
        self.avail[ring.RING_IDX // 2] = self._avail_idx

    def kick(self, *, force: bool = False) -> bool:
        """See `DriverQueue`."""
        self._fence()
        old, new = self._kicked_idx, self._avail_idx
        self._kicked_idx = new
        if not force:
            if self.event_idx:
                event = int(self.used[-1])
                if not (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF:
                    return False
            elif int(self.used[ring.RING_FLAGS]) & ring.USED_F_NO_NOTIFY:
                return False
        self._notify(self.index, new)
        return True

    def collect(self) -> list[Completion]:
        """See `DriverQueue`. An entry that is refused is consumed."""
        found: list[Completion] = []
        published = self.device_used_idx
        self._fence()
        while self._used_idx != published:
            at = ring.RING_ENTRIES + self._used_idx % self.size * _USED.size
            head, length = _USED.unpack_from(self._used_bytes, at)
            self._used_idx = (self._used_idx + 1) & 0xFFFF
            done = self._used(head, length)
            self._used_idx = (self._used_idx + len(done) - 1) & 0xFFFF
            for completion, added in done:
                found.append(completion)
                if self.in_order:
                    self._free[:0] = reversed(added.slots)
                else:
                    self._free.extend(reversed(added.slots))
        return found

    def ask_for_interrupt(self) -> bool:
        """See `DriverQueue`."""
        if self.event_idx:
            self.avail[-1] = self._used_idx
            self._fence()
        return self.device_used_idx != self._used_idx


def _fill(table: memoryview, slots: Sequence[int], entries: Sequence[tuple[Segment, int]]) -> None:
    """Write a chain of descriptors into the given slots of a table."""
    last = len(entries) - 1
    for at, ((address, length), flags) in enumerate(entries):
        if at == last:
            _DESC.pack_into(table, slots[at] * _DESC.size, address, length, flags, 0)
        else:
            chained = flags | ring.DESC_F_NEXT
            _DESC.pack_into(table, slots[at] * _DESC.size, address, length, chained, slots[at + 1])
