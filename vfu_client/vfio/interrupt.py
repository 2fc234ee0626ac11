"""One interrupt as the driver sees it: an eventfd that the server signals."""

from __future__ import annotations

import errno
import os
import select

from vfu_client.vfio.connection import Connection, VfioUserError


class Interrupt:
    """An eventfd and the wait for it. Owns the descriptor until `close`.

    `connection` is that of the server which signals it: when it hangs up, nobody does any more.
    """

    def __init__(self, connection: Connection | None = None) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._connection = connection
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        if connection is not None:
            self._poll.register(connection.fileno(), select.POLLRDHUP)

    def fileno(self) -> int:
        return self._fd

    def wait(self, timeout: float) -> int:
        """Block until signalled and return how often; the count is taken away.

        Raises `TimeoutError`, and `VfioUserError` with ECONNRESET as soon as the server hangs up.
        """
        ready = [fd for fd, _ in self._poll.poll(max(timeout, 0) * 1000)]
        if self._fd in ready:
            return self.drain()
        if ready and self._connection is not None:
            raise VfioUserError(errno.ECONNRESET, "the server hung up", self._connection.path)
        raise TimeoutError(f"no interrupt within {timeout:.3g} s")

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
