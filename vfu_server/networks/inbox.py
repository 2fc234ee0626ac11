"""Frames on their way to one member of the switch."""

from __future__ import annotations

import contextlib
import mmap
from array import array
from typing import Final

import numpy as np

from pymodel.devices.net.filter import Filter
from pymodel.devices.net.frame_head import FrameHead
from pymodel.devices.net.port import FRAME_MAX
from pymodel.memory import Bytes, GuestMemory, Vectors, place_of
from vfu_server.vfio.event import Event
from vfu_server.vfio.mutex import Mutex

FRAMES_MAX: Final = 1024
BYTES_MAX: Final = 4 << 20
"""What one member can have waiting. What comes on top is lost, as at a full queue of a real switch."""

# Compiled code has numbers of its own for these.
_FRAMES_MAX, _BYTES_MAX = FRAMES_MAX, BYTES_MAX
# Frames lie in one run of bytes each: so the longest may have to leave a gap of almost its size at the end.
_ROOM = BYTES_MAX + 2 * FRAME_MAX
# How far a frame has come: its sender writes it, it is there, it is to be thrown away; both of these.
_BEGUN, _WHOLE, _VOID, _BEGUN_VOID = range(4)


def _pages() -> Bytes:
    """Memory for an inbox, of small pages: those that are never used are never there. Raises MemoryError."""
    try:
        pages = mmap.mmap(-1, _ROOM, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(str(error)) from error
    with contextlib.suppress(OSError):  # a kernel without large ones
        pages.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(pages, np.uint8)


class Inbox:
    """A bounded queue of frames from many threads to one, which `event` tells when it had found it empty.

    What is put in is what `filter` wants (None: nothing) and one with `features` takes as it is. Its memory
    is there from the first filter on. `lost` counts frames for which there was no room.

    The mutex is never held while a frame is copied: a sender first takes a place for it, and the memory that
    it copies from may fault. So a frame that was begun is waited for, and those behind it with it.
    """

    def __init__(self) -> None:
        self.event = Event()
        self.features = 0
        self.filter: Filter | None = None
        self.lost = 0
        self._mutex = Mutex()
        self._told = False
        self._data: Bytes | None = None
        self._base = 0
        # Of each frame, from number `first` on: where it begins, how many bytes it has, how far it is.
        self._starts = array("I")
        self._lengths = array("I")
        self._states = array("B")
        self._first = 0
        self._count = 0
        self._bytes = 0
        # Where the next one begins.
        self._end = 0

    # -- for the member -----------------------------------------------------------------------------------

    def want(self, wanted: Filter | None) -> None:
        """What is put in from now on. Raises MemoryError with nothing changed."""
        if wanted is not None and self._data is None:
            self._starts, self._lengths = array("I", bytes(4 * FRAMES_MAX)), array("I", bytes(4 * FRAMES_MAX))
            self._states = array("B", bytes(FRAMES_MAX))
            data = _pages()
            self._base = place_of(data)
            self._data = data
        before = self.filter
        self._mutex.take()
        self.filter = wanted
        self._mutex.give()
        del before  # only now, when nobody asks it any more

    def clear(self, features: int) -> int:
        """Want nothing, throw all away, and have those that are wanted next be for these features.

        How many were thrown away.
        """
        self.want(None)
        return self.empty(features)

    def empty(self, features: int) -> int:
        """The same, where nothing is wanted."""
        count = 0
        number = 0
        self._mutex.take()
        self.features = features
        while number < self._count:
            slot = (self._first + number) % _FRAMES_MAX
            count += self._states[slot] in (_BEGUN, _WHOLE)
            self._states[slot] = _BEGUN_VOID if self._states[slot] in (_BEGUN, _BEGUN_VOID) else _VOID
            number += 1
        self.skip()
        self._mutex.give()
        return count

    def look(self) -> int:
        """How many bytes the first frame has, which is at `place`; 0 if there is none, and `event` then tells
        of the next one.
        """
        length = 0
        self._mutex.take()
        self.skip()
        if self._count and self._states[self._first] == _WHOLE:
            length = self._lengths[self._first]
        elif self._told:
            self._told = False
            self.event.forget()
        self._mutex.give()
        return length

    def place(self) -> int:
        """Where in the process's memory the first frame is."""
        return self._base + self._starts[self._first]

    def drop(self) -> int:
        """The first frame is not needed any more."""
        self._mutex.take()
        self._states[self._first] = _VOID
        self.skip()
        self._mutex.give()
        return 0

    def take(self) -> Bytes | None:
        """The first frame; None if there is none. Raises MemoryError, and then the frame is lost."""
        length = self.look()
        if not length:
            return None
        assert self._data is not None
        start = self.place() - self._base
        try:
            return self._data[start : start + length].copy()
        finally:
            self.drop()

    def close(self) -> None:
        """Take nothing any more, and tell of nothing."""
        self.clear(0)
        self._mutex.take()
        self.event.close()
        self._mutex.give()

    # -- for senders, on any thread ------------------------------------------------------------------------

    def takes(self, head: FrameHead) -> int:
        """Whether the frame with this head can be put in as it is, or is not wanted."""
        self._mutex.take()
        found = (
            not head.needed & ~self.features
            or self.filter is None
            or not self.filter.wants(head.first, head.second)
        )
        self._mutex.give()
        return found

    def wants(self, head: FrameHead) -> int:
        """Whether the frame with this head is wanted."""
        self._mutex.take()
        found = self.filter is not None and self.filter.wants(head.first, head.second)
        self._mutex.give()
        return found

    def put(
        self, head: FrameHead, needed: int, memory: GuestMemory, frame: Vectors, piece: int, length: int
    ) -> int:
        """Append the frame with this head, if it is wanted. It has `length` bytes, which are in pieces from
        number `piece` on, and is for who has the features `needed`. Where there is no room it is lost, and
        counted.
        """
        slot = -1
        self._mutex.take()
        if self.filter is not None and self.filter.wants(head.first, head.second):
            slot = self.reserve(length, needed)
        self._mutex.give()
        if slot < 0:
            return 0
        state = _VOID
        try:
            memory.collect(self._base + self._starts[slot], length, frame, piece)
            state = _WHOLE
        finally:
            self.finish(slot, state)
        return 1

    def lose(self, count: int) -> int:
        """Count frames that could not even be put."""
        self._mutex.take()
        self.lost += count
        self._mutex.give()
        return 0

    # -- with the mutex ------------------------------------------------------------------------------------

    def reserve(self, length: int, needed: int) -> int:
        """A place for a frame: its number, or -1."""
        if self._count == _FRAMES_MAX or self._bytes + length > _BYTES_MAX or needed & ~self.features:
            self.lost += 1
            return -1
        slot = (self._first + self._count) % _FRAMES_MAX
        # Those that wait are never between the end of the last one and its start.
        if self._end + length > _ROOM:
            self._end = 0
        self._starts[slot] = self._end
        self._lengths[slot] = length
        self._states[slot] = _BEGUN
        self._end += length
        self._bytes += length
        self._count += 1
        return slot

    def finish(self, slot: int, state: int) -> int:
        """A frame that was begun is whole, or void. Takes the mutex itself."""
        self._mutex.take()
        self._states[slot] = _VOID if self._states[slot] == _BEGUN_VOID else state
        self.skip()
        if not self._told and self._count and self._states[self._first] == _WHOLE:
            self._told = True
            self.event.tell()
        self._mutex.give()
        return 0

    def skip(self) -> int:
        """Free the void ones that come first."""
        while self._count and self._states[self._first] == _VOID:
            self._bytes -= self._lengths[self._first]
            self._first = (self._first + 1) % _FRAMES_MAX
            self._count -= 1
        if not self._count:
            # What is used again and again stays in the cache, and the rest is never touched.
            self._first = self._end = 0
        return 0
