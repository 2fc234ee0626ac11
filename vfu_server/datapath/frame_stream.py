"""A stream of frames, each behind its length, 4 bytes in network order: what of it is under way here."""

from __future__ import annotations

from typing import Final

from pymodel.devices.net import header
from pymodel.devices.net.port import FRAME_MAX

LONGEST: Final = FRAME_MAX - header.SIZE
"""Bytes of the longest frame."""

LENGTH: Final = 4
"""Bytes of a length."""

# What `next` says of a frame that is not all there, and of a length that no frame has.
PART, BAD = 0, -1

# Compiled code has numbers of its own for these.
_LONGEST, _LENGTH, _PART, _BAD = LONGEST, LENGTH, PART, BAD

_BUFFER: Final = 256 << 10


class FrameStream:
    """Both directions of a connection. Whoever uses it holds the connection's lock.

    Frames are read many at a time: what was read and not yet asked for is [start, end) of `came`, and
    `length` what the first frame's length said. What is to be written first, of a frame that the peer has in
    part, is [sent, kept) of `rest`; `blocked`: it is not gone, or the peer takes nothing now.
    """

    def __init__(self) -> None:
        self.came = memoryview(bytearray(_BUFFER))
        self.rest = memoryview(bytearray(LENGTH + LONGEST))
        self.clear()

    def clear(self) -> int:
        """Begin anew, with another peer."""
        self.start = self.end = 0
        self.length = 0
        self.sent = self.kept = 0
        self.blocked = False
        return 0

    def next(self) -> int:
        """Bytes of the first frame that was read, behind its length at `start`; PART or BAD."""
        if self.end - self.start < _LENGTH:
            return _PART
        self.length = 0
        at = self.start
        while at < self.start + _LENGTH:
            self.length = self.length << 8 | self.came[at]
            at += 1
        if not self.length or self.length > _LONGEST:
            return _BAD
        return self.length if at + self.length <= self.end else _PART

    def make_room(self) -> int:
        """Have what was read at the start of `came`; there is room behind it unless a frame can be taken."""
        left = self.end - self.start
        if self.start and left:
            self.came[:left] = self.came[self.start : self.end]
        self.start = 0
        self.end = left
        return 0
