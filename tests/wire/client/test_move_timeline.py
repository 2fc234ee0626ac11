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
SPACE = "{http://www.w3.org/2000/svg}"


def bars(picture: ET.Element, color: str) -> list[tuple[float, float]]:
    """Where the bars of a colour begin and how wide they are; the legend has one too, which comes first."""
    found = [part for part in picture.iter(f"{SPACE}rect") if part.get("fill") == color]
    return [(float(part.get("x", "")), float(part.get("width", ""))) for part in found][1:]


def test_text() -> None:
    """One axis: a step of 10 ms is a hair, one of 1010 ms is most of it."""
    lines = timeline.text(REPORT).splitlines()
    assert lines[0].endswith("0                                          1.30 s")
    assert lines[1] == f"  copy-ram                1010.0 ms  |{'█' * 37:48}|"
    assert lines[2] == f"  stop-vfs                  20.0 ms  |{' ' * 37 + '█':48}|"
    assert lines[3] == f"  continue                  10.0 ms  |{' ' * 40 + '▏':48}|"
    assert lines[-1] == "the guest stood still for 100.0 ms"
    assert sum("ms" in line for line in lines) == 5


def test_gaps() -> None:
    """A lane for each kind of traffic that paused meanwhile; one that goes on makes the axis longer."""
    said = timeline.text(REPORT, GAPS)
    assert "  gap: disk                300.0 ms  |" in said
    assert "  gap: TCP                 100.0 ms  |" in said
    later = timeline.text(REPORT, {"disk": [(1.25, 2.6)]})
    assert later.splitlines()[0].endswith("2.60 s")


@pytest.mark.parametrize("gaps", [{}, GAPS])
def test_picture(gaps: timeline.Gaps) -> None:
    """A title, a legend of what is shown, an axis with ticks, and the bars on one scale."""
    picture = ET.fromstring(timeline.svg([("A → B & \x01on", REPORT, gaps), ("B → A", REPORT, {})]))  # noqa: S314  # we wrote it
    texts = [found.text for found in picture.iter(f"{SPACE}text")]
    assert texts[0] == "Moves of a running guest, step by step"
    assert "A → B & ?on" in texts
    assert texts.count("the guest stood still for 100.0 ms; 0 pages sent again; dialect context") == 2
    assert [text for text in texts if text and text.endswith(" s")][:4] == ["0 s", "0.2 s", "0.4 s", "0.6 s"]
    legend = {"the guest runs", "the guest stands still", "no traffic", "on the way back"} & set(texts)
    assert legend == {"the guest runs", "the guest stands still"} | ({"no traffic"} if gaps else set())
    (copying, long), (releasing, short), *_ = bars(picture, timeline.RUNNING)
    assert long == pytest.approx(10.1 * short, rel=0.01)
    (_, stopping), (_, going_on), *_ = bars(picture, timeline.STANDING)
    assert stopping == pytest.approx(2 * going_on, rel=0.01)
    assert releasing - copying == pytest.approx(1.2 / 1.01 * long, rel=0.01)
    assert len(bars(picture, timeline.GAP)) == (3 if gaps else 0)
