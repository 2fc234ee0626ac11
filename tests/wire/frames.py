"""Ethernet frames, those that a driver gets, and a function's side of a port for tests without a device."""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

import numpy as np

from pymodel.devices.net.filter import Filter, ReceiveFilter
from pymodel.devices.net.port import Port
from pymodel.devices.net.settings import MacTable, Settings
from pymodel.memory import Bytes
from vfu_client.drivers.net import NetDriver

DEADLINE = 10.0
"""Seconds after which what a test waits for is not coming."""

HEADER = 12
BROADCAST = b"\xff" * 6


def mac(number: int) -> bytes:
    """An address of one interface."""
    return bytes((2, 0, 0, 0, number >> 8, number & 0xFF))


def ethernet(to: bytes, origin: bytes, payload: bytes = b"", *, vlan: int | None = None) -> bytes:
    """A frame of at least 60 bytes, of a protocol for experiments (IEEE 802, "local experimental")."""
    tag = b"" if vlan is None else b"\x81\x00" + vlan.to_bytes(2)
    return (to + origin + tag + b"\x88\xb5" + payload).ljust(60, b"\0")


def parts(frame: bytes, *cuts: int, header: bytes = bytes(HEADER)) -> list[Bytes]:
    """A frame behind its virtio header, as a driver would scatter it."""
    whole = np.frombuffer(header + frame, np.uint8)
    return np.split(whole, cuts)


def received(driver: NetDriver, count: int = 1, *, pair: int = 0) -> list[bytes]:
    """The next `count` frames that a driver gets, waited for; no more may be there."""
    found: list[bytes] = []
    patience = max(driver.timeout, DEADLINE)
    while len(found) < count:
        found += [frame.data for frame in driver.receive(patience, pair=pair)]
    assert len(found) == count
    return found


def wants(
    address: bytes, groups: AbstractSet[bytes] = frozenset({BROADCAST}), vlans: AbstractSet[int] | None = None
) -> Filter:
    """A filter: an address of one's own, groups, and VLANs if any."""
    settings = Settings(
        mac=address,
        modes=frozenset() if BROADCAST in groups else frozenset({"nobcast"}),
        multicast=MacTable(frozenset(groups - {BROADCAST})),
        vlans=frozenset(vlans or ()),
    )
    return ReceiveFilter(settings, vlans is not None)


ALL = Filter()


@dataclass
class Hand:
    """A function's side of a port, on the test's own thread."""

    port: Port
    wakes: int = 0
    _woken: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self.port.connect(self._wake)

    def quiet(self) -> bool:
        """Whether the port, once all that it had told was looked at, tells of nothing."""
        self._woken.clear()
        return not self.wait(0.05)

    def _wake(self) -> None:
        self.wakes += 1
        self._woken.set()

    def send(self, frame: bytes, *cuts: int, header: bytes = bytes(HEADER)) -> bool:
        return self.port.send(parts(frame, *cuts, header=header))

    def receive(self) -> bytes | None:
        """What there is now, without its virtio header."""
        found = self.port.receive()
        return None if found is None else found[HEADER:].tobytes()

    def drain(self) -> list[bytes]:
        """All that there is now."""
        found = []
        while (frame := self.receive()) is not None:
            found.append(frame)
        return found

    def wait(self, seconds: float = DEADLINE) -> bool:
        """Wait, as a function's thread does, until the port tells of something. Whether it did."""
        deadline = time.monotonic() + seconds
        while not self._woken.is_set():
            waiting = select.poll()
            for fd, events in self.port.waits:
                waiting.register(fd, events)
            # `wake` of another thread is looked for in between.
            if waiting.poll(5):
                return True
            if time.monotonic() > deadline:
                return False
        self._woken.clear()
        return True

    def next(self) -> bytes:
        """The next frame, waited for."""
        while (frame := self.receive()) is None:
            assert self.wait(), "no frame came"
        return frame

    def expect(self, frames: Iterable[bytes]) -> None:
        """These frames, in this order."""
        for frame in frames:
            assert self.next() == frame

    def until_link(self, up: bool) -> None:
        """Wait for the carrier."""
        while self.port.link_up != up:
            assert self.wait(), f"the link did not go {'up' if up else 'down'}"
