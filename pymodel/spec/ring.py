"""Split virtqueues: layouts and flags. virtio 1.4, "Split Virtqueues"."""

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

# Offsets in the available and the used ring: flags, idx, ring[], then the event word.
RING_FLAGS = 0
RING_IDX = 2
RING_ENTRIES = 4

DESC_ALIGN = 16
AVAIL_ALIGN = 2
USED_ALIGN = 4
