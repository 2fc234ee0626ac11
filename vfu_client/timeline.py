"""The timeline of a move, as text for a terminal and as an SVG picture for a browser."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from vfu_client.move_report import STEPS, Report, Step

BAR = 36
WIDTH, LEFT, RIGHT, ROW, TOP = 980, 170, 110, 24, 74
SPAN = WIDTH - LEFT - RIGHT
RUNNING, STANDING, BACK = "#4c78a8", "#e45756", "#f2a541"
FONT = 'font-family="sans-serif" font-size="12"'


def text(report: Report) -> str:
    """The steps in order, each with its duration and a bar on one time axis; those of the stop on another."""
    lines: list[str] = []
    for title, steps in _groups(report):
        first, last = min(step.start for step in steps), max(step.end for step in steps)
        scale = BAR / max(last - first, 1e-9)
        lines.append(f"{title} ({(last - first) * 1e3:.1f} ms)")
        for step in steps:
            begin = min(int((step.start - first) * scale), BAR - 1)
            length = max(round((step.end - step.start) * scale), 1)
            bar = " " * begin + "█" * min(length, BAR - begin)
            lines.append(f"  {step.name:20} {step.milliseconds:9.1f} ms  |{bar:{BAR}}|")
    if report.downtime_ms is not None:
        lines.append(f"the guest stood still for {report.downtime_ms:.1f} ms")
    return "\n".join(lines)


def svg(reports: Sequence[tuple[str, Report]]) -> str:
    """A picture of moves, each with its title: while the guest ran, while it stood still, after that."""
    parts: list[str] = []
    top = 0
    for title, report in reports:
        parts.append(f'<text x="12" y="{top + 24}" {FONT} font-weight="bold">{escape(title)}</text>')
        if report.downtime_ms is not None:
            says = f"guest stood still for {report.downtime_ms:.1f} ms; {report.pages} pages sent again"
            parts.append(f'<text x="12" y="{top + 42}" {FONT} fill="#555">{says}</text>')
        top += 30
        for name, steps in _groups(report):
            top += 30
            parts += _chart(name, steps, top)
            top += ROW * len(steps) + 24
        top += 20
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {top}" width="{WIDTH}" height="{top}">'
        f'<rect width="{WIDTH}" height="{top}" fill="white"/>\n{body}\n</svg>\n'
    )


def _groups(report: Report) -> list[tuple[str, list[Step]]]:
    """The steps in groups that each get a time axis of their own."""
    order = {name: number for number, name in enumerate(STEPS)}
    steps = sorted(report.steps, key=lambda step: (step.back, order.get(step.name, len(order)), step.start))
    stopped = [step for step in steps if _standing(step, report)]
    before = [step for step in steps if step not in stopped and step.name != "release" and not step.back]
    back = [step for step in steps if step.back and step not in stopped]
    after = [step for step in steps if step.name == "release"]
    named = (
        ("the guest runs at the source", before),
        ("the guest stands still", stopped),
        ("the guest runs at the source again", back),
        ("the guest runs at the destination", after),
    )
    return [(title, group) for title, group in named if group]


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


def _chart(title: str, steps: Sequence[Step], top: int) -> list[str]:
    first, last = min(step.start for step in steps), max(step.end for step in steps)
    scale = SPAN / max(last - first, 1e-9)
    parts = [
        f'<text x="12" y="{top}" {FONT} fill="#555">{escape(title)}: {(last - first) * 1e3:.1f} ms</text>'
    ]
    for number, step in enumerate(steps):
        y = top + 8 + number * ROW
        x = LEFT + (step.start - first) * scale
        width = max((step.end - step.start) * scale, 2)
        color = BACK if step.back else STANDING if title.endswith("still") else RUNNING
        about = escape(STEPS.get(step.name, ""))
        duration = f"{step.milliseconds:.1f} ms"
        parts += [
            f'<line x1="{LEFT}" y1="{y + ROW - 2}" x2="{LEFT + SPAN}" y2="{y + ROW - 2}" stroke="#eee"/>',
            f'<text x="{LEFT - 8}" y="{y + 15}" {FONT} text-anchor="end">{escape(step.name)}</text>',
            f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{ROW - 8}" fill="{color}">',
            f"<title>{about}</title></rect>",
            f'<text x="{x + width + 6:.1f}" y="{y + 15}" {FONT} fill="#333">{duration}</text>',
        ]
    return parts
