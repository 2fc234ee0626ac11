"""The timeline of a move, as text for a terminal and as an SVG picture for a browser."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape

from vfu_client.move.report import STEPS, Report, Step

BAR = 36
WIDTH, LEFT, RIGHT, ROW, TOP = 980, 170, 110, 24, 74
SPAN = WIDTH - LEFT - RIGHT
RUNNING, STANDING, BACK, GAP = "#4c78a8", "#e45756", "#f2a541", "#9d9d9d"
FONT = 'font-family="sans-serif" font-size="12"'
STOP = "the guest stands still"

Gaps = Mapping[str, Sequence[tuple[float, float]]]
"""When the guest's traffic paused, by its name: from and to, in seconds since the move began."""


@dataclass(frozen=True)
class Row:
    """One line of a chart: when something went on, in seconds since the move began."""

    name: str
    spans: list[tuple[float, float]]
    color: str
    about: str = ""

    @property
    def milliseconds(self) -> float:
        """The longest of its spans."""
        return max((round((end - start) * 1e3, 3) for start, end in self.spans), default=0.0)


@dataclass(frozen=True)
class Chart:
    """Rows on one time axis."""

    title: str
    rows: list[Row] = field(default_factory=list)

    @property
    def axis(self) -> tuple[float, float]:
        """From and to."""
        spans = [span for row in self.rows for span in row.spans]
        return min(start for start, _ in spans), max(end for _, end in spans)

    def scaled(self, span: tuple[float, float], width: float) -> tuple[float, float]:
        """Where a span is on an axis of that width: its start and its length."""
        first, last = self.axis
        scale = width / max(last - first, 1e-9)
        return (span[0] - first) * scale, (span[1] - span[0]) * scale

    @property
    def heading(self) -> str:
        """The title, and how long the steps took."""
        steps = [span for row in self.rows if row.color != GAP for span in row.spans]
        took = max(end for _, end in steps) - min(start for start, _ in steps)
        return f"{self.title}: {took * 1e3:.1f} ms"


def text(report: Report, gaps: Gaps | None = None) -> str:
    """The steps in order, each with its duration and a bar on one time axis; those of the stop on another."""
    lines: list[str] = []
    for chart in charts(report, gaps or {}):
        lines.append(chart.heading)
        for row in chart.rows:
            bar = [" "] * BAR
            for span in row.spans:
                x, length = chart.scaled(span, BAR)
                begin = min(int(x), BAR - 1)
                end = min(begin + max(round(length), 1), BAR)
                bar[begin:end] = ("░" if row.color == GAP else "█") * (end - begin)
            lines.append(f"  {row.name:20} {row.milliseconds:9.1f} ms  |{''.join(bar)}|")
    if report.downtime_ms is not None:
        lines.append(f"the guest stood still for {report.downtime_ms:.1f} ms")
    return "\n".join(lines)


def svg(moves: Iterable[tuple[str, Report, Gaps]]) -> str:
    """A picture of moves, each with its title: while the guest ran, while it stood still, after that."""
    parts: list[str] = []
    top = 0
    for title, report, gaps in moves:
        parts.append(f'<text x="12" y="{top + 24}" {FONT} font-weight="bold">{escape(title)}</text>')
        if report.downtime_ms is not None:
            says = f"guest stood still for {report.downtime_ms:.1f} ms; {report.pages} pages sent again"
            parts.append(f'<text x="12" y="{top + 42}" {FONT} fill="#555">{says}</text>')
        top += 30
        for chart in charts(report, gaps):
            top += 30
            parts += _drawn(chart, top)
            top += ROW * len(chart.rows) + 24
        top += 20
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
        f'<rect width="{WIDTH}" height="{top}" fill="white"/>\n{body}\n</svg>\n'
    )


def charts(report: Report, gaps: Gaps) -> list[Chart]:
    """The steps in groups, each with a time axis of its own; below them the gaps up to the guest's return."""
    order = {name: number for number, name in enumerate(STEPS)}
    steps = sorted(report.steps, key=lambda step: (step.back, order.get(step.name, len(order)), step.start))
    stopped = [step for step in steps if _standing(step, report)]
    before = [step for step in steps if step not in stopped and step.name != "release" and not step.back]
    back = [step for step in steps if step.back and step not in stopped]
    after = [step for step in steps if step.name == "release"]
    found = [
        Chart("the guest runs at the source", [_row(step, RUNNING) for step in before]),
        Chart(STOP, [_row(step, STANDING) for step in stopped]),
        Chart("the guest runs at the source again", [_row(step, RUNNING) for step in back]),
        Chart("the guest runs at the destination", [_row(step, RUNNING) for step in after]),
    ]
    if before:
        first, last = found[0].axis
        found[0].rows.extend(_gap_rows(gaps, lambda start, end: first <= start and end <= last))
    if stopped:
        begin, end = found[1].axis
        found[1].rows.extend(_gap_rows(gaps, lambda start, stop: start < end and begin < stop))
    return [chart for chart in found if chart.rows]


def _gap_rows(gaps: Gaps, belongs: Callable[[float, float], bool]) -> list[Row]:
    """A row for each kind of traffic that has gaps which belong here. They may make the axis longer."""
    rows = []
    for name, spans in gaps.items():
        here = [span for span in spans if belongs(*span)]
        if here:
            rows.append(Row(f"gap: {name}", here, GAP, "no traffic; the longest such time is given"))
    return rows


def _row(step: Step, color: str) -> Row:
    return Row(step.name, [(step.start, step.end)], BACK if step.back else color, STEPS.get(step.name, ""))


def _standing(step: Step, report: Report) -> bool:
    if report.stopped is None:
        return False
    # The stop is noticed at the end of copy-ram, a moment after it began.
    return (
        step.name != "copy-ram"
        and report.stopped <= step.end
        and (report.resumed is None or step.start <= report.resumed)
        and step.name != "release"
    )


def _drawn(chart: Chart, top: int) -> list[str]:
    parts = [f'<text x="12" y="{top}" {FONT} fill="#555">{escape(chart.heading)}</text>']
    for number, row in enumerate(chart.rows):
        y = top + 8 + number * ROW
        parts += [
            f'<line x1="{LEFT}" y1="{y + ROW - 2}" x2="{LEFT + SPAN}" y2="{y + ROW - 2}" stroke="#eee"/>',
            f'<text x="{LEFT - 8}" y="{y + 15}" {FONT} text-anchor="end">{escape(row.name)}</text>',
        ]
        right = 0.0
        for span in row.spans:
            x, length = chart.scaled(span, SPAN)
            x, length = LEFT + x, max(length, 2)
            right = max(right, x + length)
            parts += [
                f'<rect x="{x:.1f}" y="{y + 3}" width="{length:.1f}" height="{ROW - 8}" fill="{row.color}">',
                f"<title>{escape(row.about)}</title></rect>",
            ]
        parts.append(
            f'<text x="{right + 6:.1f}" y="{y + 15}" {FONT} fill="#333">{row.milliseconds:.1f} ms</text>'
        )
    return parts
