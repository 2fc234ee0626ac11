"""The packed ring, from the device's side. virtio 1.4, "Packed Virtqueues"."""

from __future__ import annotations

from pymodel.errors import InvalidField
from pymodel.memory import GuestMemory
from pymodel.migration.state import QueueState
from pymodel.queue import broken as why
from pymodel.queue import ring as any_ring
from pymodel.queue.broken import broken
from pymodel.queue.chain import Chain, table_length
from pymodel.queue.ring import Ring
from pymodel.spec import ring

# Compiled code has numbers of its own for these.
_SIZE = ring.PACKED_DESC.itemsize
_NEXT = ring.DESC_F_NEXT
_WRITE = ring.DESC_F_WRITE
_INDIRECT = ring.DESC_F_INDIRECT
_FLAGS = ring.PACKED_FLAGS
_LEN = ring.PACKED_LEN
_AVAIL = ring.PACKED_DESC_F_AVAIL
_USED = ring.PACKED_DESC_F_USED
_EVENT_DESC = ring.EVENT_DESC
_EVENT_FLAGS = ring.EVENT_FLAGS
_EVENT_MASK = ring.EVENT_FLAGS_MASK
_ENABLE = ring.EVENT_FLAGS_ENABLE
_DISABLE = ring.EVENT_FLAGS_DISABLE
_BY_DESC = ring.EVENT_FLAGS_DESC
_WRAP_SHIFT = ring.WRAP_SHIFT
_OFFSET = ring.OFFSET_MASK
_SKIP, _WROTE = any_ring.SKIP, any_ring.WROTE
# Of the second half of a descriptor.
_LENGTH = 0xFFFF_FFFF
_ROOM, _GAP, _NOT_ALONE = why.ROOM, why.GAP, why.NOT_ALONE


