"""Block devices."""

from __future__ import annotations

from typing import Final

from tests.driver_statements.statement import (
    ITSELF,
    MUST,
    MUST_NOT,
    NOT_OFFERED,
    SHOULD,
    SHOULD_NOT,
    Sections,
    seen,
    unseen,
)

BLOCK: Final[Sections] = {
    "Block Device / Device Initialization": (
        unseen(SHOULD_NOT, "negotiate FLUSH if it cannot flush", ITSELF),
        unseen(SHOULD, "take FLUSH without CONFIG_WCE for a writeback cache", ITSELF),
        seen(MUST_NOT, "read writeback before FEATURES_OK", "CONF-05"),
        unseen(MUST_NOT, "negotiate ZONED if it cannot have all models", NOT_OFFERED),
        unseen(MUST_NOT, "accept DISCARD of host-managed zones", NOT_OFFERED),
        unseen(MUST_NOT, "go on with host-managed zones that it cannot have", NOT_OFFERED),
        unseen(SHOULD, "ignore what is said of zones that it does not use", NOT_OFFERED),
    ),
    "Block Device / Device Operation": (
        seen(SHOULD, "look at capacity when told of a change", "CHANGE-01"),
        seen(MUST_NOT, "go beyond the capacity", "BLK-01"),
        seen(SHOULD, "accept RO", "BLK-10"),
        seen(MUST, "have sector 0 in a FLUSH", "BLK-02"),
        seen(SHOULD_NOT, "have data in a FLUSH", "BLK-03"),
        seen(MUST, "read and write multiples of 512 bytes", "BLK-04"),
        seen(MUST, "have whole ranges", "BLK-05"),
        seen(MUST, "have 20 bytes for GET_ID", "BLK-06"),
        seen(MUST_NOT, "discard more than max_discard_seg ranges", "BLK-07"),
        unseen(MUST_NOT, "erase more than max_secure_erase_seg ranges", NOT_OFFERED),
        seen(MUST_NOT, "zero more than max_write_zeroes_seg ranges", "BLK-08"),
        unseen(MUST_NOT, "take a switch to writethrough for a flush", ITSELF),
        seen(MUST, "leave unmap clear in a DISCARD", "BLK-09"),
        unseen(MUST_NOT, "count on what was discarded", ITSELF),
        unseen(MUST_NOT, "count on any range of a request that failed", ITSELF),
        unseen(MUST, "have zones at multiples of 512 bytes", NOT_OFFERED),
        unseen(MUST, "name a sector of the first zone in a report", NOT_OFFERED),
        unseen(MUST, "name the first sector of a zone", NOT_OFFERED),
        unseen(MUST, "have sector 0 when it resets all zones", NOT_OFFERED),
        unseen(MUST, "append to a zone's first sector", NOT_OFFERED),
        unseen(MUST, "append multiples of write_granularity", NOT_OFFERED),
        unseen(MUST_NOT, "append more than max_append_sectors", NOT_OFFERED),
        unseen(MUST, "write to zones what fits them", NOT_OFFERED),
    ),
}
