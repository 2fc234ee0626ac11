"""The split ring, from the device's side. virtio 1.4, "Split Virtqueues"."""

from __future__ import annotations

from pymodel.errors import InvalidField
from pymodel.memory import GuestMemory
from pymodel.migration.state import QueueState
from pymodel.queue import broken as why
from pymodel.queue import ring as any_ring
from pymodel.queue.broken import broken
from pymodel.queue.chain import Chain
from pymodel.queue.ring import Ring
from pymodel.spec import ring

# Compiled code has numbers of its own for these.
_USED_SIZE = ring.USED_ELEM.itemsize
_FLAGS = ring.RING_FLAGS
_IDX = ring.RING_IDX
_ENTRIES = ring.RING_ENTRIES
_NO_INTERRUPT = ring.AVAIL_F_NO_INTERRUPT
_NO_NOTIFY = ring.USED_F_NO_NOTIFY
_SKIP = any_ring.SKIP
_AVAILABLE, _HEAD = why.AVAILABLE, why.HEAD


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

    def parts(self, size: int) -> tuple[int, int, int]:
        """See `Ring`. The event words count too, whether they are used or not."""
        return 16 * size, _ENTRIES + 2 * size + 2, _ENTRIES + _USED_SIZE * size + 2

    @property
    def last_avail(self) -> int:
        """See `Ring`."""
        return self._last_avail

    @property
    def used(self) -> int:
        """See `Ring`."""
        return self._used

    def where(self) -> str:
        """See `Ring`."""
        return f"ring position {self._last_avail}"

    @property
    def full(self) -> bool:
        """See `Ring`."""
        return (self._last_avail - self._used) & 0xFFFF == self.size

    def capture(self, state: QueueState) -> None:
        """See `Ring`."""
        state.last_avail_idx = self._last_avail
        state.used_idx = self._used

    @staticmethod
    def check(state: QueueState) -> None:
        """See `Ring`."""
        if (state.last_avail_idx - state.used_idx) & 0xFFFF > state.size:
            raise InvalidField(f"queue {state.index}: more buffers outstanding than its size")

    def restore(self, state: QueueState) -> None:
        """See `Ring`."""
        self._last_avail = self._seen = state.last_avail_idx
        self._used = state.used_idx

    def find(self, memory: GuestMemory) -> None:
        """See `Ring`. A packed ring's memory does not tell: a chain overwrites only its first descriptor."""
        self._last_avail = self._seen = self._used = memory.load_u16(self.device + _IDX)

    def pending(self, memory: GuestMemory) -> int:
        """See `Ring`. The driver's index is read when what it said last is used up."""
        if self._seen == self._last_avail:
            self.look(memory.word(self.driver + _IDX))
        return self._seen != self._last_avail

    def look(self, available: int) -> int:
        """Take note of the driver's index. Raises `BrokenQueue` for one that cannot be."""
        # What is taken and not used takes its place in the ring too.
        count = (available - self._used) & 0xFFFF
        if count > self.size or (available - self._last_avail) & 0xFFFF > count:
            return broken(_AVAILABLE, count, self.size)
        self._seen = available
        return 0

    def take(self, memory: GuestMemory, chain: Chain) -> int:
        """See `Ring`."""
        head = memory.word(self.driver + _ENTRIES + 2 * (self._last_avail & (self.size - 1)))
        if head >= self.size:
            return broken(_HEAD, head, self.size)
        chain.walk(memory, self.desc, self.size, head, self.table_max)
        self._last_avail = (self._last_avail + 1) & 0xFFFF
        return 0

    def untake(self, slots: int) -> int:
        """See `Ring`."""
        self._last_avail = (self._last_avail - slots) & 0xFFFF
        return 0

    def publish(self, memory: GuestMemory) -> int:
        """See `Ring`. The used index moves once. With IN_ORDER an element may close a batch: it stands at
        the place of the batch's first buffer, and says the id of the last one.
        """
        first = self._used
        number = 0
        while number < self.completed:
            if not self.in_order or number == self.completed - 1 or not self._marks[number] & _SKIP:
                element = self._lengths[number]
                element = element << 32 | self._ids[number]
                memory.poke(self.device + _ENTRIES + _USED_SIZE * (first & (self.size - 1)), element, 8)
                first = self._used + number + 1
            number += 1
        first = (self._used + self.completed) & 0xFFFF
        memory.set_word(self.device + _IDX, first)
        self._used = first
        self.unanswered += self.completed
        self.completed = 0
        return 0

    def wants_interrupt(self, memory: GuestMemory) -> int:
        """See `Ring`."""
        if self.event_idx:
            event = memory.word(self.driver + _ENTRIES + 2 * self.size)
            wanted = (self._used - event - 1) & 0xFFFF < self.unanswered
        else:
            wanted = not memory.word(self.driver + _FLAGS) & _NO_INTERRUPT
        self.unanswered = 0
        return wanted

    def suppress_kicks(self, memory: GuestMemory) -> int:
        """See `Ring`. With EVENT_IDX the event word of the last round stays where it is: no kick comes until
        it is moved.
        """
        if not self.event_idx:
            memory.set_word(self.device + _FLAGS, _NO_NOTIFY)
        return 0

    def ask_for_kicks(self, memory: GuestMemory) -> int:
        """See `Ring`."""
        if self.event_idx:
            memory.set_word(self.device + _ENTRIES + _USED_SIZE * self.size, self._seen)
        else:
            memory.set_word(self.device + _FLAGS, 0)
        memory.barrier()
        available = memory.word(self.driver + _IDX)
        if available == self._seen:
            return 0
        if self._seen != self._last_avail:
            # Buffers were given back, and `pending` knows of those without another look.
            self.look(available)
        return 1
