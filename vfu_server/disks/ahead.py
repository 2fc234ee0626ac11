"""Flushes ahead of a release: a guest that stands still for one need not wait for all that it wrote."""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

from vfu_server.disks.medium import Medium

AHEAD_SECONDS: Final = 0.05
"""From one flush to the next; where the last one took longer, as long as that: requests want the disk too."""


class FlushAhead:
    """Flushes an open medium now and then, from now until `end`, and until one fails.

    Nobody is told of that one, but each flush after it fails too (`Medium.flush`). It has a thread of its
    own, as one of the pool's would be missing there. Raises RuntimeError or MemoryError where none can be
    had.
    """

    def __init__(self, medium: Medium, name: str) -> None:
        self._medium = medium
        self._name = name
        self._enough = threading.Event()
        self._log = logging.getLogger("virtio.disk")
        threading.Thread(target=self._work, name=f"disk {name} ahead", daemon=True).start()

    def end(self) -> None:
        """Begin no more. One may be under way, and the medium may be closed all the same."""
        self._enough.set()

    def _work(self) -> None:
        pause = AHEAD_SECONDS
        while not self._enough.wait(pause):
            began = time.monotonic()
            try:
                self._medium.flush()
            except OSError as error:
                if not self._enough.is_set():
                    self._log.error("%s: %s", self._name, error)
                return
            pause = max(AHEAD_SECONDS, time.monotonic() - began)
