"""The driver's half of a split virtqueue. virtio 1.4, "Split Virtqueues"."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from numpy import uint16, void
from numpy.typing import NDArray

from pymodel.spec import ring
from vfu_client.vfio.memory import Buffer, GuestMemory
from vfu_client.virtio.driver_queue import Added, Completion, DriverQueue, Segment

# ring.DESC and ring.USED_ELEM.
_DESC = struct.Struct("<QIHH")
_USED = struct.Struct("<II")
assert (_DESC.size, _USED.size) == (ring.DESC.itemsize, ring.USED_ELEM.itemsize)


class SplitQueue(DriverQueue):
    """`desc`, `avail`, `used` are views of the rings for tests that break the rules. Index words are 16-bit
    loads and stores.
    """

    def _make_rings(self, memory: GuestMemory, size: int) -> tuple[Buffer, Buffer, Buffer]:
        """See `DriverQueue`."""
        self.desc_buffer = memory.allocate(size * ring.DESC.itemsize, ring.DESC_ALIGN)
        self.avail_buffer = memory.allocate(ring.RING_ENTRIES + 2 * size + 2, ring.AVAIL_ALIGN)
        used_size = ring.RING_ENTRIES + ring.USED_ELEM.itemsize * size + 2
        self.used_buffer = memory.allocate(used_size, ring.USED_ALIGN)
        self.desc: NDArray[void] = self.desc_buffer.view.view(ring.DESC)
        self.avail: NDArray[uint16] = self.avail_buffer.view.view("<u2")
        self.used: NDArray[uint16] = self.used_buffer.view.view("<u2")
        # The same once more: numpy's own way to one element takes several times as long.
        self._desc_bytes = self.desc_buffer.view.data
        self._used_bytes = self.used_buffer.view.data
        self._avail_words = self.avail_buffer.view.data.cast("H")
        self._used_words = self.used_buffer.view.data.cast("H")
        # The next one at the end. With IN_ORDER they come back in the order of the table.
        self._free = list(range(size - 1, -1, -1))
        self._avail_idx = 0
        self._kicked_idx = 0
        self._used_idx = 0
        return self.desc_buffer, self.avail_buffer, self.used_buffer

    @property
    def device_used_idx(self) -> int:
        """The used index as the device published it last."""
        return self._used_words[ring.RING_IDX // 2]

    def add(
        self, readable: Sequence[Segment], writable: Sequence[Segment] = (), *, indirect: bool | None = None
    ) -> int:
        """See `DriverQueue`. Returns the first descriptor of the chain."""
        needed = self._needed(readable, writable, indirect, len(self._free))
        slots = [self._free.pop() for _ in range(needed or 1)]
        head = slots[0]
        if needed:
            _fill(self._desc_bytes, slots, readable, writable)
        else:
            total = len(readable) + len(writable)
            table = self._table(head, total)
            _fill(table.view.data, range(total), readable, writable)
            place = head * _DESC.size
            length = total * _DESC.size
            _DESC.pack_into(self._desc_bytes, place, table.address, length, ring.DESC_F_INDIRECT, 0)
        self._added[head] = Added(slots, sum(size for _, size in writable))
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
        """See `DriverQueue`."""
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

    def ask_for_interrupt(self, count: int = 1) -> bool:
        """See `DriverQueue`."""
        if not self.event_idx:
            return self.device_used_idx != self._used_idx
        self._avail_words[-1] = (self._used_idx + count - 1) & 0xFFFF
        self._fence()
        return (self.device_used_idx - self._used_idx) & 0xFFFF >= count


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
