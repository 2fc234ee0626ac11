"""What the demo of a guest in a guest tells, and calls a failure."""

from __future__ import annotations

from typing import Any

import pytest

from vfu_demo.nested import _conclude, _figures
from vfu_demo.show import LostError

TOLD = {
    "status": "completed", "ram": {"transferred": 75_000_000}, "vfio": {"transferred": 934},
    "total-time": 1500, "downtime": 1200,
}  # fmt: skip
"""What QEMU says of a migration."""

DONE = {
    "event": "done", "sectors_written": 1288, "sectors_read": 1464, "lost": 0, "corrupt": 0, "errors": 0,
    "longest_gap_ms": 6491.3,
}  # fmt: skip
REQUESTS = {"vf1": 156, "vf2": 189}


def figures(**changed: Any) -> dict[str, Any]:
    return _figures(TOLD, 840, DONE, REQUESTS) | changed


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    _conclude(figures())
    told = capsys.readouterr().out
    assert "75 MB of memory and 934 bytes of the VF in 1.5 s; the guest stood still for 1.2 s" in told
    assert "840 sectors written before that, 448 after it, 1464 read back and checked; lost 0" in told
    assert "VF 1 served 156 requests, VF 2 189" in told


@pytest.mark.parametrize(
    ("changed", "why"),
    [
        ({"lost": 1}, "disk damaged"),
        ({"corrupt": 1}, "disk damaged"),
        ({"errors": 1}, "disk damaged"),
        ({"parts_bytes": 0}, "nothing of the VF"),
        ({"sectors_written_before": 392}, "fewer than 400 sectors"),
        ({"sectors_written": 1232}, "fewer than 400 sectors"),
        ({"requests": {"vf1": 0, "vf2": 189}}, "a VF served no request"),
        ({"requests": {"vf1": 156, "vf2": 0}}, "a VF served no request"),
    ],
)
def test_failures(changed: dict[str, Any], why: str) -> None:
    """A wrong sector, a failed request, and what shows that the VF was not used or not moved."""
    with pytest.raises(LostError, match=why):
        _conclude(figures(**changed))


def test_a_vf_that_qemu_did_not_migrate() -> None:
    """QEMU says nothing of VFIO then."""
    told = {name: value for name, value in TOLD.items() if name != "vfio"}
    with pytest.raises(LostError, match="nothing of the VF"):
        _conclude(_figures(told, 840, DONE, REQUESTS))
