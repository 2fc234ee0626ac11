"""The device status machine, every write in every state. virtio 1.4, "Device Status Field"."""

from __future__ import annotations

import pytest

from pymodel.transport.status import describe, legal, settable

ACK, DRIVER, OK, FEATURES, BROKEN, FAILED = 1, 2, 4, 8, 64, 128
REACHABLE = {0, 1, 3, 11, 15} | {128, 129, 131, 139, 143}


def test_every_write_in_every_state() -> None:
    """Nothing unknown is ever set; no bit comes before those it needs; what is reached can be reached."""
    for status in REACHABLE | {status | BROKEN for status in REACHABLE}:
        for written in range(1, 256):
            added = settable(status, written)
            assert added & status == 0
            assert added & ~written == 0
            assert (status | added) & ~BROKEN in REACHABLE
            assert not added & (16 | 32 | BROKEN)


@pytest.mark.parametrize(
    ("status", "written", "added"),
    [
        (0, ACK, ACK),
        (0, ACK | DRIVER, ACK | DRIVER),
        (0, 15, 15),
        (0, DRIVER, 0),
        (ACK, DRIVER, DRIVER),
        (ACK | DRIVER, OK, 0),
        (ACK | DRIVER, FEATURES | OK, FEATURES | OK),
        (11, OK, OK),
        (15, FAILED, FAILED),
        (15 | BROKEN, BROKEN | 15, 0),
    ],
)
def test_steps(status: int, written: int, added: int) -> None:
    assert settable(status, written) == added


def test_legal() -> None:
    """What a context may say the status is: what a driver can reach, DEVICE_NEEDS_RESET aside."""
    assert {status for status in range(256) if legal(status)} == REACHABLE | {s | BROKEN for s in REACHABLE}


def test_names() -> None:
    assert describe(0) == "0"
    assert describe(15) == "ACKNOWLEDGE|DRIVER|FEATURES_OK|DRIVER_OK"
    assert describe(0xC0) == "DEVICE_NEEDS_RESET|FAILED"
