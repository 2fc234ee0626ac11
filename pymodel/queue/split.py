"""The split ring, from the device's side. virtio 1.4, "Split Virtqueues"."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pymodel.errors import BrokenQueue, InvalidField
from pymodel.memory import GuestMemory
from pymodel.migration.state import QueueState
from pymodel.queue.chain import Chain, walk
from pymodel.queue.ring import Ring, RingBuffer
from pymodel.spec import ring

# ring.USED_ELEM
_USED = struct.Struct("<II")
_USED_SIZE = _USED.size

_FLAGS = ring.RING_FLAGS
_IDX = ring.RING_IDX
_ENTRIES = ring.RING_ENTRIES


class SplitRing(Ring):
    """Positions are the free-running indices of the available and the used ring."""

    name = "split"

    def __init__(
        self, index: int, *, event_idx: bool, indirect: bool, in_order: bool, long_tables: int = 0
    ) -> None:
        super().__init__(
            index, event_idx=event_idx, indirect=indirect, in_order=in_order, long_tables=long_tables
        )
        self._last_avail = 0
        self._used = 0
        # The driver's index when it was last read: what lies before it needs no other look.
        self._seen = 0

    @staticmethod
    def accepts_size(size: int) -> bool:
        """A power of 2."""
        return 0 < size <= ring.MAX_SIZE and not size & (size - 1)

    @staticmethod
    def aligned(desc: int, driver: int, device: int) -> bool:
        """See `Ring`."""
        return not (desc % ring.DESC_ALIGN or driver % ring.AVAIL_ALIGN or device % ring.USED_ALIGN)

    @property
    def last_avail(self) -> int:
        """See `Ring`."""
        return self._last_avail

    @property
    def used(self) -> int:
        """See `Ring`."""
        return self._used

    @property
    def full(self) -> bool:
        """See `Ring`."""
        return (self._last_avail - self._used) & 0xFFFF == self.size

    def capture(self, state: QueueState) -> None:
        """See `Ring`."""
        state.last_avail_idx = self._last_avail
        state.used_idx = self._used

    def check(self, state: QueueState) -> None:
        """See `Ring`."""
        if (state.last_avail_idx - state.used_idx) & 0xFFFF > state.size:
            raise InvalidField(f"queue {self.index}: more buffers outstanding than its size")

    def restore(self, state: QueueState) -> None:
        """See `Ring`."""
        self._last_avail = self._seen = state.last_avail_idx
        self._used = state.used_idx

    def find(self, memory: GuestMemory) -> None:
        """See `Ring`. A packed ring's memory does not tell: a chain overwrites only its first descriptor."""
        self._last_avail = self._seen = self._used = memory.load_u16(self.device + _IDX)

    def pending(self, memory: GuestMemory) -> bool:
        """See `Ring`. The driver's index is read when what it said last is used up."""
        if self._seen != self._last_avail:
            return True
        self._look(memory.load_u16(self.driver + _IDX))
        return self._seen != self._last_avail

    def _look(self, available: int) -> None:
        """Take note of the driver's index. Raises `BrokenQueue` for one that cannot be."""
        # What is taken and not used takes its place in the ring too.
        count = (available - self._used) & 0xFFFF
        if count > self.size or (available - self._last_avail) & 0xFFFF > count:
            raise BrokenQueue(f"queue {self.index}: {count} buffers available in a ring of {self.size}")
        self._seen = available

    def take(self, memory: GuestMemory) -> Chain:
        """See `Ring`."""
        slot = self._last_avail & (self.size - 1)
        head = memory.load_u16(self.driver + _ENTRIES + 2 * slot)
        if head >= self.size:
            raise BrokenQueue(f"queue {self.index}: descriptor {head} in a ring of {self.size}")
        chain = walk(memory, self.desc, self.size, head, self.table_max)
        self._last_avail = (self._last_avail + 1) & 0xFFFF
        return chain

    def untake(self, count: int) -> None:
        """See `Ring`."""
        self._last_avail = (self._last_avail - count) & 0xFFFF

    def publish(self, memory: GuestMemory, buffers: Sequence[RingBuffer]) -> None:
        """See `Ring`. The used index moves once. With IN_ORDER an element may close a batch: it stands at
        the place of the batch's first buffer, and says the id of the last one.
        """
        if self.in_order and len(buffers) > 1:
            first = self._used
            for number, buffer in enumerate(buffers, 1):
                if number == len(buffers) or not buffer.can_be_skipped:
                    self._write(memory, first, _USED.pack(buffer.id, min(buffer.written, 0xFFFFFFFF)))
                    first = self._used + number
        else:
            elements = [_USED.pack(buffer.id, min(buffer.written, 0xFFFFFFFF)) for buffer in buffers]
            room = self.size - (self._used & self.size - 1)
            self._write(memory, self._used, b"".join(elements[:room]))
            if len(elements) > room:
                self._write(memory, 0, b"".join(elements[room:]))
        used = (self._used + len(buffers)) & 0xFFFF
        memory.store_u16(self.device + _IDX, used)
        self._used = used
        self.unanswered += len(buffers)

    def _write(self, memory: GuestMemory, index: int, elements: bytes) -> None:
        memory.write(self.device + _ENTRIES + _USED_SIZE * (index & self.size - 1), elements)

    def wants_interrupt(self, memory: GuestMemory) -> bool:
        """See `Ring`."""
        if self.event_idx:
            event = memory.load_u16(self.driver + _ENTRIES + 2 * self.size)
            wanted = (self._used - event - 1) & 0xFFFF < self.unanswered
        else:
            wanted = not memory.load_u16(self.driver + _FLAGS) & ring.AVAIL_F_NO_INTERRUPT
        self.unanswered = 0
        return wanted

    def suppress_kicks(self, memory: GuestMemory) -> None:
        """See `Ring`. With EVENT_IDX the event word of the last round stays where it is: no kick comes until
        it is moved.
        """
        if not self.event_idx:
            memory.store_u16(self.device + _FLAGS, ring.USED_F_NO_NOTIFY)

    def ask_for_kicks(self, memory: GuestMemory) -> bool:
        """See `Ring`."""
        if self.event_idx:
            memory.store_u16(self.device + _ENTRIES + 8 * self.size, self._seen)
        else:
            memory.store_u16(self.device + _FLAGS, 0)
        memory.fence()
        available = memory.load_u16(self.driver + _IDX)
        if available == self._seen:
            return False
        if self._seen != self._last_avail:
            # Buffers were given back, and `pending` knows of those without another look.
            self._look(available)
        return True
