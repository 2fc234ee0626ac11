"""One interrupt as the driver sees it: an eventfd that the server signals."""

from __future__ import annotations

import os
import select


class Interrupt:
    """An eventfd and the wait for it. Owns the descriptor until `close`."""

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)

    def fileno(self) -> int:
        return self._fd

    def wait(self, timeout: float) -> int:
        """Block until signalled and return how often; raises `TimeoutError`. The count is taken away."""
        if not self._poll.poll(max(timeout, 0) * 1000):
            raise TimeoutError(f"no interrupt within {timeout:.3g} s")
        return self.drain()

    def drain(self) -> int:
        """How often it was signalled since the last look, without waiting."""
        try:
            return os.eventfd_read(self._fd)
        except BlockingIOError:
            return 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
