"""Contexts on their way to the owner."""

from __future__ import annotations

import numpy as np

from pymodel.errors import InvalidCommand
from pymodel.memory import Bytes, Segments
from pymodel.migration.context import encode
from pymodel.migration.migratable import Migratable
from pymodel.migration.state import Mark

_MOST = 0xFFFFFFFF
# In place of a buffer that was let go.
_PASSED = np.empty(0, np.uint8)


class _Stream:
    """A context that is being read: its buffers, and how far. `mark` is what its reader has at its end."""

    __slots__ = ("_buffers", "_first", "_offset", "left", "mark")

    def __init__(self, buffers: list[Bytes], mark: Mark) -> None:
        self._buffers = buffers
        self.mark: Mark | None = mark
        self._first = 0  # the buffer that is next, and how much of it was read
        self._offset = 0
        self.left = sum(len(buffer) for buffer in buffers)

    def next(self, count: int) -> list[Bytes]:
        """The next `count` bytes, as views. Moves nothing."""
        offset = self._offset
        pieces: list[Bytes] = []
        for index in range(self._first, len(self._buffers)):
            if count <= 0:
                break
            piece = self._buffers[index][offset : offset + count]
            count -= len(piece)
            offset = 0
            pieces.append(piece)
        return pieces

    def advance(self, count: int) -> None:
        """Go on by `count` bytes; buffers that were passed are let go."""
        self.left -= count
        self._offset += count
        while self._first < len(self._buffers) and self._offset >= len(self._buffers[self._first]):
            self._offset -= len(self._buffers[self._first])
            self._buffers[self._first] = _PASSED
            self._first += 1


class Reading:
    """What the owner reads of a function: the context under way, and what of the content it has already."""

    def __init__(self, function: Migratable) -> None:
        self._function = function
        self._stream: _Stream | None = None
        # The content of the last context that the owner read to its end: what it need not be sent again.
        self._known: Mark | None = None

    @property
    def unread(self) -> int:
        """Bytes that are left of a context that was read in part, else 0."""
        return self._stream.left if self._stream is not None else 0

    def begin_anew(self) -> None:
        """Drop the position: the next read begins a context, which may build on what the owner has."""
        self._stream = None

    def owner_reset(self) -> None:
        """The owner's driver may be another now: the next context that begins is a whole one.

        The position stays (A-29), but who reads on from there has not read what came before it.
        """
        self._known = None
        if self._stream is not None:
            self._stream.mark = None

    def forget(self) -> None:
        """Drop the position and what the owner has: the next read begins a whole context."""
        self._stream = self._known = None

    def size(self, *, anew: bool) -> int:
        """Bytes that are left to read: of the context under way, else of the one that would begin now.

        With `anew` those of a whole context, whatever the owner has.
        """
        if self._stream is not None and not anew:
            return self._stream.left
        return sum(len(buffer) for buffer in encode(self._function.capture(None if anew else self._known)))

    def read(self, target: Segments, start: int) -> tuple[int, int]:
        """Put the next context bytes into `target` from `start` on, as many as fit (A-27).

        Returns (bytes left, bytes placed). Raises `MemoryFault`, the position unmoved, and `InvalidCommand`
        where the position in a ring is not known yet: a context without it would be taken for a whole one.
        """
        if self._stream is None:
            state = self._function.capture(self._known)
            if any(queue.lost for queue in state.queues):
                raise InvalidCommand("the position in a ring is in its memory only, until the function runs")
            self._stream = _Stream(encode(state), self._function.mark())
            self._known = None
        stream = self._stream
        count = min(max(target.length - start, 0), stream.left, _MOST)
        if count:
            stream.advance(target.write(start, stream.next(count)))
        if not stream.left:
            self._known = stream.mark
        return min(stream.left, _MOST), count
