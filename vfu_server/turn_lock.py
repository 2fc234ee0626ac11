"""The lock of a function: whoever waits for it is next."""

from __future__ import annotations

import threading
from threading import get_ident


class TurnLock:
    """A reentrant lock that its holder can't have again before one who waits for it.

    A thread that is busy takes its function's lock again at once after it gave it up. With `threading.RLock`
    it mostly wins against a waiter that must first be woken, so a VF with much to do would keep its owner's
    commands waiting. Here a waiter stands in the door, and the thread that comes back has to queue behind it.
    """

    __slots__ = ("_depth", "_door", "_owner", "_room")

    def __init__(self) -> None:
        self._door = threading.Lock()
        self._room = threading.Lock()
        self._owner = 0
        self._depth = 0

    def __enter__(self) -> None:
        me = get_ident()
        # Only this thread ever stores its own number there, so the look needs no lock.
        if self._owner != me:
            with self._door:
                self._room.acquire()
            self._owner = me
        self._depth += 1

    def __exit__(self, *_: object) -> None:
        self._depth -= 1
        if not self._depth:
            self._owner = 0
            self._room.release()
