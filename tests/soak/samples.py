"""What processes have of memory, threads and descriptors over time, and a picture of it."""

from __future__ import annotations

import contextlib
import os
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Final, Self
from xml.sax.saxutils import escape

PERIOD_SECONDS: Final = 2.0
QUANTITIES: Final[Mapping[str, str]] = {
    "rss": "RSS in MiB, less the guest's memory",
    "threads": "threads",
    "files": "file descriptors",
}

WIDTH, LEFT, RIGHT, PANEL, HEAD = 1100, 60, 40, 220, 70
COLORS: Final = ("#4c78a8", "#e45756", "#54a24b", "#f2a541", "#9d9d9d")
FONT: Final = 'font-family="sans-serif" font-size="12"'


@dataclass(frozen=True)
class Sample:
    """Of one process, `at` seconds since the beginning."""

    at: float
    pid: int
    rss: float
    threads: float
    files: float


@dataclass
class Sampler:
    """Takes a sample of each process every PERIOD_SECONDS, while its context lasts."""

    processes: Callable[[], Mapping[str, int]]
    found: dict[str, list[Sample]] = field(default_factory=dict)

    def __enter__(self) -> Self:
        self._began = time.monotonic()
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _work(self) -> None:
        while not self._end.wait(PERIOD_SECONDS):
            for name, pid in self.processes().items():
                with contextlib.suppress(OSError):  # it has ended
                    self.found.setdefault(name, []).append(sample(pid, time.monotonic() - self._began))

    def longest_lives(self) -> dict[str, dict[str, float]]:
        """Of the process of each name that lived longest: its figures early in its life, and at its end."""
        lives: dict[str, dict[str, float]] = {}
        for name, samples in self.found.items():
            # Numbers of processes come again.
            found = (list(one) for _, one in groupby(samples, lambda each: each.pid))
            life = max(found, key=lambda one: one[-1].at - one[0].at)
            first, last = life[len(life) // 10], life[-1]
            lives[name] = {"seconds": round(life[-1].at - life[0].at)}
            for quantity in QUANTITIES:
                lives[name][f"{quantity}_early"] = getattr(first, quantity)
                lives[name][f"{quantity}_late"] = getattr(last, quantity)
        return lives


def sample(pid: int, at: float) -> Sample:
    """What a process has now. Raises OSError where there is none."""
    said = Path(f"/proc/{pid}/status").read_text()
    figures = {name: float(number) for name, number in re.findall(r"^(\w+):\s+(\d+)", said, re.MULTILINE)}
    if "RssAnon" not in figures:
        raise ProcessLookupError  # it has ended, and nobody asked yet how
    mib = (figures["RssAnon"] + figures["RssFile"]) / 1024
    return Sample(round(at, 1), pid, round(mib, 1), figures["Threads"], len(os.listdir(f"/proc/{pid}/fd")))


def svg(found: Mapping[str, list[Sample]], title: str) -> str:
    """A panel for each quantity, a line for each name; one that breaks is of a process that was killed."""
    end = max((each.at for samples in found.values() for each in samples), default=1.0)
    parts = [f'<text x="12" y="24" {FONT} font-weight="bold">{escape(title)}</text>']
    for number, name in enumerate(found):
        x = LEFT + 170 * number
        parts.append(f'<rect x="{x}" y="38" width="12" height="12" fill="{_color(number)}"/>')
        parts.append(f'<text x="{x + 18}" y="49" {FONT}>{escape(name)}</text>')
    for place, (quantity, about) in enumerate(QUANTITIES.items()):
        parts += _panel(found, quantity, about, end, HEAD + place * PANEL)
    height = HEAD + PANEL * len(QUANTITIES) + 10
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}">'
        f'<rect width="{WIDTH}" height="{height}" fill="white"/>\n{body}\n</svg>\n'
    )


def _panel(found: Mapping[str, list[Sample]], quantity: str, about: str, end: float, top: int) -> list[str]:
    most = max((getattr(each, quantity) for samples in found.values() for each in samples), default=1.0)
    high, bottom = PANEL - 60, top + PANEL - 36
    parts = [f'<text x="{LEFT}" y="{top + 12}" {FONT} font-weight="bold">{escape(about)}</text>']
    for share in (0, 0.5, 1):
        y = bottom - share * high
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{y + 4}" {FONT} text-anchor="end">{share * most:.0f}</text>')
        x = LEFT + share * (WIDTH - LEFT - RIGHT)
        parts.append(
            f'<text x="{x}" y="{bottom + 16}" {FONT} text-anchor="middle">{share * end / 60:.1f} min</text>'
        )
    for number, samples in enumerate(found.values()):
        path, before = [], 0
        for each in samples:
            x = LEFT + each.at / end * (WIDTH - LEFT - RIGHT)
            y = bottom - getattr(each, quantity) / most * high
            path.append(f"{'L' if each.pid == before else 'M'}{x:.1f} {y:.1f}")
            before = each.pid
        if len(path) > 1:
            parts.append(f'<path d="{" ".join(path)}" fill="none" stroke="{_color(number)}"/>')
    return parts


def _color(number: int) -> str:
    return COLORS[number % len(COLORS)]
