"""What the demo calls a failure."""

from __future__ import annotations

import json
from typing import Any

import pytest

from vfu_client.move import timeline
from vfu_client.move.report import Report, Step
from vfu_demo.outcome import Moved, conclude, figures_of
from vfu_demo.show import LostError

DISK = dict.fromkeys(("lost", "corrupt", "errors"), 0) | {
    "sectors_written": 20_000,
    "sectors_read": 20_000,
    "longest_gap_ms": 1.0,
}
TCP = {"bytes": 1, "resets": 0, "corrupt": 0, "longest_gap_ms": 1.0, "ended": "clean"}


def test_all_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    conclude("demo", figures_of([], DISK, TCP))
    assert "resets 0, corrupt 0" in capsys.readouterr().out


def test_what_is_told_is_what_is_saved(capsys: pytest.CaptureFixture[str]) -> None:
    """The printed lines have the figures of demo.json, and say why more is read than written."""
    report = Report(steps=[Step("continue", 1.0, 1.1)], stopped=1.0, resumed=1.1234567)
    figures = figures_of([Moved("A", "B", report, {})], DISK | {"sectors_read": 26_000}, TCP)
    assert figures["moves"][0]["downtime_ms"] == 123.5
    assert (figures["sectors_read"], figures["errors"], figures["tcp"]["ended"]) == (26_000, 0, "clean")
    conclude("demo", figures)
    said = capsys.readouterr().out
    assert "20000 sectors written over 1 moves, 26000 read back" in said
    assert "more may be read than written" in said
    assert "stood still for 123.5 ms" in said
    assert "guest stood still for 123.5 ms" in timeline.text(report)
    assert "guest stood still for 123.5 ms" in timeline.svg([("A", report, {})])


def test_a_report_of_another_process() -> None:
    """What `vfu-migrate --json` prints has all that a timeline needs."""
    report = Report(
        "parts", 12.5, [Step("continue", 1.0, 1.125, back=True)], 1.0, 1.25, 3, 4096, ["a warning"]
    )
    assert Report.load(json.loads(json.dumps(report.plain()))) == report
    assert Report.load(Report().plain()) == Report()


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
        conclude("demo", figures_of([], DISK | disk, TCP | tcp))
