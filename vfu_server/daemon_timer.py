"""A call in a while that nobody waits for."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable


def start(seconds: float, call: Callable[[], None]) -> threading.Timer | None:
    """Have `call` called on a thread of its own, unless the program ends before. None without one."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    with contextlib.suppress(RuntimeError, MemoryError):
        timer.start()
        return timer
    return None
