"""What the demo of SR-IOV calls a failure."""

from __future__ import annotations

import json

import pytest

from vfu_demo.show import LostError
from vfu_demo.sriov import _check

DONE = {"event": "done", "sectors_written": 1600, "sectors_read": 2000, "lost": 0, "corrupt": 0, "errors": 0}


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    _check("vdb", 0, "noise\n" + json.dumps(DONE) + "\n")
    assert "/dev/vdb: 1600 sectors written, 2000 read back; lost 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("status", "figures"), [(1, {}), (0, {"lost": 1}), (0, {"corrupt": 1}), (0, {"errors": 1})]
)
def test_failures(status: int, figures: dict[str, int]) -> None:
    """A wrong sector, a failed request, or a check that ended otherwise."""
    with pytest.raises(LostError, match="/dev/vdb damaged"):
        _check("vdb", status, json.dumps(DONE | figures))
