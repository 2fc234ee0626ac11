"""Descriptor chains of a split virtqueue.

virtio 1.4, "The Virtqueue Descriptor Table". The guest may change a descriptor at any time: each is
copied once, and the copy is checked and used.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

from pymodel.errors import BrokenQueue
from pymodel.memory import GuestMemory
from pymodel.spec import ring

# ring.DESC, taken apart without numpy's cost for each field.
_DESC = struct.Struct("<QIHH")

# A driver must not make a chain of more bytes than this ("Descriptor Table", driver normative); it also
# keeps a used element's 32-bit length true.
MAX_BYTES = 1 << 32


@dataclass(slots=True)
class Chain:
    """The two parts of a chain as (address, length) pairs."""

    readable: list[tuple[int, int]] = field(default_factory=list)
    writable: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0

    def add(self, address: int, length: int, flags: int) -> None:
        """Append a descriptor. Raises `BrokenQueue` if it is readable after a writable one, or too long."""
        if flags & ring.DESC_F_WRITE:
            self.writable.append((address, length))
        elif self.writable:
            raise BrokenQueue("a device-readable descriptor follows a device-writable one")
        else:
            self.readable.append((address, length))
        self.size += length
        if self.size > MAX_BYTES:
            raise BrokenQueue("a descriptor chain of more than 2^32 bytes")


def walk(memory: GuestMemory, table: int, size: int, head: int, *, indirect: bool) -> Chain:
    """Follow the chain that starts at descriptor `head` of a table of `size` descriptors.

    Raises `BrokenQueue` for a chain that loops, leaves its table or breaks another rule, `MemoryFault`
    for a table that is not mapped.
    """
    chain = Chain()
    index = head
    for _ in range(size):
        if index >= size:
            raise BrokenQueue(f"descriptor {index} lies outside a table of {size}")
        address, length, flags, following = _DESC.unpack(memory.read(table + index * _DESC.size, _DESC.size))
        if flags & ring.DESC_F_INDIRECT:
            if not indirect:
                raise BrokenQueue("an indirect descriptor, but INDIRECT_DESC was not negotiated")
            if flags & ring.DESC_F_NEXT:
                raise BrokenQueue("a descriptor with both INDIRECT and NEXT")
            _walk_indirect(memory, address, length, size, chain)
            return chain
        chain.add(address, length, flags)
        if not flags & ring.DESC_F_NEXT:
            return chain
        index = following
    raise BrokenQueue(f"a descriptor chain longer than its queue of {size}")


def _walk_indirect(memory: GuestMemory, table: int, length: int, limit: int, chain: Chain) -> None:
    """Follow an indirect table. It may hold no more descriptors than the queue, so that the walk ends."""
    count, rest = divmod(length, _DESC.size)
    if rest or not 0 < count <= limit:
        raise BrokenQueue(f"an indirect table of {length} bytes for a queue of {limit}")
    descriptors = list(_DESC.iter_unpack(memory.read(table, length)))
    index = 0
    for _ in range(count):
        if index >= count:
            raise BrokenQueue(f"descriptor {index} lies outside an indirect table of {count}")
        address, size, flags, following = descriptors[index]
        if flags & ring.DESC_F_INDIRECT:
            raise BrokenQueue("an indirect descriptor inside an indirect table")
        chain.add(address, size, flags)
        if not flags & ring.DESC_F_NEXT:
            return
        index = following
    raise BrokenQueue(f"an indirect chain longer than its table of {count}")
