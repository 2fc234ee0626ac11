"""A log that nobody can fill: so many lines of a kind in a minute, then how many were left out."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Final, TextIO

from vfu_server import daemon_timer

LEVELS: Final = ("trace", "debug", "info", "warning", "error")
"""What can be asked for, by name."""

LINES: Final = 100
"""Lines of one kind that are written in each period of `SECONDS`."""

SECONDS: Final = 60.0


class _Kind:
    """Lines of one kind, since the first of a period."""

    def __init__(self, since: float) -> None:
        self.since = since
        self.lines = 0
        self.last: logging.LogRecord | None = None  # that was left out

    @property
    def left_out(self) -> int:
        return max(self.lines - LINES, 0)


class BoundedHandler(logging.StreamHandler[TextIO]):
    """Writes to a stream as its base class does, but of each kind of line only so many.

    Lines are of one kind if logger, thread and message, before its arguments are put in, are the same: the
    lines of a function come from its own thread. `extra={"kind": ...}` stands for the message where that says
    too little or too much. When the period ends, and when the handler is closed, a line tells how many were
    left out and what the last one was. Who asks for each command or access (DEBUG and below) gets them all,
    and what they led to.
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(stream)
        self._clock = clock
        self._kinds: dict[tuple[str, str | None, str], _Kind] = {}
        self._timer: threading.Timer | None = None

    def emit(self, record: logging.LogRecord) -> None:
        """Write the record, or count it. Called with the handler's lock held."""
        if logging.getLogger(record.name).getEffectiveLevel() <= logging.DEBUG:
            super().emit(record)
            return
        now = self._clock()
        key = (record.name, record.threadName, str(getattr(record, "kind", record.msg)))
        kind = self._kinds.get(key)
        if kind is None or now - kind.since >= SECONDS:
            if kind is not None:
                self._tell(kind)
            kind = self._kinds[key] = _Kind(now)
        kind.lines += 1
        if kind.left_out:
            kind.last = record
            if self._timer is None:
                # Without a thread the count is told with the next line of the kind, or at the end.
                self._timer = daemon_timer.start(SECONDS, self.tell_ended)
            return
        super().emit(record)

    def close(self) -> None:
        """Tell what was left out. The stream stays open."""
        with self.lock or threading.Lock():
            if self._timer is not None:
                self._timer.cancel()
            for kind in self._kinds.values():
                self._tell(kind)
            self._kinds.clear()
        super().close()

    def tell_ended(self) -> None:
        """Tell what was left out in the periods that ended."""
        with self.lock or threading.Lock():
            self._timer = None
            now = self._clock()
            for key, kind in list(self._kinds.items()):
                if now - kind.since >= SECONDS:
                    self._tell(kind)
                    del self._kinds[key]
            if any(kind.left_out for kind in self._kinds.values()):
                self._timer = daemon_timer.start(SECONDS, self.tell_ended)

    def _tell(self, kind: _Kind) -> None:
        if kind.last is None:
            return
        super().emit(
            logging.LogRecord(
                kind.last.name,
                kind.last.levelno,
                kind.last.pathname,
                kind.last.lineno,
                "%d lines like this were left out, this is the last: %s",
                (kind.left_out, kind.last.getMessage()),
                None,
            )
        )
