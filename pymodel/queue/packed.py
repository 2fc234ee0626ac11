"""The packed ring, from the device's side. virtio 1.4, "Packed Virtqueues"."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from pymodel.errors import BrokenQueue, InvalidField
from pymodel.memory import GuestMemory
from pymodel.migration.state import QueueState
from pymodel.queue.chain import Chain, read_table
from pymodel.queue.ring import Ring, RingBuffer
from pymodel.spec import ring

# ring.PACKED_DESC; the parts of it that make a used descriptor, with and without flags.
_DESC = struct.Struct("<QIHH")
_SIZE = _DESC.size
_USED = struct.Struct("<IHH")
_USED_BUT_FLAGS = struct.Struct("<IH")

_NEXT = ring.DESC_F_NEXT
_WRITE = ring.DESC_F_WRITE
_INDIRECT = ring.DESC_F_INDIRECT
_FLAGS = ring.PACKED_FLAGS
_LEN = ring.PACKED_LEN
_BOTH = ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED
# What these two bits are in an available descriptor, by the driver's wrap counter.
_AVAILABLE = (ring.PACKED_DESC_F_USED, ring.PACKED_DESC_F_AVAIL)

# Descriptors that are copied at once: a request is a header, data, and a status.
_AHEAD = 4


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
        # Of the next descriptor, when `pending` looked.
        self._flags = 0
        self._told_flags = -1

    @staticmethod
    def aligned(desc: int, driver: int, device: int) -> bool:
        """See `Ring`."""
        return not (desc % ring.DESC_ALIGN or driver % ring.EVENT_ALIGN or device % ring.EVENT_ALIGN)

    @property
    def last_avail(self) -> int:
        """See `Ring`."""
        return self._avail | self._avail_wrap << ring.WRAP_SHIFT

    @property
    def used(self) -> int:
        """See `Ring`."""
        return self._used | self._used_wrap << ring.WRAP_SHIFT

    @property
    def full(self) -> bool:
        """See `Ring`."""
        return self._held == self.size

    def capture(self, state: QueueState) -> None:
        """See `Ring`."""
        state.last_avail = self.last_avail
        state.last_used = self.used

    def check(self, state: QueueState) -> None:
        """See `Ring`."""
        if state.lost:
            raise InvalidField(f"queue {self.index}: where it is in a packed ring was not said")
        offset = max(state.last_avail & ring.OFFSET_MASK, state.last_used & ring.OFFSET_MASK)
        outstanding = _between(state.last_used, state.last_avail, state.size)
        if offset >= state.size or not 0 <= outstanding <= state.size:
            raise InvalidField(
                f"queue {self.index}: positions {state.last_avail:#x} and {state.last_used:#x}"
                f" in a packed ring of {state.size}"
            )

    def restore(self, state: QueueState) -> None:
        """See `Ring`."""
        self._avail, self._avail_wrap = _parts(state.last_avail)
        self._used, self._used_wrap = _parts(state.last_used)
        self._held = _between(state.last_used, state.last_avail, state.size)

    def _available(self, memory: GuestMemory, offset: int, wrap: int) -> bool:
        return memory.load_u16(self.desc + _SIZE * offset + _FLAGS) & _BOTH == _AVAILABLE[wrap]

    def pending(self, memory: GuestMemory) -> bool:
        """See `Ring`."""
        place = self.desc + _SIZE * self._avail + _FLAGS
        self._flags = memory.load_u16(place)
        return self._flags & _BOTH == _AVAILABLE[self._avail_wrap]

    def take(self, memory: GuestMemory) -> Chain:
        """See `Ring`. The driver made the first descriptor available last, so all of them are there."""
        chain = Chain()
        size, offset, wrap = self.size, self._avail, self._avail_wrap
        room = size - self._held
        copied: list[tuple[int, int, int, int]] = []
        count = 0
        while True:
            if count == room:
                raise BrokenQueue(f"queue {self.index}: a chain of more than the {room} free descriptors")
            if not copied:
                ahead = min(_AHEAD, size - offset) if self._flags & _NEXT else 1
                raw = memory.read(self.desc + _SIZE * offset, _SIZE * ahead)
                copied = list(_DESC.iter_unpack(raw))
                copied.reverse()
            address, length, chain.id, flags = copied.pop()
            # That the first one is available was seen before its copy was made.
            if count and flags & _BOTH != _AVAILABLE[wrap]:
                raise BrokenQueue(f"queue {self.index}: a chain goes on in descriptor {offset}")
            count += 1
            offset += 1
            if offset == size:
                offset, wrap = 0, wrap ^ 1
            if flags & _INDIRECT:
                if count > 1 or flags & _NEXT:
                    raise BrokenQueue("an indirect descriptor in a chain of a packed ring")
                table = read_table(memory, address, length, self.table_max)
                for address, length, _, flags in table:
                    chain.add(address, length, flags)
                break
            chain.add(address, length, flags)
            if not flags & _NEXT:
                break
        chain.count = count
        self._held += count
        self._avail, self._avail_wrap = offset, wrap
        self._seen = max(0, self._seen - count)
        return chain

    def untake(self, count: int) -> None:
        """See `Ring`."""
        self._seen += count
        self._held -= count
        self._avail -= count
        if self._avail < 0:
            self._avail += self.size
            self._avail_wrap ^= 1

    def publish(self, memory: GuestMemory, buffers: Sequence[RingBuffer]) -> None:
        """See `Ring`. The flags of the first descriptor come last: the driver looks at no other one before.
        With IN_ORDER a descriptor may close a batch: it stands at the place of the batch's first buffer.
        """
        size, offset, wrap = self.size, self._used, self._used_wrap
        at, used = offset, _BOTH if wrap else 0
        first = -1
        first_flags = 0
        moved = 0
        for number, buffer in enumerate(buffers, 1):
            moved += buffer.count
            offset += buffer.count
            if offset >= size:
                offset, wrap = offset - size, wrap ^ 1
            if self.in_order and number < len(buffers) and buffer.can_be_skipped:
                continue
            written = min(buffer.written, 0xFFFFFFFF)
            # A status behind data that was not written counts too, though the length says nothing of it.
            flags = used | _WRITE if written or buffer.writable.written else used
            place = self.desc + _SIZE * at
            if first < 0:
                first, first_flags = place, flags
                memory.write(place + _LEN, _USED_BUT_FLAGS.pack(written, buffer.id))
            else:
                memory.write(place + _LEN, _USED.pack(written, buffer.id, flags))
            at, used = offset, _BOTH if wrap else 0
        memory.store_u16(first + _FLAGS, first_flags)
        self._used, self._used_wrap = offset, wrap
        self._held -= moved
        self.unanswered += moved

    def wants_interrupt(self, memory: GuestMemory) -> bool:
        """See `Ring`. Flags that mean nothing here, or are reserved, count as a wish."""
        flags = memory.load_u16(self.driver + ring.EVENT_FLAGS) & ring.EVENT_FLAGS_MASK
        if flags == ring.EVENT_FLAGS_DESC and self.event_idx:
            event = memory.load_u16(self.driver + ring.EVENT_DESC)
            # How many descriptors ago it was used.
            wanted = 0 < _between(event, self.used, self.size) <= self.unanswered
        else:
            wanted = flags != ring.EVENT_FLAGS_DISABLE
        self.unanswered = 0
        return wanted

    def suppress_kicks(self, memory: GuestMemory) -> None:
        """See `Ring`. With EVENT_IDX the position of the last round stays: it was passed."""
        if not self.event_idx:
            self._tell(memory, ring.EVENT_FLAGS_DISABLE)

    def ask_for_kicks(self, memory: GuestMemory) -> bool:
        """See `Ring`."""
        edge, wrap, news = self._avail, self._avail_wrap, False
        if self._seen:
            edge, wrap, news = self._look_ahead(memory)
        if self.event_idx:
            memory.store_u16(self.device + ring.EVENT_DESC, edge | wrap << ring.WRAP_SHIFT)
            self._tell(memory, ring.EVENT_FLAGS_DESC)
        else:
            self._tell(memory, ring.EVENT_FLAGS_ENABLE)
        memory.fence()
        return news or self._available(memory, edge, wrap)

    def _look_ahead(self, memory: GuestMemory) -> tuple[int, int, bool]:
        """Buffers were given back: where those end that the driver has made available, as offset and wrap
        counter, and whether some of them are new.
        """
        before = self._seen
        while True:
            offset, wrap = self._avail + self._seen, self._avail_wrap
            if offset >= self.size:
                offset, wrap = offset - self.size, wrap ^ 1
            if self._held + self._seen >= self.size or not self._available(memory, offset, wrap):
                return offset, wrap, self._seen > before
            self._seen += 1

    def _tell(self, memory: GuestMemory, flags: int) -> None:
        """Set the flags of the device's event structure, where they are not what is there."""
        if self._told_flags != flags:
            memory.store_u16(self.device + ring.EVENT_FLAGS, flags)
            self._told_flags = flags


def _parts(position: int) -> tuple[int, int]:
    return position & ring.OFFSET_MASK, position >> ring.WRAP_SHIFT


def _between(start: int, end: int, size: int) -> int:
    """How many descriptors `end` is ahead of `start` (both with their wrap counters), less than a lap or two.

    Negative where the two cannot belong together.
    """
    distance = (end & ring.OFFSET_MASK) - (start & ring.OFFSET_MASK)
    return distance if not (start ^ end) >> ring.WRAP_SHIFT else distance + size
