"""The timeline of a move as text and as a picture."""

from __future__ import annotations

from xml.etree import ElementTree as ET

import pytest

from vfu_client.move import timeline
from vfu_client.move.report import Report, Step

REPORT = Report(
    steps=[
        Step("copy-ram", 0.0, 1.01),
        Step("stop-vfs", 1.01, 1.03),
        Step("continue", 1.09, 1.1),
        Step("release", 1.2, 1.3),
    ],
    stopped=1.0,
    resumed=1.1,
)
GAPS = {"disk": [(0.95, 1.25), (1.5, 1.6)], "TCP": [(0.2, 0.3), (0.5, 0.6)]}


def test_text_without_gaps() -> None:
    """A group of steps each while the guest runs and while it does not, on an axis of its own."""
    said = timeline.text(REPORT)
    assert "the guest runs at the source: 1010.0 ms\n  copy-ram" in said
    assert "the guest stands still: 90.0 ms\n  stop-vfs                  20.0 ms  |████████ " in said
    assert "the guest runs at the destination: 100.0 ms\n  release" in said
    assert said.endswith("the guest stood still for 100.0 ms")
    assert "gap" not in said


def test_gaps() -> None:
    """A lane for the traffic that paused around the stop, and the axis is that much longer."""
    said = timeline.text(REPORT, GAPS)
    assert "the guest stands still: 90.0 ms" in said
    assert f"  gap: disk                300.0 ms  |{'░' * 36}|" in said
    assert said.count("gap: TCP") == 1
    assert "gap: TCP                 100.0 ms" in said.split("the guest stands still")[0]
    assert said.count("gap: disk") == 1


@pytest.mark.parametrize("gaps", [{}, GAPS])
def test_picture(gaps: timeline.Gaps) -> None:
    """Well-formed, with a bar for each step and for each gap that is shown."""
    picture = ET.fromstring(timeline.svg([("A → B & on", REPORT, gaps)]))  # noqa: S314  # we wrote it
    space = "{http://www.w3.org/2000/svg}"
    texts = [found.text for found in picture.iter(f"{space}text")]
    assert texts[0] == "A → B & on"
    assert ("gap: disk" in texts) == bool(gaps)
    assert len(list(picture.iter(f"{space}rect"))) == 1 + 4 + (3 if gaps else 0)
