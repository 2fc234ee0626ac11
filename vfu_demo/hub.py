"""A learning switch between Unix sockets: what joins the hosts of the demo where it may not have a bridge."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

LENGTH = struct.Struct(">I")
FRAME_MIN, FRAME_MAX = 14, 65_550
"""Bytes: an Ethernet header, and that with the longest IP packet and a tag."""

BACKLOG_MAX = 4 << 20
"""Bytes that wait for a port; frames beyond that are dropped, as a switch does."""

ADDRESSES_MAX = 1024

GROUP_BIT = 1
"""In the first byte of an address: it is that of a group."""


class _Port:
    """A listening socket and whoever is connected to it, one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.listener = socket.socket(socket.AF_UNIX)
        self.listener.bind(str(path))
        self.listener.listen(1)
        self.listener.setblocking(False)
        self.peer: socket.socket | None = None
        self.received = bytearray()
        self.waiting = bytearray()


class Hub:
    """Listens at a Unix stream socket for each port, with the framing of QEMU's `-netdev stream`.

    A frame is sent to the port where its destination was last seen, else to all others. A thread of its own
    does it, until the context is left. Raises OSError where it cannot listen.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self._ports = [_Port(path) for path in paths]
        self._seen: dict[bytes, _Port] = {}
        self._selector = selectors.DefaultSelector()
        self._end = os.eventfd(0, os.EFD_CLOEXEC)
        self._thread = threading.Thread(target=self._main, name="hub", daemon=True)

    def __enter__(self) -> Self:
        self._selector.register(self._end, selectors.EVENT_READ)
        for port in self._ports:
            self._selector.register(port.listener, selectors.EVENT_READ, port)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._selector.close()
        os.close(self._end)
        for port in self._ports:
            port.listener.close()
            port.path.unlink(missing_ok=True)
            if port.peer is not None:
                port.peer.close()

    def _main(self) -> None:
        while True:
            for key, events in self._selector.select():
                if key.fd == self._end:
                    return
                port: _Port = key.data
                if key.fileobj is port.listener:
                    self._accept(port)
                elif key.fileobj is port.peer:
                    if events & selectors.EVENT_READ:
                        self._receive(port)
                    if events & selectors.EVENT_WRITE and port.peer is not None:
                        self._send(port)

    def _accept(self, port: _Port) -> None:
        with contextlib.suppress(BlockingIOError):
            peer, _ = port.listener.accept()
            self._leave(port)
            peer.setblocking(False)
            port.peer = peer
            self._selector.register(peer, selectors.EVENT_READ, port)

    def _leave(self, port: _Port) -> None:
        if port.peer is not None:
            self._selector.unregister(port.peer)
            port.peer.close()
            port.peer = None
        port.received.clear()
        port.waiting.clear()

    def _receive(self, port: _Port) -> None:
        assert port.peer is not None
        try:
            received = port.peer.recv(1 << 18)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._leave(port)
            return
        port.received += received
        at = 0
        while len(port.received) - at >= LENGTH.size:
            (length,) = LENGTH.unpack_from(port.received, at)
            if not FRAME_MIN <= length <= FRAME_MAX:
                self._leave(port)
                return
            end = at + LENGTH.size + length
            if len(port.received) < end:
                break
            self._forward(port, bytes(port.received[at:end]))
            at = end
        del port.received[:at]

    def _forward(self, port: _Port, message: bytes) -> None:
        destination, source = message[4:10], message[10:16]
        if not source[0] & GROUP_BIT and (source in self._seen or len(self._seen) < ADDRESSES_MAX):
            self._seen[source] = port
        known = None if destination[0] & GROUP_BIT else self._seen.get(destination)
        for other in self._ports if known is None else (known,):
            if other is port or other.peer is None or len(other.waiting) + len(message) > BACKLOG_MAX:
                continue
            idle = not other.waiting
            other.waiting += message
            if idle:
                self._send(other)

    def _send(self, port: _Port) -> None:
        assert port.peer is not None
        try:
            del port.waiting[: port.peer.send(port.waiting)]
        except BlockingIOError:
            pass
        except OSError:
            port.waiting.clear()  # the end of the stream is read soon
        events = selectors.EVENT_READ | (selectors.EVENT_WRITE if port.waiting else 0)
        self._selector.modify(port.peer, events, port)
