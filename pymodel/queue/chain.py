"""Descriptor chains: what a buffer consists of.

virtio 1.4, "The Virtqueue Descriptor Table" (split) and "The Virtqueue Descriptor Format" (packed). The
guest may change a descriptor at any time: each is copied once, and the copy is checked and used.
"""

from __future__ import annotations

from array import array

from pymodel.memory import GuestMemory
from pymodel.queue import broken as why
from pymodel.queue.broken import beyond, broken
from pymodel.spec import ring

# Compiled code has numbers of its own for these.
_SIZE = ring.DESC.itemsize
_NEXT = ring.DESC_F_NEXT
_WRITE = ring.DESC_F_WRITE
_INDIRECT = ring.DESC_F_INDIRECT
_OUTSIDE, _LOOP, _BOTH, _OUTSIDE_TABLE = why.OUTSIDE, why.LOOP, why.BOTH, why.OUTSIDE_TABLE
_TABLE_LOOP, _NESTED, _ORDER, _LONG, _NO_TABLES, _TABLE = (
    why.TABLE_LOOP,
    why.NESTED,
    why.ORDER,
    why.LONG,
    why.NO_TABLES,
    why.TABLE,
)

# A driver must not make a chain of more bytes than this ("Descriptor Table", driver normative); it also
# keeps a used element's 32-bit length true.
_MAX_BYTES = 1 << 32
_LAST_ADDRESS = 0xFFFF_FFFF_FFFF_FFFF
# Of the second half of a descriptor.
_LENGTH = 0xFFFF_FFFF

# Segments that there is room for at first.
_ROOM = 64


class Chain:
    """A chain, made once and filled anew for each buffer: `count` segments, of which `readable_count` come
    first.

    `addresses` and `lengths` have the segments. `id` is what tells the driver which buffer was used; `slots`
    is how far the chain reaches in its ring. `wraps`: a segment reaches past the last address, so a part of
    the chain cannot be mapped.

    `table` is the address of the descriptors that were looked at last, `descriptor` the number of the last
    one in it.
    """

    def __init__(self) -> None:
        self.addresses = array("Q", bytes(8 * _ROOM))
        self.lengths = array("I", bytes(4 * _ROOM))
        self.room = _ROOM
        self.clear()

    def clear(self) -> int:
        """Begin anew."""
        self.id = 0
        self.slots = 1
        self.count = 0
        self.readable_count = 0
        self.readable_size = 0
        self.writable_size = 0
        self.wraps = False
        self.table = 0
        self.descriptor = 0
        return 0

    @property
    def readable(self) -> list[tuple[int, int]]:
        """The device-readable part as (address, length) pairs."""
        return self.pairs(0, self.readable_count)

    @property
    def writable(self) -> list[tuple[int, int]]:
        """The device-writable part as (address, length) pairs."""
        return self.pairs(self.readable_count, self.count)

    def pairs(self, first: int, end: int) -> list[tuple[int, int]]:
        """Segments from number `first` to before `end`."""
        return [(self.addresses[number], self.lengths[number]) for number in range(first, end)]

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.readable_size + self.writable_size

    def add(self, address: int, length: int, flags: int) -> int:
        """Append a descriptor. Raises `BrokenQueue` if it is readable after a writable one, or too long."""
        if self.count == self.room:
            self.grow()
        if flags & _WRITE:
            self.writable_size += length
        elif self.count > self.readable_count:
            return broken(_ORDER)
        else:
            self.readable_count += 1
            self.readable_size += length
        if self.readable_size + self.writable_size > _MAX_BYTES:
            return broken(_LONG)
        if length and address > _LAST_ADDRESS - (length - 1):
            self.wraps = True
        self.addresses[self.count] = address
        self.lengths[self.count] = length
        self.count += 1
        return 0

    def grow(self) -> int:
        """Have room for twice as many. Tables bound how often."""
        addresses, lengths = self.addresses, self.lengths
        self.addresses = array("Q", bytes(16 * self.room))
        self.lengths = array("I", bytes(8 * self.room))
        for number in range(self.room):
            self.addresses[number] = addresses[number]
            self.lengths[number] = lengths[number]
        self.room *= 2
        return 0

    def walk(self, memory: GuestMemory, table: int, size: int, head: int, table_max: int) -> int:
        """Take up the chain that starts at descriptor `head` of a split queue's table of `size` descriptors.

        `table_max` is that of `table_length`. Raises `BrokenQueue` for a chain that loops, leaves its table
        or breaks another rule, `MemoryFault` for a descriptor that is not mapped.
        """
        self.clear()
        self.id = head
        return self.follow(memory, table, size, head, table_max, False)

    def follow(
        self, memory: GuestMemory, table: int, size: int, index: int, table_max: int, nested: bool
    ) -> int:
        """Append what descriptor `index` of a table begins. `nested`: one in which there may be no other."""
        left = size
        self.table = table
        while left:
            self.descriptor = index
            if index >= size:
                return broken(_OUTSIDE_TABLE if nested else _OUTSIDE, index, size)
            address = memory.peek(table + index * _SIZE)
            rest = memory.peek(table + index * _SIZE + 8)
            flags = rest >> 32 & 0xFFFF
            if flags & _INDIRECT:
                if nested:
                    return broken(_NESTED)
                if flags & _NEXT:
                    return broken(_BOTH)
                count = table_length(address, rest & _LENGTH, table_max)
                return self.follow(memory, address, count, 0, 0, True)
            self.add(address, rest & _LENGTH, flags)
            if not flags & _NEXT:
                return 0
            index = rest >> 48
            left -= 1
        return broken(_TABLE_LOOP if nested else _LOOP, size)

    def add_table(self, memory: GuestMemory, table: int, count: int) -> int:
        """Append a packed queue's indirect table of `count` descriptors, which has all of them in a row."""
        index = 0
        self.table = table
        while index < count:
            self.descriptor = index
            address = memory.peek(table + index * _SIZE)
            rest = memory.peek(table + index * _SIZE + 8)
            self.add(address, rest & _LENGTH, rest >> 48)
            index += 1
        return 0


def table_length(table: int, length: int, table_max: int) -> int:
    """How many descriptors an indirect table of `length` bytes holds: at most `table_max`, so that a walk
    ends.

    Raises `BrokenQueue` for a table of another length, or where `table_max` is 0: none may come.
    """
    if not table_max:
        return broken(_NO_TABLES)
    count = length // _SIZE
    if length % _SIZE or not 0 < count <= table_max:
        return broken(_TABLE, length, table_max)
    if table > _LAST_ADDRESS - (length - 1):
        return beyond(table, length)
    return count
