"""What the demo calls a failure."""

from __future__ import annotations

from typing import Any

import pytest

from demo.__main__ import _conclude
from demo.traffic import LostError

DISK = dict.fromkeys(("lost", "corrupt", "errors"), 0) | {
    "sectors_written": 20_000,
    "sectors_read": 20_000,
    "longest_gap_ms": 1.0,
}
TCP = {"bytes": 1, "resets": 0, "corrupt": 0, "longest_gap_ms": 1.0, "ended": "clean"}


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    _conclude([], DISK, TCP)
    assert "resets 0, corrupt 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("disk", "tcp", "why"),
    [
        ({"lost": 1}, {}, "disk damaged"),
        ({"corrupt": 1}, {}, "disk damaged"),
        ({"errors": 1}, {}, "disk damaged"),
        ({"sectors_written": 19_999}, {}, "fewer than 20000 sectors"),
        ({}, {"resets": 1}, "connection broke"),
        ({}, {"ended": "cut"}, "connection broke"),
        ({}, {"corrupt": 1}, "not what came out"),
        ({}, {"bytes": 0}, "not what came out"),
    ],
)
def test_failures(disk: dict[str, Any], tcp: dict[str, Any], why: str) -> None:
    """Each on its own."""
    with pytest.raises(LostError, match=why):
        _conclude([], DISK | disk, TCP | tcp)
