"""What all ports on a file descriptor have in common."""

from __future__ import annotations

import os
import select
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from pymodel.devices.net.channel import Channel
from pymodel.devices.net.filter import Filter
from pymodel.devices.net.port import FRAME_MAX
from pymodel.memory import Bytes
from pymodel.spec import net

HEADER: Final = net.HEADER.itemsize

LEAST: Final = HEADER + net.ETHERNET_HEADER
"""Bytes of the shortest frame. One without a whole Ethernet header is none."""

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")

UNWANTED_MAX: Final = 64
"""Frames that one `receive` may throw away, so that a flood of what nobody wants stalls no function."""


def nobody() -> None:
    """Wake nobody: there is no function yet."""


class FramePort(ABC):
    """A `Port` that counts, filters, and tells of frames once. What it stands on reads and writes frames.

    It counts with its channel, as does whoever uses that meanwhile.
    """

    offloads: int = 0
    link_up: bool = True

    def __init__(self) -> None:
        self._wake: Callable[[], None] = nobody
        self._features = 0
        self._quiet = False  # told of frames already
        self._refused = False
        self._channel = Channel()

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """The descriptor, unless nothing is waited for: a hung-up one would be an event even then."""
        events = 0 if self._quiet or self._channel.filter is None else select.POLLIN
        return self._poll(events, self._refused)

    def connect(self, wake: Callable[[], None]) -> None:
        """See `Port`."""
        self._wake = wake
        self.configure(0, None)

    def configure(self, features: int, receive: Filter | None) -> None:
        """See `Port`."""
        self._features = features
        self._channel.filter = receive
        self._quiet = self._refused = False
        if receive is not None:
            self._wake()  # frames may have been read already

    def send(self, frame: Sequence[Bytes]) -> bool:
        """See `Port`."""
        length = sum(map(len, frame))
        if not LEAST <= length <= FRAME_MAX:
            self._channel.dropped_sending += 1
            return True
        try:
            taken = self._write(frame)
        except MemoryError:
            taken = False
        if taken is None:
            # Stays so if another queue's frame is taken now: this one's must be asked for again all the same.
            self._refused = True
            return False
        if taken:
            self._channel.sent += 1
            self._channel.sent_bytes += length - HEADER
        else:
            self._channel.dropped_sending += 1
        return True

    def receive(self) -> Bytes | None:
        """See `Port`."""
        # Who asks has been told of room; what it does not send again now may never be sent.
        self._refused = False
        wanted = self._channel.filter
        if wanted is None:
            return None
        for _ in range(UNWANTED_MAX):
            try:
                frame = self._read()
            except MemoryError:
                self._channel.dropped_receiving += 1
                continue
            if frame is None:
                self._quiet = False
                return None
            if len(frame) >= LEAST and wanted.accepts(frame[HEADER:]):
                self._quiet = True
                self._channel.received += 1
                self._channel.received_bytes += len(frame) - HEADER
                return frame
            self._channel.dropped_receiving += 1
        self._quiet = False
        self._wake()
        return None

    def at_once(self) -> Channel | None:
        """See `Port`."""
        return self._channel if self._channel.fd >= 0 else None

    def counters(self) -> dict[str, int]:
        """See `Port`. Bytes are those of Ethernet frames."""
        return {
            "frames-sent": self._channel.sent,
            "bytes-sent": self._channel.sent_bytes,
            "frames-received": self._channel.received,
            "bytes-received": self._channel.received_bytes,
            "dropped-sending": self._channel.dropped_sending,
            "dropped-receiving": self._channel.dropped_receiving,
        }

    @abstractmethod
    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        """What `waits` gives: POLLIN if `events` has it, and room to send again if a frame was refused."""

    @abstractmethod
    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        """Send a frame; False if it is lost, None if it is to be sent again later."""

    @abstractmethod
    def _read(self) -> Bytes | None:
        """The next frame, of any length up to `FRAME_MAX`; None if there is none now."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back."""


def after_header(frame: Sequence[Bytes]) -> list[Bytes]:
    """The parts of a frame without its virtio header."""
    start = HEADER
    for index, part in enumerate(frame):
        if start < len(part):
            return [part[start:], *frame[index + 1 :]]
        start -= len(part)
    return []


def needs_work(frame: Sequence[Bytes]) -> bool:
    """Whether a frame is without its checksum or to be segmented, so that as it is nobody could read it."""
    head = frame[0] if len(frame[0]) >= 2 else joined(frame)
    return bool(head[0] & net.HDR_F_NEEDS_CSUM) or head[1] != net.GSO_NONE


def write(fd: int, parts: Sequence[Any]) -> int:
    """Write the parts of a frame in one call. Returns how many bytes that took, and raises, as writev(2)."""
    return os.writev(fd, parts if len(parts) <= IOV_MAX else [joined(parts).data])


def joined(frame: Sequence[Bytes]) -> Bytes:
    """A copy of a frame that is nobody else's."""
    return np.concatenate(frame) if len(frame) > 1 else frame[0].copy()


class NoPort(FramePort):
    """A port without a carrier, which loses what it is given."""

    link_up = False

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        return ()

    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        return False

    def _read(self) -> Bytes | None:
        return None

    def close(self) -> None:
        """Nothing to give back."""
