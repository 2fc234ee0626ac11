"""A port that stands on a pair of sockets, in a server of the test's own process.

Each packet is a frame behind its virtio header, as with a tap, and a test has the other end: so it needs no
rights, and can have any header come in.
"""

from __future__ import annotations

import contextlib
import os
import select
import socket
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pymodel.devices.net.port import FRAME_MAX, NetBackend
from pymodel.memory import Bytes
from tests.wire.in_process import serving
from vfu_server.datapath import TapChannel
from vfu_server.networks.frame_port import FramePort, NoPort

EMPTY = bytes(12)
"""The header of a frame that needs nothing."""


class PairPort(FramePort):
    """`peer` is the test's end. `asked` counts the frames that went through Python, out and in, `turns` how
    often the function's thread had nothing to do any more.
    """

    def __init__(self, offloads: int) -> None:
        super().__init__()
        self.offloads = offloads
        self.asked = [0, 0]
        self.turns = 0
        self.peer, self._socket = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.peer.settimeout(20)
        self._socket.setblocking(False)
        self._channel = TapChannel(self._socket.fileno())

    def try_send(self, data: bytes) -> None:
        """Have a frame come in, if there is room for it within a moment."""
        if select.select([], [self.peer], [], 0.01)[1]:
            self.peer.send(data)

    def drain(self) -> None:
        """Take what was sent and nobody read."""
        while select.select([self.peer], [], [], 0)[0]:
            self.peer.recv(FRAME_MAX)

    def forget(self) -> None:
        """Lose all that is under way, while no driver runs the function."""
        self.drain()
        with contextlib.suppress(BlockingIOError):
            while True:
                self._socket.recv(FRAME_MAX)

    def close(self) -> None:
        self._channel.fd = -1
        self.peer.close()
        self._socket.close()

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        self.turns += 1
        events |= select.POLLOUT if refused else 0
        return ((self._socket.fileno(), events),) if events else ()

    def _write(self, frame: Sequence[Any]) -> bool | None:
        self.asked[0] += 1
        try:
            os.writev(self._socket.fileno(), frame)
        except BlockingIOError:
            return None
        return True

    def _read(self) -> Bytes | None:
        try:
            data = self._socket.recv(FRAME_MAX)
        except OSError:
            return None
        self.asked[1] += 1
        return np.frombuffer(bytearray(data), np.uint8)


@contextlib.contextmanager
def served(*, offloads: int, queues: int = 1, mtu: int | None = None) -> Iterator[tuple[Path, PairPort]]:
    """A PF without a network and VF 1 on a `PairPort`: the folder of their sockets, and the port."""
    port = PairPort(offloads)
    backends = {"pf": NetBackend(NoPort()), "vf1": NetBackend(port, b"\x02\0\0\0\0\1", mtu)}
    with contextlib.closing(port), serving("net", backends, queues=queues) as (path, _):
        yield path, port