class PackedRing(Ring):
    """Positions are an offset and a wrap counter; where both are one number, the counter is its bit 15."""

    name = "packed"

    def __init__(
        self, index: int, *, event_idx: bool, indirect: bool, in_order: bool, long_tables: int = 0
    ) -> None:
        super().__init__(
            index, event_idx=event_idx, indirect=indirect, in_order=in_order, long_tables=long_tables
        )
        self._avail, self._avail_wrap = 0, 1
        self._used, self._used_wrap = 0, 1
        # Descriptors from the next one on that were seen already: taken, and given back.
        self._seen = 0
        # Descriptors taken and not used.
        self._held = 0
        self._told_flags = -1

    @staticmethod
    def aligned(desc: int, driver: int, device: int) -> bool:
        """See `Ring`."""
        return not (desc % ring.DESC_ALIGN or driver % ring.EVENT_ALIGN or device % ring.EVENT_ALIGN)

    def parts(self, size: int) -> tuple[int, int, int]:
        """See `Ring`."""
        return _SIZE * size, ring.EVENT_ALIGN, ring.EVENT_ALIGN

    @property
    def last_avail(self) -> int:
        """See `Ring`."""
        return self._avail | self._avail_wrap << ring.WRAP_SHIFT

    @property
    def used(self) -> int:
        """See `Ring`."""
        return self._used | self._used_wrap << ring.WRAP_SHIFT

    def where(self) -> str:
        """See `Ring`."""
        return f"ring position {self._avail}, wrap counter {self._avail_wrap}"

    @property
    def next_used(self) -> int:
        """The descriptor that shows the next buffer that is put, unless it shares a batch's."""
        at = self._used
        for number in range(self.completed):
            at += self._slots[number]
        return at % self.size

    @property
    def full(self) -> bool:
        """See `Ring`."""
        return self._held == self.size

    def capture(self, state: QueueState) -> None:
        """See `Ring`."""
        state.last_avail = self.last_avail
        state.last_used = self.used

    @staticmethod
    def check(state: QueueState) -> None:
        """See `Ring`."""
        if state.lost:
            raise InvalidField(f"queue {state.index}: where it is in a packed ring was not said")
        offset = max(state.last_avail & ring.OFFSET_MASK, state.last_used & ring.OFFSET_MASK)
        outstanding = between(state.last_used, state.last_avail, state.size)
        if offset >= state.size or not 0 <= outstanding <= state.size:
            raise InvalidField(
                f"queue {state.index}: positions {state.last_avail:#x} and {state.last_used:#x}"
                f" in a packed ring of {state.size}"
            )

    def restore(self, state: QueueState) -> None:
        """See `Ring`."""
        self._avail, self._avail_wrap = _parts(state.last_avail)
        self._used, self._used_wrap = _parts(state.last_used)
        self._held = between(state.last_used, state.last_avail, state.size)

    def available(self, memory: GuestMemory, offset: int, wrap: int) -> int:
        """Whether a descriptor is, by its flags and the driver's wrap counter."""
        flags = memory.word(self.desc + _SIZE * offset + _FLAGS) & (_AVAIL | _USED)
        return flags == (_AVAIL if wrap else _USED)

    def pending(self, memory: GuestMemory) -> int:
        """See `Ring`."""
        return self.available(memory, self._avail, self._avail_wrap)

    def take(self, memory: GuestMemory, chain: Chain) -> int:
        """See `Ring`. The driver made the first descriptor available last, so all of them are there."""
        chain.clear()
        offset, wrap = self._avail, self._avail_wrap
        room = self.size - self._held
        count = 0
        chain.table = self.desc
        while True:
            chain.descriptor = offset
            if count == room:
                return broken(_ROOM, room)
            address = memory.peek(self.desc + _SIZE * offset)
            rest = memory.peek(self.desc + _SIZE * offset + _LEN)
            flags = rest >> 48
            # That the first one is available was seen before its copy was made.
            if count and flags & (_AVAIL | _USED) != (_AVAIL if wrap else _USED):
                return broken(_GAP, offset)
            chain.id = rest >> 32 & 0xFFFF
            count += 1
            offset += 1
            if offset == self.size:
                offset, wrap = 0, wrap ^ 1
            if flags & _INDIRECT:
                if count > 1 or flags & _NEXT:
                    return broken(_NOT_ALONE)
                chain.add_table(memory, address, table_length(address, rest & _LENGTH, self.table_max))
                break
            chain.add(address, rest & _LENGTH, flags)
            if not flags & _NEXT:
                break
        chain.slots = count
        self._held += count
        self._avail, self._avail_wrap = offset, wrap
        self._seen = self._seen - count if self._seen > count else 0
        return 0

    def untake(self, slots: int) -> int:
        """See `Ring`."""
        self._seen += slots
        self._held -= slots
        self._avail -= slots
        if self._avail < 0:
            self._avail += self.size
            self._avail_wrap ^= 1
        return 0

    def publish(self, memory: GuestMemory) -> int:
        """See `Ring`. The flags of the first descriptor come last: the driver looks at no other one before.
        With IN_ORDER a descriptor may close a batch: it stands at the place of the batch's first buffer.
        """
        offset, wrap = self._used, self._used_wrap
        at, used = offset, _AVAIL | _USED if wrap else 0
        first = -1
        first_flags = 0
        moved = 0
        number = 0
        while number < self.completed:
            moved += self._slots[number]
            offset += self._slots[number]
            if offset >= self.size:
                offset, wrap = offset - self.size, wrap ^ 1
            number += 1
            if self.in_order and number < self.completed and self._marks[number - 1] & _SKIP:
                continue
            flags = used | _WRITE if self._marks[number - 1] & _WROTE else used
            element = self._ids[number - 1]
            element = element << 32 | self._lengths[number - 1]
            if first < 0:
                first, first_flags = at, flags
                memory.poke(self.desc + _SIZE * at + _LEN, element, 6)
            else:
                memory.poke(self.desc + _SIZE * at + _LEN, element | flags << 48, 8)
            at, used = offset, _AVAIL | _USED if wrap else 0
        memory.set_word(self.desc + _SIZE * first + _FLAGS, first_flags)
        self._used, self._used_wrap = offset, wrap
        self._held -= moved
        self.unanswered += moved
        self.completed = 0
        return 0

    def wants_interrupt(self, memory: GuestMemory) -> int:
        """See `Ring`. Flags that mean nothing here, or are reserved, count as a wish."""
        flags = memory.word(self.driver + _EVENT_FLAGS) & _EVENT_MASK
        if flags == _BY_DESC and self.event_idx:
            # How many descriptors ago it was used.
            ago = between(
                memory.word(self.driver + _EVENT_DESC), self._used | self._used_wrap << _WRAP_SHIFT, self.size
            )
            wanted = 0 < ago <= self.unanswered
        else:
            wanted = flags != _DISABLE
        self.unanswered = 0
        return wanted

    def suppress_kicks(self, memory: GuestMemory) -> int:
        """See `Ring`. With EVENT_IDX the position of the last round stays: it was passed."""
        if not self.event_idx:
            self.tell(memory, _DISABLE)
        return 0

    def ask_for_kicks(self, memory: GuestMemory) -> int:
        """See `Ring`. Where buffers were given back, the position is behind those that are there already."""
        before = self._seen
        offset, wrap = self._avail, self._avail_wrap
        while self._seen:
            offset, wrap = self._avail + self._seen, self._avail_wrap
            if offset >= self.size:
                offset, wrap = offset - self.size, wrap ^ 1
            if self._held + self._seen >= self.size or not self.available(memory, offset, wrap):
                break
            self._seen += 1
        if self.event_idx:
            memory.set_word(self.device + _EVENT_DESC, offset | wrap << _WRAP_SHIFT)
            self.tell(memory, _BY_DESC)
        else:
            self.tell(memory, _ENABLE)
        memory.barrier()
        return self._seen > before or self.available(memory, offset, wrap)

    def tell(self, memory: GuestMemory, flags: int) -> int:
        """Set the flags of the device's event structure, where they are not what is there."""
        if self._told_flags != flags:
            memory.set_word(self.device + _EVENT_FLAGS, flags)
            self._told_flags = flags
        return 0


def _parts(position: int) -> tuple[int, int]:
    return position & ring.OFFSET_MASK, position >> ring.WRAP_SHIFT


def between(start: int, end: int, size: int) -> int:
    """How many descriptors `end` is ahead of `start` (both with their wrap counters), less than a lap or two.

    Negative where the two cannot belong together.
    """
    distance = (end & _OFFSET) - (start & _OFFSET)
    return distance if not (start ^ end) >> _WRAP_SHIFT else distance + size
