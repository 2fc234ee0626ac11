"""A network function of the model between a driver in this process and a port that a test holds."""

from __future__ import annotations

import struct
from collections import deque
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any, Self

import numpy as np

from pymodel.devices.net.channel import Channel
from pymodel.devices.net.device import NetDevice
from pymodel.devices.net.filter import Filter
from pymodel.devices.net.port import NetBackend
from pymodel.memory import Bytes
from pymodel.pci.function import Function
from tests.fuzz.local import LocalWorld
from vfu_client.drivers.net import NetDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci

MAC = b"\x02\x00\x00\x00\x00\x01"
PEER = b"\x02\x00\x00\x00\x00\x99"
BROADCAST = b"\xff" * 6
OFFLOADS = sum(1 << bit for bit in (0, 1, 7, 8, 9, 11, 12, 13, 54, 55, 56))
EMPTY = bytes(12)


def ethernet(data: bytes = b"data", to: bytes = MAC, source: bytes = PEER, vlan: int | None = None) -> bytes:
    """An Ethernet frame of at least 60 bytes."""
    tag = b"" if vlan is None else struct.pack(">HH", 0x8100, vlan)
    return (to + source + tag + b"\x88\xb5" + data).ljust(60, b"\0")


def udp(
    source_port: int, to_port: int = 7, *, source: bytes = b"\x0a\0\0\2", to: bytes = b"\x0a\0\0\1"
) -> bytes:
    """A frame with a UDP packet in it; its checksums are 0."""
    ip = struct.pack(">BBHHHBBH", 0x45, 0, 28 + 8, 0, 0, 64, 17, 0) + source + to
    return MAC + PEER + b"\x08\0" + ip + struct.pack(">HHHH", source_port, to_port, 16, 0) + bytes(18)


class FakePort:
    """Keeps what is sent, hands out what it was given. `room` counts the frames that it still takes."""

    def __init__(self, offloads: int = OFFLOADS) -> None:
        self.offloads = offloads
        self.link_up = True
        self.waits: Sequence[tuple[int, int]] = ()
        self.sent: list[bytes] = []
        self.incoming: deque[Bytes] = deque()
        self.room = 1 << 30
        self.features = 0
        self.filter: Filter | None = None
        self.configured = 0
        self.wake: Callable[[], None] = lambda: None

    def connect(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def configure(self, features: int, receive: Filter | None) -> None:
        self.features, self.filter = features, receive
        self.configured += 1

    def send(self, frame: Sequence[Bytes]) -> bool:
        if not self.room:
            return False
        self.room -= 1
        self.sent.append(b"".join(part.tobytes() for part in frame))
        return True

    def receive(self) -> Bytes | None:
        return self.incoming.popleft() if self.incoming else None

    def at_once(self) -> Channel | None:
        return None

    def counters(self) -> dict[str, int]:
        return {}

    def close(self) -> None:
        pass


class NetRig:
    """VF 1 with a fake port, driven. `restart` drives it anew with other options."""

    def __init__(
        self, *, queues: int = 1, mtu: int | None = None, offloads: int = OFFLOADS, **options: Any
    ) -> None:
        self.port = FakePort(offloads)
        backends = {name: NetBackend(FakePort(offloads)) for name in ("pf", "vf2", "vf3")}
        backends["vf1"] = NetBackend(self.port, MAC, mtu)
        self.world = LocalWorld("net", backends, queues=queues)
        self._memory = GuestMemory()
        self._memory.add_region(64 << 20)
        connection = self.world.connect("vf1")
        self._memory.attach(connection)
        self.pci = VirtioPci(connection, self._memory)
        self.restart(**options)

    def restart(self, **options: Any) -> None:
        """Reset the device and set it going again."""
        self.driver = NetDriver(self.pci, **options)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.pci.close()
        self._memory.close()

    @property
    def function(self) -> Function:
        return self.world.function("vf1")

    @property
    def device(self) -> NetDevice:
        device = self.function.transport.device
        assert isinstance(device, NetDevice)
        return device

    @property
    def counters(self) -> dict[str, int]:
        """The device's counters that are not 0."""
        return {name: count for name, count in self.device.counters().items() if count}

    def put(self, *frames: bytes, header: bytes = EMPTY) -> None:
        """Frames come in."""
        for frame in frames:
            self.port.incoming.append(np.frombuffer(header + frame, np.uint8))
        self.port.wake()
        assert self.world.pump()

    def got(self, pair: int = 0) -> list[bytes]:
        """The frames that the driver has received."""
        return [frame.data for frame in self.driver.poll(pair=pair)]

    def wanted(self, frame: bytes) -> bool:
        """Whether the function wants a frame."""
        return self.port.filter is not None and self.port.filter.accepts(np.frombuffer(frame, np.uint8))

    def work(self) -> None:
        """Service the function once, whatever woke it."""
        self.world.serve("vf1")
        assert self.world.pump()
