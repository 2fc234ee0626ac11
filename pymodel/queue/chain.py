"""Descriptor chains: what a buffer consists of.

virtio 1.4, "The Virtqueue Descriptor Table" (split) and "The Virtqueue Descriptor Format" (packed). The
guest may change a descriptor at any time: each is copied once, and the copy is checked and used.
"""

from __future__ import annotations

import struct

from pymodel.errors import BrokenQueue
from pymodel.memory import GuestMemory
from pymodel.spec import ring

# ring.DESC and ring.PACKED_DESC, taken apart without numpy's cost for each field.
_DESC = struct.Struct("<QIHH")
_SIZE = _DESC.size

_NEXT = ring.DESC_F_NEXT
_WRITE = ring.DESC_F_WRITE
_INDIRECT = ring.DESC_F_INDIRECT

# A driver must not make a chain of more bytes than this ("Descriptor Table", driver normative); it also
# keeps a used element's 32-bit length true.
MAX_BYTES = 1 << 32


class Chain:
    """The two parts of a chain as (address, length) pairs, and how many bytes they are.

    `id` is what tells the driver which buffer was used; `count` is how far the chain reaches in its ring.
    """

    __slots__ = ("count", "id", "readable", "readable_size", "writable", "writable_size")

    def __init__(self) -> None:
        self.id = 0
        self.count = 1
        self.readable: list[tuple[int, int]] = []
        self.writable: list[tuple[int, int]] = []
        self.readable_size = 0
        self.writable_size = 0

    @property
    def size(self) -> int:
        """Bytes in all."""
        return self.readable_size + self.writable_size

    def add(self, address: int, length: int, flags: int) -> None:
        """Append a descriptor. Raises `BrokenQueue` if it is readable after a writable one, or too long."""
        if flags & _WRITE:
            self.writable.append((address, length))
            self.writable_size += length
        elif self.writable:
            raise BrokenQueue("a device-readable descriptor follows a device-writable one")
        else:
            self.readable.append((address, length))
            self.readable_size += length
        if self.readable_size + self.writable_size > MAX_BYTES:
            raise BrokenQueue("a descriptor chain of more than 2^32 bytes")


def walk(memory: GuestMemory, table: int, size: int, head: int, table_max: int) -> Chain:
    """Follow the chain that starts at descriptor `head` of a split queue's table of `size` descriptors.

    `table_max` is that of `read_table`. Raises `BrokenQueue` for a chain that loops, leaves its table or
    breaks another rule, `MemoryFault` for a table that is not mapped.
    """
    chain = Chain()
    chain.id = index = head
    for _ in range(size):
        if index >= size:
            raise BrokenQueue(f"descriptor {index} lies outside a table of {size}")
        address, length, flags, following = _DESC.unpack(memory.read(table + index * _SIZE, _SIZE))
        if flags & _INDIRECT:
            if flags & _NEXT:
                raise BrokenQueue("a descriptor with both INDIRECT and NEXT")
            _walk_table(read_table(memory, address, length, table_max), chain)
            return chain
        chain.add(address, length, flags)
        if not flags & _NEXT:
            return chain
        index = following
    raise BrokenQueue(f"a descriptor chain longer than its queue of {size}")


def read_table(
    memory: GuestMemory, table: int, length: int, table_max: int
) -> list[tuple[int, int, int, int]]:
    """Copy an indirect table. It may hold no more than `table_max` descriptors, so that a walk ends.

    Raises `BrokenQueue` for a table of another length, or where `table_max` is 0: none may come.
    """
    if not table_max:
        raise BrokenQueue("an indirect descriptor, but INDIRECT_DESC was not negotiated")
    count, rest = divmod(length, _SIZE)
    if rest or not 0 < count <= table_max:
        raise BrokenQueue(f"an indirect table of {length} bytes, where {table_max} descriptors may be")
    return list(_DESC.iter_unpack(memory.read(table, length)))


def _walk_table(descriptors: list[tuple[int, int, int, int]], chain: Chain) -> None:
    """Follow a split queue's indirect table."""
    count = len(descriptors)
    index = 0
    for _ in range(count):
        if index >= count:
            raise BrokenQueue(f"descriptor {index} lies outside an indirect table of {count}")
        address, size, flags, following = descriptors[index]
        if flags & _INDIRECT:
            raise BrokenQueue("an indirect descriptor inside an indirect table")
        chain.add(address, size, flags)
        if not flags & _NEXT:
            return
        index = following
    raise BrokenQueue(f"an indirect chain longer than its table of {count}")
