"""Virtqueues: layouts and flags. virtio 1.4, "Split Virtqueues" and "Packed Virtqueues"."""

from __future__ import annotations

import numpy as np

MAX_SIZE = 32768

DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("flags", "<u2"), ("next", "<u2")])
DESC_F_NEXT = 1
DESC_F_WRITE = 2
DESC_F_INDIRECT = 4

AVAIL_F_NO_INTERRUPT = 1
USED_F_NO_NOTIFY = 1
USED_ELEM = np.dtype([("id", "<u4"), ("len", "<u4")])

# Of a legacy driver's queue: what its address is counted in, and what its used ring is aligned to.
LEGACY_PAGE = 4096

# Offsets in the available and the used ring: flags, idx, ring[], then the event word.
RING_FLAGS = 0
RING_IDX = 2
RING_ENTRIES = 4

DESC_ALIGN = 16
AVAIL_ALIGN = 2
USED_ALIGN = 4

PACKED_DESC = np.dtype([("addr", "<u8"), ("len", "<u4"), ("id", "<u2"), ("flags", "<u2")])
# Offsets in it.
PACKED_LEN = 8
PACKED_FLAGS = 14
PACKED_DESC_F_AVAIL = 1 << 7
PACKED_DESC_F_USED = 1 << 15

EVENT_SUPPRESS = np.dtype([("desc", "<u2"), ("flags", "<u2")])
# Offsets in it.
EVENT_DESC = 0
EVENT_FLAGS = 2
EVENT_ALIGN = 4
EVENT_FLAGS_MASK = 3
EVENT_FLAGS_ENABLE = 0
EVENT_FLAGS_DISABLE = 1
EVENT_FLAGS_DESC = 2

# A position in a packed ring, as event structures, notifications and contexts have it: the wrap counter is
# the highest bit.
WRAP_SHIFT = 15
OFFSET_MASK = 0x7FFF
START = 1 << WRAP_SHIFT
