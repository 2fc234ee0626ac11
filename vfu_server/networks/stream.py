"""A Unix stream socket as a port, framed as QEMU's `-netdev stream`: each frame behind its length."""

from __future__ import annotations

import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Final

import numpy as np

from pymodel.memory import Bytes
from vfu_server.datapath import COMPILED, StreamChannel
from vfu_server.datapath.frame_stream import BAD, LENGTH, LONGEST, PART, FrameStream
from vfu_server.networks.frame_port import HEADER, FramePort, after_header, needs_work, write
from vfu_server.socket_path import bound
from vfu_server.vfio.turn_lock import TurnLock

RECONNECT_SECONDS: Final = 1.0

_LENGTH: Final = struct.Struct(">I")

log: Final = logging.getLogger("virtio.net")


class StreamPort(FramePort):
    """One peer at a time. Connects to `path` again and again, or with `server` listens there.

    A thread makes the connection, sees it go, and writes the rest of a frame that went out in part; the
    function's own reads and writes frames, here or through the channel. The lock keeps either from a socket
    that the other closes. Raises OSError where it can't listen.
    """

    def __init__(self, path: Path, *, server: bool) -> None:
        super().__init__()
        self.link_up = False
        self._path = path
        self._listener: socket.socket | None = None
        if server:
            self._listener = bound(socket.SOCK_STREAM, path)
            self._listener.listen(1)
        self._lock = TurnLock()
        self._peer: socket.socket | None = None
        self._gone = ""  # why the peer is to be left
        self._stream = FrameStream()
        self._came, self._rest = memoryview(self._stream.came), memoryview(self._stream.rest)
        self._closing = False
        self._absent = ""  # why nobody is connected, as far as that was told
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._room = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)  # for the channel
        if COMPILED:
            self._channel = StreamChannel(self._lock, self._stream, self._news, self._room)
        self._thread = threading.Thread(target=self._main, name=f"stream {path.name}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Hang up, and remove the socket that was listened at."""
        self._closing = True
        os.eventfd_write(self._news, 1)
        self._thread.join()
        os.close(self._news)
        os.close(self._room)
        if self._listener is not None:
            self._listener.close()
            self._path.unlink(missing_ok=True)

    # On the function's thread.

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        # Room to send is the thread's to see: the function could not write the rest of an earlier frame.
        with self._lock:
            if not events or self._peer is None or self._gone:
                return ()
            return ((self._peer.fileno(), events),)

    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        if needs_work(frame):
            return False
        parts = after_header(frame)
        parts.insert(0, np.frombuffer(_LENGTH.pack(sum(map(len, parts))), np.uint8))
        with self._lock:
            if self._peer is None or self._gone:
                return False
            sent = 0
            try:
                if not self._stream.blocked:
                    sent = write(self._peer.fileno(), parts)
            except BlockingIOError:
                pass
            except OSError as error:
                self._leave(str(error.strerror))
                return False
            if sent == sum(map(len, parts)):
                return True
            if not self._stream.blocked:
                self._keep(parts, sent)
            if sent:
                return True
            # The thread looks at this with the lock: it is not to miss it.
            self._refused = True
            return None

    def _keep(self, parts: Sequence[Bytes], sent: int) -> None:
        """Have the thread write what the peer does not have of a frame that it has in part, and see room."""
        stream = self._stream
        stream.sent = stream.kept = 0
        for part in parts if sent else ():
            left = part[sent:]
            sent -= len(part) - len(left)
            end = stream.kept + len(left)
            self._rest[stream.kept : end] = left.data
            stream.kept = end
        stream.blocked = True
        os.eventfd_write(self._news, 1)

    def _read(self) -> Bytes | None:
        with self._lock:
            while self._peer is not None and not self._gone:
                frame = self._next()
                if frame is not None:
                    return frame
                if not self._fill(self._peer):
                    return None
        return None

    def _next(self) -> Bytes | None:
        """The first frame of what was read, if all of it is there."""
        length = self._stream.next()
        if length == BAD:
            self._leave(f"it sent a frame of {self._stream.length} bytes; up to {LONGEST} are taken")
        if length in (BAD, PART):
            return None
        begin = self._stream.start + LENGTH
        self._stream.start = end = begin + length  # also of a frame that there is no memory for
        frame = np.zeros(HEADER + length, np.uint8)
        frame[HEADER:] = self._came[begin:end]
        return frame

    def _fill(self, peer: socket.socket) -> bool:
        """Read on. Whether there was anything."""
        self._stream.make_room()
        try:
            count = peer.recv_into(self._came[self._stream.end :])
        except BlockingIOError:
            return False
        except OSError as error:
            self._leave(str(error.strerror))
            return False
        if not count:
            self._leave("it hung up")
        self._stream.end += count
        return count > 0

    def _leave(self, reason: str) -> None:
        """Have the thread drop the peer. With the lock held."""
        if not self._gone:
            self._gone = reason
        self._channel.fd = -1
        os.eventfd_write(self._news, 1)

    # On the thread of the connection.

    def _main(self) -> None:
        while not self._closing:
            peer = self._accepted() if self._listener is not None else self._connected()
            if peer is not None:
                self._attend(peer)

    def _accepted(self) -> socket.socket | None:
        assert self._listener is not None
        self._wait(None, (self._listener.fileno(), select.POLLIN))
        try:
            return self._listener.accept()[0]
        except BlockingIOError:  # woken for something else
            return None
        except OSError as error:  # as when there are no descriptors left: the one who waits stays an event
            log.warning("%s: nobody can be let in: %s", self._path, error.strerror)
            self._pause()
            return None

    def _connected(self) -> socket.socket | None:
        with ExitStack() as opened:
            try:
                # Not blocking: a listener that accepts nobody must not hold up the end.
                kind = socket.SOCK_STREAM | socket.SOCK_NONBLOCK
                peer = opened.enter_context(socket.socket(socket.AF_UNIX, kind))
                peer.connect(os.fspath(self._path))
            except OSError as error:
                if str(error) != self._absent:
                    self._absent = str(error)
                    log.warning(
                        "%s: nobody is connected, tried again each second: %s", self._path, error.strerror
                    )
                self._pause()
                return None
            opened.pop_all()
        self._absent = ""
        return peer

    def _attend(self, peer: socket.socket) -> None:
        """Stay with a peer until it goes."""
        peer.setblocking(False)
        with self._lock:
            self._peer, self._gone = peer, ""
            self._stream.clear()
            self._channel.fd = peer.fileno()
            self.link_up = True
        log.info("%s: connected", self._path)
        self._wake()
        others = [] if self._listener is None else [(self._listener.fileno(), select.POLLIN)]
        while not self._closing and not self._gone:
            found = self._wait(None, (peer.fileno(), select.POLLOUT if self._stream.blocked else 0), *others)
            events = found.pop(peer.fileno(), 0)
            if found:
                log.warning("%s: another peer waits; there is one at a time", self._path)
                others = []
            with self._lock:
                if events & (select.POLLERR | select.POLLHUP):
                    self._leave("it hung up")
                elif events & select.POLLOUT:
                    self._go_on(peer)
                refused = self._refused
            if events & select.POLLOUT and refused:
                self._wake()
        if not self._closing:
            log.warning("%s: the peer is gone: %s", self._path, self._gone)
        with self._lock:
            self._peer = None
            self._channel.fd = -1
            self.link_up = False
            peer.close()
        self._wake()
        if not self._closing:
            # One that comes back at once to do wrong again is to fill no log.
            self._pause()

    def _go_on(self, peer: socket.socket) -> None:
        """Write the rest of a frame. The function may send again when all of it is gone."""
        stream = self._stream
        try:
            if stream.sent < stream.kept:
                stream.sent += peer.send(self._rest[stream.sent : stream.kept])
        except BlockingIOError:
            return
        except OSError as error:
            self._leave(str(error.strerror))
        stream.blocked = stream.sent < stream.kept
        if not stream.blocked:
            os.eventfd_write(self._room, 1)

    def _pause(self) -> None:
        """Wait before the next connection, whatever the function has to say of the last one."""
        end = time.monotonic() + RECONNECT_SECONDS
        while not self._closing and (left := end - time.monotonic()) > 0:
            self._wait(left)

    def _wait(self, seconds: float | None, *also: tuple[int, int]) -> dict[int, int]:
        """Wait for news, for events of other descriptors, which are returned, or for some seconds."""
        waiting = select.poll()
        for fd, events in ((self._news, select.POLLIN), *also):
            waiting.register(fd, events)
        found = dict(waiting.poll(None if seconds is None else seconds * 1000))
        if found.pop(self._news, 0):
            os.eventfd_read(self._news)
        return found
