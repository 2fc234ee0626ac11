"""A file that is written until it is large enough."""

from __future__ import annotations

import contextlib
import logging
import threading
from pathlib import Path
from typing import Final

from vfu_server import daemon_timer

log: Final = logging.getLogger("virtio.server")


LATE_SECONDS: Final = 1.0
"""How long what was written may not be in the file."""


class BoundedFile:
    """Takes what is written to a new file up to `limit` bytes, from any thread; then it is `full`.

    What was written is in the file a second later. A write that fails ends it too. Both are logged once.
    Raises OSError where the file cannot be made.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self.limit = limit
        self.size = 0
        self.full = False
        self.lock = threading.Lock()
        self._file = path.open("wb")
        self._timer: threading.Timer | None = None

    def put(self, data: bytes) -> bool:
        """Write all of `data`, or nothing. Whether it was written. Called with `lock` held."""
        if self.full or self._file.closed:
            return False
        if self.size + len(data) > self.limit:
            self._end(f"it has the {self.limit >> 20} MiB that it may have")
            return False
        try:
            self._file.write(data)
        except OSError as error:
            self._end(str(error.strerror))
            return False
        self.size += len(data)
        if self._timer is None:
            # Where no thread is to be had, the next write tries again.
            self._timer = daemon_timer.start(LATE_SECONDS, self._flush)
        return True

    def _flush(self) -> None:
        with self.lock:
            self._timer = None
            try:
                if not self._file.closed:
                    self._file.flush()
            except OSError as error:
                self._end(str(error.strerror))

    def _end(self, why: str) -> None:
        self.full = True
        log.warning("%s: nothing more is written: %s", self.path, why)

    def close(self, end: bytes = b"") -> None:
        """Have all that was written in the file, and `end` behind it whether there is room or not."""
        with self.lock, contextlib.suppress(OSError):
            if self._timer is not None:
                self._timer.cancel()
            if not self._file.closed:
                self._file.write(end)
            self._file.close()
