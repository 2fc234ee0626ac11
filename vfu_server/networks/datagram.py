"""Unix datagram sockets as a port, as QEMU's `-netdev dgram`: each frame is a datagram."""

from __future__ import annotations

import errno
import logging
import os
import select
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from pymodel.devices.net.port import FRAME_MAX
from pymodel.memory import Bytes
from vfu_server.datapath import COMPILED, DatagramChannel
from vfu_server.networks.frame_port import HEADER, IOV_MAX, FramePort, after_header, joined, needs_work
from vfu_server.socket_path import bound

log: Final = logging.getLogger("virtio.net")


_LOST: Final = (errno.EMSGSIZE, errno.ENOBUFS, errno.ENOMEM)
"""Errors of one frame, which say nothing of who is there."""


class DatagramPort(FramePort):
    """Receives at `local`, sends to `remote`; while nobody is there, frames are lost. The link is always up.

    Raises OSError where there can be no socket at `local`.
    """

    def __init__(self, local: Path, remote: Path) -> None:
        super().__init__()
        self._local = local
        self._remote = os.fspath(remote)
        self._socket = bound(socket.SOCK_DGRAM, local)
        # One byte more than a frame has, to know one that is longer.
        self._buffer = memoryview(bytearray(FRAME_MAX - HEADER + 1))
        self._room: socket.socket | None = None
        # How many frames had been sent when it was told that nobody is there.
        self._told = -1
        if COMPILED:
            self._channel = DatagramChannel(self._socket.fileno(), os.fsencode(remote))

    def close(self) -> None:
        """Close the socket and remove it."""
        self._channel.fd = -1
        self._forget_room()
        self._socket.close()
        self._local.unlink(missing_ok=True)

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        waits = [(self._socket.fileno(), events)] if events else []
        if refused:
            waits.append(((self._room or self._socket).fileno(), select.POLLOUT))
        return waits

    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        if needs_work(frame):
            return False
        parts: Sequence[Any] = after_header(frame)
        if len(parts) > IOV_MAX:
            parts = [joined(parts)]
        self._forget_room()
        try:
            self._socket.sendmsg(parts, (), 0, self._remote)
        except BlockingIOError:
            return None if self._expect_room() else False
        except OSError as error:
            if self._told != self._channel.sent and error.errno not in _LOST:
                self._told = self._channel.sent
                log.warning(
                    "%s: nobody is there, and frames are lost until then: %s", self._remote, error.strerror
                )
            return False
        return True

    def _read(self) -> Bytes | None:
        try:
            count = self._socket.recv_into(self._buffer)
        except OSError:
            return None
        if count == len(self._buffer):
            count = 0  # too long: no frame
        frame = np.zeros(HEADER + count, np.uint8)
        frame[HEADER:] = self._buffer[:count]
        return frame

    def _expect_room(self) -> bool:
        """Have a descriptor that tells of room: whether there is one.

        A socket that is not connected is writable as long as its own buffer is not full, however full its
        peer's queue may be; one that is connected knows. Ours can't be: it would receive from none but that
        peer, and not from the one that comes after it.
        """
        writable = select.poll()
        writable.register(self._socket, select.POLLOUT)
        if not writable.poll(0):
            return True
        try:
            room = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        except OSError:
            return False  # no file descriptor: the frame is lost
        try:
            room.connect(self._remote)
        except OSError:
            room.close()
            return False
        self._room = room
        return True

    def _forget_room(self) -> None:
        if self._room is not None:
            self._room.close()
            self._room = None
