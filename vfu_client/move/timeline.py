"""The timeline of a move on one time axis: as text for a terminal, as an SVG picture for a browser."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

from vfu_client.move.report import STEPS, Report, Step

BAR = 48
WIDTH, LEFT, RIGHT, ROW, HEAD = 1100, 170, 90, 22, 84
SPAN = WIDTH - LEFT - RIGHT
TICKS = 8
"""About as many ticks does an axis have."""
RUNNING, STANDING, BACK, GAP, SHADE = "#4c78a8", "#e45756", "#f2a541", "#9d9d9d", "#fbe3e2"
LEGEND = {
    RUNNING: "the guest runs",
    STANDING: "the guest stands still",
    BACK: "on the way back",
    GAP: "no traffic",
}
FONT = 'font-family="sans-serif" font-size="12"'
TITLE = "Moves of a running guest, step by step"

Gaps = Mapping[str, Sequence[tuple[float, float]]]
"""When the guest's traffic paused, by its name: from and to, in seconds since the move began."""


@dataclass(frozen=True)
class Row:
    """One line of a timeline: when something went on, in seconds since the move began."""

    name: str
    spans: list[tuple[float, float]]
    color: str
    about: str = ""

    @property
    def milliseconds(self) -> float:
        """The longest of its spans."""
        return max(round((end - start) * 1e3, 1) for start, end in self.spans)


def rows(report: Report, gaps: Gaps) -> list[Row]:
    """The steps by their beginning, then the traffic whose gaps meet the time of the move."""
    steps = sorted(report.steps, key=lambda step: step.start)
    found = [
        Row(step.name, [(step.start, step.end)], _color(step, report), STEPS.get(step.name, ""))
        for step in steps
    ]
    end = max((step.end for step in steps), default=0.0)
    for name, spans in gaps.items():
        here = [(max(start, 0.0), stop) for start, stop in spans if start < end and stop > 0]
        if here:
            found.append(Row(f"gap: {name}", here, GAP, "no traffic; the longest such time is given"))
    return found


def text(report: Report, gaps: Gaps | None = None) -> str:
    """The steps, each with its duration and a bar; below them how long the guest stood still."""
    found = rows(report, gaps or {})
    end = _end(found)
    lines = [f"  {'':20} {'':12}  0{f'{end:.2f} s':>{BAR}}"]
    for row in found:
        bar = [" "] * BAR
        for start, stop in row.spans:
            first = min(int(start / end * BAR), BAR - 1)
            cells = round((stop - start) / end * BAR)
            full = "░" if row.color == GAP else "█"
            bar[first : first + max(cells, 1)] = ([full] * cells or ["▏"])[: BAR - first]
        lines.append(f"  {row.name:20} {row.milliseconds:9.1f} ms  |{''.join(bar)}|")
    return "\n".join([*lines, *_stood_still(report)])


def svg(moves: Iterable[tuple[str, Report, Gaps]]) -> str:
    """A picture of moves, each with its title and an axis; all of them on the same scale."""
    charts = [(title, report, rows(report, gaps)) for title, report, gaps in moves]
    end = max((_end(found) for _, _, found in charts), default=1.0)
    parts = [
        f"<title>{TITLE}</title>",
        f'<text x="12" y="24" font-family="sans-serif" font-size="16" font-weight="bold">{TITLE}</text>',
        *_legend({row.color for _, _, found in charts for row in found}),
    ]
    top = HEAD
    for title, report, found in charts:
        parts += _chart(title, report, found, end, top)
        top += ROW * len(found) + 80
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
        f'<rect width="{WIDTH}" height="{top}" fill="white"/>\n{body}\n</svg>\n'
    )


def _color(step: Step, report: Report) -> str:
    """The stop is noticed at the end of copy-ram, a moment after it began."""
    if step.back:
        return BACK
    stands = (
        report.stopped is not None
        and step.name not in {"copy-ram", "release"}
        and report.stopped <= step.end
        and (report.resumed is None or step.start <= report.resumed)
    )
    return STANDING if stands else RUNNING


def _stood_still(report: Report) -> list[str]:
    if report.downtime_ms is None:
        return []
    return [f"the guest stood still for {report.downtime_ms:.1f} ms"]


def _end(found: Sequence[Row]) -> float:
    return max((stop for row in found for _, stop in row.spans), default=0.0) or 1.0


def _ticks(end: float) -> list[float]:
    """Round numbers of seconds from 0 on, as many as fit."""
    rough = end / TICKS
    unit = 10 ** math.floor(math.log10(rough))
    step = next(unit * factor for factor in (1, 2, 5, 10) if unit * factor >= rough)
    return [round(step * number, 9) for number in range(int(end / step + 1e-9) + 1)]


def _legend(colors: set[str]) -> list[str]:
    parts, x = [], 12
    for color, meaning in LEGEND.items():
        if color in colors:
            parts.append(f'<rect x="{x}" y="38" width="14" height="14" fill="{color}"/>')
            parts.append(f'<text x="{x + 20}" y="50" {FONT}>{meaning}</text>')
            x += 40 + 7 * len(meaning)
    return parts


def _chart(title: str, report: Report, found: Sequence[Row], end: float, top: int) -> list[str]:
    scale, first = SPAN / end, top + 26
    bottom = first + 4 + ROW * len(found)
    # What a folder's name may hold and XML may not.
    shown = "".join(letter if letter.isprintable() else "?" for letter in title)
    says = "; ".join([*_stood_still(report), f"{report.pages} pages sent again", f"dialect {report.dialect}"])
    parts = [
        f'<text x="12" y="{top}" {FONT} font-weight="bold">{escape(shown)}</text>',
        f'<text x="12" y="{top + 17}" {FONT} fill="#555">{says}</text>',
    ]
    if report.stopped is not None and report.resumed is not None:
        x, width = LEFT + report.stopped * scale, (report.resumed - report.stopped) * scale
        parts.append(
            f'<path d="M{x:.1f} {first}h{width:.1f}V{bottom}h-{width:.1f}z" fill="{SHADE}">'
            f"<title>{LEGEND[STANDING]}</title></path>"
        )
    for tick in _ticks(end):
        x = LEFT + tick * scale
        parts.append(f'<line x1="{x:.1f}" y1="{first}" x2="{x:.1f}" y2="{bottom + 5}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 20}" {FONT} fill="#555" text-anchor="middle">{tick:g} s</text>'
        )
    parts.append(f'<line x1="{LEFT}" y1="{bottom}" x2="{LEFT + SPAN}" y2="{bottom}" stroke="#555"/>')
    for number, row in enumerate(found):
        parts += _bar(row, scale, first + 2 + number * ROW)
    return parts


def _bar(row: Row, scale: float, y: int) -> list[str]:
    parts = [f'<text x="{LEFT - 8}" y="{y + 15}" {FONT} text-anchor="end">{escape(row.name)}</text>']
    for start, stop in row.spans:
        x, width = LEFT + start * scale, max((stop - start) * scale, 0.5)
        parts.append(
            f'<rect x="{x:.2f}" y="{y + 4}" width="{width:.2f}" height="{ROW - 8}" fill="{row.color}">'
            f"<title>{escape(row.about)}</title></rect>"
        )
    right = LEFT + max(stop for _, stop in row.spans) * scale
    parts.append(
        f'<text x="{right + 6:.1f}" y="{y + 15}" {FONT} fill="#333">{row.milliseconds:.1f} ms</text>'
    )
    return parts
