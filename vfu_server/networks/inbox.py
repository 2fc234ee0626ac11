"""Frames on their way to one member of the switch."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import Final

from pymodel.memory import Bytes
from vfu_server.networks.frame_port import nobody

FRAMES_MAX: Final = 1024
BYTES_MAX: Final = 4 << 20
"""What one member can have waiting. What comes on top is lost, as at a full queue of a real switch."""


class Inbox:
    """A bounded queue of frames from many threads to one, which is woken when it had found it empty."""

    def __init__(self) -> None:
        self.wake: Callable[[], None] = nobody
        self.lost = 0
        self._lock = threading.Lock()
        self._frames: deque[Bytes] = deque()
        self._bytes = 0
        self._asked = True  # found empty, and not woken since

    def put(self, frames: list[Bytes]) -> None:
        """Append frames; those that find no room are lost, and counted. Any thread may call it."""
        with self._lock:
            count = 0
            for frame in frames:
                if len(self._frames) == FRAMES_MAX or self._bytes + len(frame) > BYTES_MAX:
                    break
                self._frames.append(frame)
                self._bytes += len(frame)
                count += 1
            self.lost += len(frames) - count
            asked = self._asked and count > 0
            if asked:
                self._asked = False
        if asked:
            self.wake()

    def lose(self, count: int) -> None:
        """Count frames that could not even be put. Any thread may call it."""
        with self._lock:
            self.lost += count

    def take(self) -> Bytes | None:
        """The first frame; None if there is none, then `wake` is called when there is one again."""
        with self._lock:
            if not self._frames:
                self._asked = True
                return None
            frame = self._frames.popleft()
            self._bytes -= len(frame)
            return frame

    def clear(self) -> int:
        """Throw all away. How many those were."""
        with self._lock:
            count = len(self._frames)
            self._frames.clear()
            self._bytes = 0
            self._asked = True
            return count
