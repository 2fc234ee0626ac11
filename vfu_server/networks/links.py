"""Which interfaces of the host are up."""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import struct
import threading
from collections.abc import Callable
from typing import Final

_SIOCGIFFLAGS: Final = 0x8913
_IFF_UP: Final = 0x1
_RTMGRP_LINK: Final = 1

IFREQ: Final = struct.Struct("16sH22x")
"""struct ifreq of linux/if.h with the name of an interface and its flags."""


class LinkWatch:
    """Tells when interfaces go up or down, on a thread of its own that lives from the first to `close`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[str, tuple[Callable[[bool], None], bool]] = {}
        self._events: socket.socket | None = None
        self._stop = -1
        self._thread = threading.Thread(target=self._main, name="links", daemon=True)

    def watch(self, name: str, changed: Callable[[bool], None]) -> bool:
        """Whether the interface is up now. `changed` is called on another thread and must not call back.

        Raises OSError.
        """
        with self._lock:
            if self._events is None:
                events = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_NONBLOCK)
                events.bind((0, _RTMGRP_LINK))
                self._events = events
                self._stop = os.eventfd(0, os.EFD_CLOEXEC)
                self._thread.start()
            up = _is_up(self._events, name)
            self._watched[name] = changed, up
        return up

    def forget(self, name: str) -> None:
        """Call `changed` for this interface no more: when this returns, it is not being called either."""
        with self._lock:
            self._watched.pop(name, None)

    def close(self) -> None:
        """End the thread."""
        if self._events is not None:
            os.eventfd_write(self._stop, 1)
            self._thread.join()
            os.close(self._stop)
            self._events.close()
            self._events = None

    def _main(self) -> None:
        assert self._events is not None
        waiting = select.poll()
        waiting.register(self._events, select.POLLIN)
        waiting.register(self._stop, select.POLLIN)
        while True:
            if any(fd == self._stop for fd, _ in waiting.poll()):
                return
            self._drain(self._events)
            with self._lock:
                for name, (changed, before) in list(self._watched.items()):
                    up = _is_up(self._events, name)
                    if up != before:
                        self._watched[name] = changed, up
                        changed(up)

    @staticmethod
    def _drain(events: socket.socket) -> None:
        """Throw the messages away: what they tell is asked for, as they can be lost."""
        try:
            while events.recv(65536):
                pass
        except BlockingIOError:
            pass
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise


def _is_up(asked: socket.socket, name: str) -> bool:
    """Whether an interface is up; one that is gone is not."""
    try:
        answer = fcntl.ioctl(asked, _SIOCGIFFLAGS, IFREQ.pack(name.encode(), 0))
    except OSError:
        return False
    return bool(IFREQ.unpack(answer)[1] & _IFF_UP)
