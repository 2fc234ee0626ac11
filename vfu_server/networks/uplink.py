"""The switch's way out of the server: a port, and a thread that works on it as functions do on theirs."""

from __future__ import annotations

import logging
import os
import select
import threading
from typing import Final

from pymodel.devices.net.filter import Filter
from pymodel.devices.net.port import Port
from pymodel.memory import Bytes
from vfu_server.networks.frame_port import nobody
from vfu_server.networks.switch import GUEST_OFFLOADS, Switch

BATCH: Final = 64
"""Frames in one direction before the other has its turn."""

log: Final = logging.getLogger("virtio.net")


class Uplink:
    """Serves `port` as a member of `switch` until `close`, which closes the port too."""

    def __init__(self, port: Port, switch: Switch) -> None:
        self.port = port
        self._switch = switch
        self._member = switch.join()
        self._held: Bytes | None = None  # what the port had no room for
        self._malformed = 0
        self._closing = False
        self._news = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        features, everything = port.offloads & GUEST_OFFLOADS, Filter()
        port.connect(self._wake)
        port.configure(features, everything)
        self._member.inbox.clear(features)
        self._member.inbox.want(everything)
        self._thread = threading.Thread(target=self._main, name="uplink", daemon=True)
        self._thread.start()

    def counters(self) -> dict[str, int]:
        """Those of the port, what it was too slow for, and what it brought that is no good frame."""
        return {
            **self.port.counters(),
            "dropped-queueing": self._member.inbox.lost,
            "dropped-malformed": self._malformed,
        }

    def close(self) -> None:
        """End the thread."""
        self._closing = True
        self._wake()
        self._thread.join()
        self._member.inbox.close()
        self.port.connect(nobody)
        self.port.close()
        os.close(self._news)

    def _wake(self) -> None:
        os.eventfd_write(self._news, 1)

    def _main(self) -> None:
        try:
            while not self._closing:
                self._turn()
        except Exception:  # a bug of ours must not hurt the functions
            log.exception("internal error: the uplink is no longer served, please report it")

    def _turn(self) -> None:
        more = self._receive()
        more = self._send() or more
        waiting = select.poll()
        waiting.register(self._news, select.POLLIN)
        if self._held is None:
            waiting.register(self._member.inbox.event.fd, select.POLLIN)
        for fd, events in self.port.waits:
            waiting.register(fd, events)
        found = waiting.poll(0 if more else None)
        if any(fd == self._news for fd, _ in found):
            os.eventfd_read(self._news)

    def _receive(self) -> bool:
        """Forward what came in. Whether there may be more."""
        for _ in range(BATCH):
            frame = self.port.receive()
            if frame is None:
                return False
            self._malformed += not self._switch.forward(self._member, frame)
        return True

    def _send(self) -> bool:
        """Send what is to go out. Whether there may be more that can go now."""
        for _ in range(BATCH):
            frame = self._held if self._held is not None else self._member.inbox.take()
            if frame is None:
                return False
            self._held = None if self.port.send((frame,)) else frame
            if self._held is not None:
                return False
        return True
