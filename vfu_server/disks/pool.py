"""Threads of a disk that may wait, so that the function's own thread and lock need not."""

from __future__ import annotations

import collections
import errno
import logging
import threading
from collections.abc import Callable
from typing import Final

IDLE_SECONDS: Final = 10.0


class Pool:
    """Calls what it is given, in order of arrival, on up to `workers` threads that come and go with the work.

    The last one stays, so that no call is ever left without one. They are daemons: a disk that hangs for good
    can't keep the process from ending.
    """

    def __init__(self, name: str, workers: int) -> None:
        self._name = name
        self._most = workers
        self._log = logging.getLogger("virtio.disk")
        self._calls: collections.deque[Callable[[], None]] = collections.deque()
        self._there = threading.Condition(threading.Lock())
        self._idle = 0
        self._workers = 0

    def submit(self, call: Callable[[], None]) -> None:
        """Have `call` called soon. It must not raise.

        Raises OSError where no thread was there yet and none can be had; the call is then forgotten.
        """
        with self._there:
            self._calls.append(call)
            if len(self._calls) > self._idle and self._workers < self._most:
                try:
                    threading.Thread(target=self._work, name=f"disk {self._name}", daemon=True).start()
                except (RuntimeError, MemoryError):
                    if not self._workers:
                        self._calls.pop()
                        raise OSError(errno.EAGAIN, "no thread can be had") from None
                    self._log.warning("disk %s: no more than %d threads", self._name, self._workers)
                else:
                    self._workers += 1
            else:
                self._there.notify()

    def _work(self) -> None:
        while True:
            with self._there:
                self._idle += 1
                # Looked at after the wait: others may have gone meanwhile.
                while not self._there.wait_for(lambda: self._calls, IDLE_SECONDS) and self._workers == 1:
                    pass
                self._idle -= 1
                if not self._calls:
                    self._workers -= 1
                    return
                call = self._calls.popleft()
            try:
                call()
            except Exception:  # noqa: BLE001 - the one place: the other calls are to go on
                self._log.exception("internal error: please report it")
