"""Virtqueues, split and packed."""

from __future__ import annotations

from typing import Final

from tests.driver_statements.statement import (
    BARRIER,
    HINTED,
    ITSELF,
    MOMENT,
    MUST,
    MUST_NOT,
    SHOULD,
    SHOULD_NOT,
    TOLERATES,
    VAGUE,
    Sections,
    seen,
    unseen,
)

RINGS: Final[Sections] = {
    "Virtqueues": (seen(MUST, "align each part of a split ring", "VQ-01"),),
    "Message Framing": (
        seen(MUST, "place what is to write behind what is to read", "RING-01"),
        unseen(SHOULD_NOT, "describe a buffer with too many descriptors", VAGUE),
    ),
    "Virtqueues / The Virtqueue Descriptor Table": (
        seen(MUST_NOT, "add a chain of more than 2^32 bytes, or a loop", "SPLIT-05", "SPLIT-02"),
        seen(MUST, "chain descriptors in order with IN_ORDER", "SPLIT-10"),
    ),
    "Virtqueues / The Virtqueue Descriptor Table / Indirect Descriptors": (
        seen(MUST_NOT, "set INDIRECT unless INDIRECT_DESC was negotiated", "SPLIT-06"),
        seen(MUST_NOT, "set INDIRECT in a table", "SPLIT-04"),
        seen(MUST_NOT, "make a chain longer than the queue", "SPLIT-02"),
        seen(MUST_NOT, "set INDIRECT and NEXT together", "SPLIT-03"),
        seen(MUST, "have tables in order with IN_ORDER", "SPLIT-11"),
    ),
    "Virtqueues / The Virtqueue Available Ring": (
        seen(MUST_NOT, "decrement the available index", "KICK-12"),
    ),
    "Virtqueues / Used Buffer Notification Suppression": (
        seen(MUST, "have flags of 0 or 1 without EVENT_IDX", "SPLIT-09"),
        seen(MUST, "have flags of 0 with EVENT_IDX", "SPLIT-09"),
        unseen(MUST, "take interrupts that tell of nothing", TOLERATES),
    ),
    "Virtqueues / The Virtqueue Used Ring": (
        unseen(MUST_NOT, "count on what lies behind the used length", ITSELF),
        unseen(SHOULD, "ignore what lies there", ITSELF),
    ),
    "Virtqueues / Available Buffer Notification Suppression": (
        seen(MUST, "begin with flags of 0 in the used ring", "VQ-04"),
        unseen(MUST, "ignore avail_event without EVENT_IDX", ITSELF),
        unseen(SHOULD_NOT, "notify where the flag is 1", MOMENT),
        seen(MUST, "notify where the flag is 0", "KICK-09"),
        unseen(MUST, "ignore the flag with EVENT_IDX", ITSELF),
        seen(MUST, "notify at avail_event", "KICK-09"),
        seen(SHOULD_NOT, "notify elsewhere", "KICK-08"),
    ),
    "Virtqueues / Supplying Buffers to The Device / Updating idx": (
        unseen(MUST, "have a barrier before the index", BARRIER),
    ),
    "Virtqueues / Supplying Buffers to The Device / Notifying The Device": (
        unseen(MUST, "have a barrier before it reads flags or avail_event", BARRIER),
    ),
    "Packed Virtqueues": (seen(MUST, "align each part of a packed ring", "VQ-01"),),
    "Packed Virtqueues / The Virtqueue Descriptor Table": (
        seen(MUST_NOT, "change a descriptor before it is used", "RING-06"),
        seen(MUST_NOT, "change a descriptor after it made it available", "RING-06"),
        seen(MUST, "tell the next descriptor in notifications", "KICK-07"),
    ),
    "Packed Virtqueues / Scatter-Gather Support": (
        seen(MUST_NOT, "make a list longer than the device takes", "PACK-01"),
        seen(MUST_NOT, "make a list longer than the queue", "PACK-01"),
        seen(MUST, "place what is to write behind what is to read", "RING-01"),
        seen(MUST_NOT, "count on descriptors that the device has yet to use", "PACK-01"),
        seen(MUST, "have room for a whole list first", "PACK-01"),
        seen(MUST_NOT, "make the first of a list available before the others", "PACK-02"),
    ),
    "Packed Virtqueues / The Virtqueue Descriptor Table / Indirect Descriptors": (
        seen(MUST_NOT, "set INDIRECT unless INDIRECT_DESC was negotiated", "PACK-04"),
        seen(MUST_NOT, "set other flags than WRITE in a table", "PACK-05"),
        unseen(MUST_NOT, "have a table longer than the device takes", HINTED),
        seen(MUST_NOT, "have an indirect descriptor in a list", "PACK-03"),
    ),
    "Packed Virtqueues / Supplying Buffers to The Device / Updating flags": (
        unseen(MUST, "have a barrier before the flags", BARRIER),
    ),
    "Packed Virtqueues / Supplying Buffers to The Device / Sending Available Buffer Notifications": (
        unseen(MUST, "have a barrier before it reads the device's event structure", BARRIER),
    ),
}
