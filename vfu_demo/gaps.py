"""When traffic paused: the gaps that ioverify and netverify print, on the clock of this host."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

GAP_MS = 30
"""What counts as a gap: longer than the programs rest themselves, and than a busy machine has them wait."""

SAMPLES = 5
LINE = re.compile(r"\bfrom\W+([0-9.]+)\W+to\W+([0-9.]+)")

Gap = tuple[float, float]
"""From and to, in seconds."""


def gaps_in(text: str) -> list[Gap]:
    """The gaps in what one of the programs printed, on the clock where it ran."""
    return [(float(start), float(end)) for start, end in LINE.findall(text)]


@dataclass(frozen=True)
class Clock:
    """What the host's CLOCK_MONOTONIC is ahead of a guest's, and how wrong this may be, in seconds."""

    ahead: float
    error: float

    @classmethod
    def of(cls, check: Callable[[str], str]) -> Clock:
        """Ask the guest, whose Machine.check this is, and keep the answer that came soonest."""
        best: Clock | None = None
        for _ in range(SAMPLES):
            sent = time.monotonic()
            # /proc/uptime counts hundredths; a guest that never slept has one clock.
            said = float(check("cat /proc/uptime").split()[0]) + 0.005
            error = (time.monotonic() - sent) / 2
            if best is None or error < best.error:
                best = cls(sent + error - said, error)
        assert best is not None
        return best

    def host(self, gaps: Iterable[Gap]) -> list[Gap]:
        """Gaps of the guest as the host saw them, while the guest was not stopped."""
        return [(start + self.ahead, end + self.ahead) for start, end in gaps]

    def around(self, gaps: Iterable[Gap], stop: Gap) -> list[Gap]:
        """Gaps of a guest that stood still once since this was taken, with that stop (on the host's clock).

        The guest's clock stands still too, so the gap that it was stopped in lasted longer than it knows. It
        is the longest of those where the error lets it be so.
        """
        stopped, resumed = stop
        found = self.host(gaps)
        may = [gap for gap in found if gap[0] - self.error <= stopped <= gap[1] + self.error]
        inside = max(may, key=lambda gap: gap[1] - gap[0], default=(stopped, stopped))
        lasted = resumed - stopped
        around = min(inside[0], stopped), max(inside[1] + lasted, resumed)
        before = [gap for gap in found if gap != inside and sum(gap) < 2 * stopped]
        after = [(gap[0] + lasted, gap[1] + lasted) for gap in found if gap != inside and gap not in before]
        return [*before, around, *after]


def longest_ms(gaps: Iterable[Gap]) -> float:
    """The longest of them in milliseconds, 0 if there is none."""
    return max((round((end - start) * 1e3, 3) for start, end in gaps), default=0.0)


def meeting(gaps: Iterable[Gap], stop: Gap) -> list[Gap]:
    """Those that a stop falls into, or a part of it."""
    return [(start, end) for start, end in gaps if start < stop[1] and end > stop[0]]
