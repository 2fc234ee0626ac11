"""Frames that tell a network where a function is now: what a switch learns from, sent for the guest."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Final

import numpy as np

from pymodel.devices.net.counters import NetCounters
from pymodel.devices.net.filter import BROADCAST
from pymodel.devices.net.header import EMPTY
from pymodel.devices.net.port import Port
from pymodel.devices.net.settings import Settings
from pymodel.memory import Bytes
from pymodel.spec import net

# Announcements that one call sends.
BATCH: Final = 64

_SHORTEST: Final = 60
# RFC 903: Ethernet and IPv4, their lengths, "request reverse".
_RARP: Final = struct.pack(">HHBBH", 1, net.ETHERTYPE_IPV4, net.MAC_SIZE, 4, 3)


class Announcer:
    """Sends announcements by `port` when it takes them, a few at a time."""

    def __init__(self, port: Port, counters: NetCounters) -> None:
        self._port = port
        self._counters = counters
        self.reset()

    def reset(self) -> None:
        """Forget what was not sent yet."""
        self._to_send: Iterator[list[Bytes]] = iter(())
        self._unsent: list[Bytes] | None = None

    def begin(self, settings: Settings) -> None:
        """Have announcements of these settings to send, instead of others."""
        self._to_send, self._unsent = announcements(settings), None

    def send(self) -> bool:
        """Send what the port takes now. Whether to call again soon; else all is sent, or the port tells."""
        for _ in range(BATCH):
            frame = self._unsent or next(self._to_send, None)
            if frame is None:
                return False
            self._unsent = None
            if not self._port.send(frame):
                self._unsent = frame
                return False
            self._counters.count("announcements")
        return True


def announcements(settings: Settings) -> Iterator[list[Bytes]]:
    """For the untagged network, then for each VLAN that the driver asked for: a frame, as `Port.send` has it.

    RARP requests for the function's own address, as QEMU sends them: they need no IP address.
    """
    yield _frame(settings.mac, b"")
    for vlan in sorted(settings.vlans - {0}):
        yield _frame(settings.mac, struct.pack(">HH", net.ETHERTYPE_VLAN, vlan))


def _frame(mac: bytes, tag: bytes) -> list[Bytes]:
    body = _RARP + (mac + bytes(4)) * 2
    frame = BROADCAST + mac + tag + struct.pack(">H", net.ETHERTYPE_RARP) + body
    return [np.frombuffer(EMPTY + frame.ljust(_SHORTEST, b"\0"), np.uint8)]
