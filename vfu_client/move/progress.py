"""How far a large state is on its way, told now and then."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

LARGE_BYTES: Final = 64 << 20
PERIOD_SECONDS: Final = 1.0
"""States from so many bytes on are told of, so often."""


class Progress:
    """To be called with how many bytes are done, and how many there are; `what` is what goes on."""

    def __init__(self, what: str, say: Callable[[str], None]) -> None:
        self._what = what
        self._say = say
        self._began = self._told = time.monotonic()

    def __call__(self, done: int, whole: int) -> None:
        now = time.monotonic()
        if whole < LARGE_BYTES or not done or now - self._told < PERIOD_SECONDS:
            return
        self._told = now
        left = max(whole - done, 0) * (now - self._began) / done
        self._say(f"{self._what}: {done >> 20} of {whole >> 20} MiB, about {left:.0f} s more")


def silent(_done: int, _whole: int) -> None:
    """For what nobody waits for."""


def nobody(_line: str) -> None:
    """For lines that nobody is to hear."""
