"""The device status machine, every write in every state. virtio 1.4, "Device Status Field"."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from pymodel.transport.status import LENIENT, STRICT, describe, legal, settable

ACK, DRIVER, OK, FEATURES, BROKEN, FAILED = 1, 2, 4, 8, 64, 128
LETTER = {0, 1, 3, 11, 15} | {128, 129, 131, 139, 143}
# Whatever has FEATURES_OK where it has DRIVER_OK.
ANY_ORDER = {0, 1, 2, 3, 8, 9, 10, 11, 12, 13, 14, 15}
ANY_ORDER |= {status | FAILED for status in ANY_ORDER}

TABLES = pytest.mark.parametrize(
    ("table", "reachable"), [(STRICT, LETTER), (LENIENT, ANY_ORDER)], ids=["strict", "lenient"]
)


@TABLES
def test_every_write_in_every_state(table: Mapping[int, int], reachable: set[int]) -> None:
    """Nothing unknown is ever set; no bit comes before those it needs; what is reached can be reached."""
    for status in reachable | {status | BROKEN for status in reachable}:
        for written in range(1, 256):
            added = settable(status, written, table)
            assert added & status == 0
            assert added & ~written == 0
            assert (status | added) & ~BROKEN in reachable
            assert not added & (16 | 32 | BROKEN)


@pytest.mark.parametrize(
    ("status", "written", "strict", "lenient"),
    [
        (0, ACK, ACK, ACK),
        (0, ACK | DRIVER, ACK | DRIVER, ACK | DRIVER),
        (0, 15, 15, 15),
        (0, DRIVER, 0, DRIVER),
        (0, FEATURES, 0, FEATURES),
        (FEATURES, OK | FEATURES, 0, OK),
        (DRIVER, ACK, ACK, ACK),
        (0, OK, 0, 0),
        (0, 0x30 | BROKEN, 0, 0),
        (ACK, DRIVER, DRIVER, DRIVER),
        (ACK | DRIVER, OK, 0, 0),
        (ACK | DRIVER, FEATURES | OK, FEATURES | OK, FEATURES | OK),
        (11, OK, OK, OK),
        (15, FAILED, FAILED, FAILED),
        (15 | BROKEN, BROKEN | 15, 0, 0),
    ],
)
def test_steps(status: int, written: int, strict: int, lenient: int) -> None:
    assert settable(status, written, STRICT) == strict
    assert settable(status, written, LENIENT) == lenient


@TABLES
def test_legal(table: Mapping[int, int], reachable: set[int]) -> None:
    """What a context may say the status is: what a driver can reach, DEVICE_NEEDS_RESET aside."""
    found = {status for status in range(256) if legal(status, table)}
    assert found == reachable | {status | BROKEN for status in reachable}


def test_names() -> None:
    assert describe(0) == "0"
    assert describe(15) == "ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK"
    assert describe(0xC0) == "DEVICE_NEEDS_RESET|FAILED"
