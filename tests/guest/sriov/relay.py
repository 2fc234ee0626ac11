"""A socket between a client and the server, for a test to cut: to the server its client is gone then."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from pathlib import Path
from typing import Final, Self

BYTES: Final = 1 << 20
DESCRIPTORS: Final = 64


class Relay:
    """Listens at `path` for one client, and hands on to `target` what it sends, file descriptors too."""

    def __init__(self, path: Path, target: Path) -> None:
        self.path = path
        self._target = target
        self._ends: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(1)
        self._start(self._serve)
        return self

    def __exit__(self, *_: object) -> None:
        # Wakes an `accept` that nobody came to.
        self._listener.shutdown(socket.SHUT_RDWR)
        self.cut()
        for thread in self._threads:
            thread.join()
        self._listener.close()
        for end in self._ends:
            end.close()

    def cut(self) -> None:
        """End the connection, as if each side had gone."""
        for end in self._ends:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def _start(self, target: object, *arguments: socket.socket) -> None:
        assert callable(target)
        thread = threading.Thread(target=target, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _serve(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        server = socket.socket(socket.AF_UNIX)
        server.connect(str(self._target))
        self._ends += [client, server]
        self._start(self._carry, client, server)
        self._start(self._carry, server, client)

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                data, descriptors, _, _ = socket.recv_fds(source, BYTES, DESCRIPTORS)
                if not data:
                    break
                sent = socket.send_fds(target, [data], descriptors)
                target.sendall(data[sent:])
                for descriptor in descriptors:
                    os.close(descriptor)
        self.cut()
