"""What can be wrong with a ring or a chain, in words: for code that has no strings where it finds it."""

from __future__ import annotations

from typing import Final

from pymodel.errors import BrokenQueue, MemoryFault

(
    OUTSIDE,
    LOOP,
    BOTH,
    OUTSIDE_TABLE,
    TABLE_LOOP,
    NESTED,
    ORDER,
    LONG,
    NO_TABLES,
    TABLE,
    AVAILABLE,
    HEAD,
    ROOM,
    GAP,
    NOT_ALONE,
) = range(15)

_REASONS: Final = {
    OUTSIDE: "descriptor {0} lies outside a table of {1}",
    LOOP: "a descriptor chain longer than its queue of {0}",
    BOTH: "a descriptor with both INDIRECT and NEXT",
    OUTSIDE_TABLE: "descriptor {0} lies outside an indirect table of {1}",
    TABLE_LOOP: "an indirect chain longer than its table of {0}",
    NESTED: "an indirect descriptor inside an indirect table",
    ORDER: "a device-readable descriptor follows a device-writable one",
    LONG: "a descriptor chain of more than 2^32 bytes",
    NO_TABLES: "an indirect descriptor, but INDIRECT_DESC was not negotiated",
    TABLE: "an indirect table of {0} bytes, where {1} descriptors may be",
    AVAILABLE: "{0} buffers available in a ring of {1}",
    HEAD: "the available ring names descriptor {0} in a ring of {1}",
    ROOM: "a chain of more than the {0} free descriptors",
    GAP: "a chain goes on in descriptor {0}, which is not available",
    NOT_ALONE: "an indirect descriptor in a chain of a packed ring",
}

RING_REASONS: Final = (AVAILABLE, HEAD)
"""Those that are about the ring, and no chain was looked at."""


def broken(reason: int, first: int = 0, second: int = 0) -> int:
    """Raise `BrokenQueue` for a reason of the table, with its numbers."""
    error = BrokenQueue(_REASONS[reason].format(first, second))
    error.reason = reason
    raise error


def beyond(address: int, length: int) -> int:
    """Raise `MemoryFault` for a range that wraps around."""
    raise MemoryFault(f"guest memory at {address:#x} + {length:#x} wraps around")
