"""The driver's half of a packed virtqueue. virtio 1.4, "Packed Virtqueues"."""

from __future__ import annotations

import struct
from collections.abc import Sequence

from numpy import uint16, void
from numpy.typing import NDArray

from pymodel.spec import ring
from vfu_client.vfio.memory import Buffer, GuestMemory
from vfu_client.virtio.driver_queue import Added, Completion, DriverQueue, Segment

# ring.PACKED_DESC, and its words; numpy's own way to one element takes several times as long.
_DESC = struct.Struct("<QIHH")
_SIZE = _DESC.size
_LEN_ID = struct.Struct("<IH")
assert ring.PACKED_DESC.itemsize == _SIZE

_AVAIL, _USED = ring.PACKED_DESC_F_AVAIL, ring.PACKED_DESC_F_USED


class PackedQueue(DriverQueue):
    """`desc` is a view of the ring, `driver_event` and `device_event` of the event structures (offset with
    wrap counter, flags), for tests that break the rules. `add` returns the buffer id.
    """

    def _make_rings(self, memory: GuestMemory, size: int) -> tuple[Buffer, Buffer, Buffer]:
        """See `DriverQueue`."""
        self.desc_buffer = memory.allocate(size * _SIZE, ring.DESC_ALIGN)
        self.driver_buffer = memory.allocate(ring.EVENT_SUPPRESS.itemsize, ring.EVENT_ALIGN)
        self.device_buffer = memory.allocate(ring.EVENT_SUPPRESS.itemsize, ring.EVENT_ALIGN)
        self.desc: NDArray[void] = self.desc_buffer.view.view(ring.PACKED_DESC)
        self.driver_event: NDArray[uint16] = self.driver_buffer.view.view("<u2")
        self.device_event: NDArray[uint16] = self.device_buffer.view.view("<u2")
        self._bytes = self.desc_buffer.view.data
        self._flags: NDArray[uint16] = self.desc["flags"]
        # Where the next descriptor goes and where the next used one is; the wrap counter is bit 15.
        self.next = ring.START
        self.next_used = ring.START
        self._free = size
        self._ids = list(range(size - 1, -1, -1))
        self._since_kick = 0
        self._collected = 0
        return self.desc_buffer, self.driver_buffer, self.device_buffer

    def ahead(self, position: int, count: int) -> int:
        """The position `count` descriptors (at most a lap) behind `position`."""
        offset = (position & ring.OFFSET_MASK) + count
        wrap = position & ring.START
        return offset | wrap if offset < self.size else offset - self.size | wrap ^ ring.START

    @property
    def device_used_idx(self) -> int:
        """See `DriverQueue`. Looks through the used descriptors that were not collected."""
        count, position = self._collected, self.next_used
        left = dict(self._added)
        while left and self._is_used(position):
            (used_id,) = struct.unpack_from("<H", self._bytes, (position & ring.OFFSET_MASK) * _SIZE + 12)
            if used_id not in left:
                return count + 1 & 0xFFFF
            batch = list(left)[: list(left).index(used_id) + 1] if self.in_order else [used_id]
            for member in batch:
                position = self.ahead(position, len(left.pop(member).slots))
            count += len(batch)
        return count & 0xFFFF

    def flags_at(self, position: int) -> int:
        """What AVAIL and USED are in a descriptor that is made available at a position."""
        return _AVAIL if position & ring.START else _USED

    def add(
        self, readable: Sequence[Segment], writable: Sequence[Segment] = (), *, indirect: bool | None = None
    ) -> int:
        """See `DriverQueue`. The first descriptor's flags are stored last."""
        needed = self._needed(readable, writable, indirect, self._free)
        entries = _entries(readable, writable)
        buffer_id = self._ids.pop()
        if not needed:
            table = self._table(buffer_id, len(entries))
            for number, ((address, length), flags) in enumerate(entries):
                _DESC.pack_into(table.view.data, number * _SIZE, address, length, 0, flags)
            entries = [((table.address, len(entries) * _SIZE), ring.DESC_F_INDIRECT)]
        first = self.next
        first_flags = 0
        slots: list[int] = []
        for number, ((address, length), flags) in enumerate(entries, 1):
            slot = self.next & ring.OFFSET_MASK
            whole = flags | self.flags_at(self.next) | (ring.DESC_F_NEXT if number < len(entries) else 0)
            if number == 1:
                first_flags = whole
                # All but the flags.
                self._bytes[slot * _SIZE : slot * _SIZE + 14] = _DESC.pack(address, length, buffer_id, 0)[:14]
            else:
                _DESC.pack_into(self._bytes, slot * _SIZE, address, length, buffer_id, whole)
            slots.append(slot)
            self.next = self.ahead(self.next, 1)
        self._added[buffer_id] = Added(slots, sum(size for _, size in writable))
        self._free -= len(slots)
        self._since_kick += len(slots)
        self._fence()
        self._flags[first & ring.OFFSET_MASK] = first_flags
        return buffer_id

    def kick(self, *, force: bool = False) -> bool:
        """See `DriverQueue`."""
        self._fence()
        added, self._since_kick = self._since_kick, 0
        if not force:
            flags = int(self.device_event[1]) & ring.EVENT_FLAGS_MASK
            if flags == ring.EVENT_FLAGS_DISABLE:
                return False
            if flags == ring.EVENT_FLAGS_DESC:
                event = int(self.device_event[0])
                passed = (self.next & ring.OFFSET_MASK) - (event & ring.OFFSET_MASK)
                passed += self.size if (self.next ^ event) & ring.START else 0
                if not 0 < passed <= added:
                    return False
        self._notify(self.index, self.next)
        return True

    def _is_used(self, position: int) -> bool:
        both = _AVAIL | _USED
        return int(self._flags[position & ring.OFFSET_MASK]) & both == (both if position & ring.START else 0)

    def collect(self) -> list[Completion]:
        """See `DriverQueue`. Where one is refused, the queue stays there."""
        found: list[Completion] = []
        while self._added and self._is_used(self.next_used):
            self._fence()
            place = (self.next_used & ring.OFFSET_MASK) * _SIZE + ring.PACKED_LEN
            length, buffer_id = _LEN_ID.unpack_from(self._bytes, place)
            written = int(self._flags[self.next_used & ring.OFFSET_MASK]) & ring.DESC_F_WRITE
            for completion, added in self._used(buffer_id, length if written else 0):
                found.append(completion)
                self._ids.append(completion.head)
                self._free += len(added.slots)
                self._collected += 1
                self.next_used = self.ahead(self.next_used, len(added.slots))
        return found

    def ask_for_interrupt(self, count: int = 1) -> bool:
        """See `DriverQueue`."""
        at = self.next_used
        if self.event_idx:
            # A place in the ring says how many were used if each takes one.
            if count > 1 and not self.in_order and all(len(kept.slots) == 1 for kept in self._added.values()):
                at = self.ahead(at, count - 1)
            self.driver_event[0] = at
            self.driver_event[1] = ring.EVENT_FLAGS_DESC
            self._fence()
        return bool(self._added) and self._is_used(at)


def _entries(readable: Sequence[Segment], writable: Sequence[Segment]) -> list[tuple[Segment, int]]:
    """The elements of a buffer with their WRITE flags, in the order of their descriptors."""
    entries = [(segment, 0) for segment in readable]
    return entries + [(segment, ring.DESC_F_WRITE) for segment in writable]
