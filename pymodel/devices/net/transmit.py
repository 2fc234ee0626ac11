"""The transmit side of a network device: frames from the driver's buffers to the port.

virtio 1.4, "Packet Transmission".
"""

from __future__ import annotations

from typing import Final

import numpy as np

from pymodel.devices.net import header as net_header
from pymodel.devices.net.channel import Channel
from pymodel.devices.net.counters import NetCounters
from pymodel.devices.net.port import FRAME_MAX, Port
from pymodel.devices.net.receive import Receiver
from pymodel.devices.net.steering import Steering
from pymodel.devices.net.transmit_engine import TransmitEngine
from pymodel.memory import Buffer, Bytes, GuestMemory
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import net

_EMPTY: Final[Bytes] = np.frombuffer(net_header.EMPTY, np.uint8)


class Transmitter:
    """Sends what is in the buffers of transmit queues. `receiver` learns by which queue answers come back."""

    def __init__(self, port: Port, receiver: Receiver, counters: NetCounters) -> None:
        self._port = port
        self._receiver = receiver
        self._counters = counters
        self._features = 0
        self._blocked: set[int] = set()
        self._engines: dict[int, TransmitEngine] = {}

    def reset(self) -> None:
        """As before a driver came."""
        self._features = 0
        self._blocked = set()

    def negotiated(self, features: int) -> None:
        """Take the driver's features, which say what a header may ask for."""
        self._features = features

    def accepts(self, queue: int) -> bool:
        """Whether the port took the last frame of this queue."""
        return queue not in self._blocked

    def unblock(self) -> set[int]:
        """The queues that wait for the port, also in their engines: it is to be tried again."""
        blocked, self._blocked = self._blocked, set()
        for queue, engine in self._engines.items():
            if engine.full:
                engine.full = False
                blocked.add(queue)
        return blocked

    def drop(self, queue: int) -> None:
        """Forget that a queue waits."""
        self._blocked.discard(queue)
        self._engines.pop(queue, None)

    def engine(self, queue: Virtqueue, memory: GuestMemory, channel: Channel) -> TransmitEngine | None:
        """What sends the frames of a queue; None while it waits, and where steering learns of each frame."""
        if not self.accepts(queue.index) or self._receiver.steering.learns:
            return None
        engine = self._engines.get(queue.index)
        if engine is None or engine.life != queue.life or engine.channel is not channel:
            start = self._receiver.header_size
            engine = TransmitEngine(queue, memory, channel, self._counters, self._features, start)
            self._engines[queue.index] = engine
        engine.fd = channel.room
        return engine

    def send(self, buffer: Buffer, *, cable: bool) -> None:
        """Send the frame in `buffer` and complete that; without a cable, or for a bad one, it is dropped.

        Where the port takes none now the buffer is given back, and its queue waits.
        """
        readable, queue = buffer.readable, buffer.queue
        start = self._receiver.header_size
        length = readable.length - start
        if not net.ETHERNET_HEADER <= length <= FRAME_MAX - net_header.SIZE:
            self._refuse(buffer, "tx-dropped-length")
            return
        # A legacy driver's ends before the last field, which says nothing here.
        raw = readable.read(0, min(start, net_header.SIZE)).ljust(net_header.SIZE, b"\0")
        header = net_header.checked(raw, length, self._features, net_header.TRANSMIT)
        if header is None:
            self._refuse(buffer, "tx-dropped-header")
            return
        if not cable:
            self._refuse(buffer, "tx-dropped-link-down")
            return
        # The header is ours: the guest may change its own after we looked.
        first = _EMPTY if header == net_header.EMPTY else np.frombuffer(header, np.uint8)
        if not self._port.send([first, *readable.views(start, length, write=False)]):
            self._hold_back(buffer)
            return
        steering = self._receiver.steering
        if steering.learns:
            steering.sent(queue // 2, readable.read(start, min(length, Steering.HEAD)))
        self._counters.sent(queue, length)
        buffer.complete(0)

    def _hold_back(self, buffer: Buffer) -> None:
        """The port takes no frame now: the queue goes on when it does."""
        try:
            buffer.give_back()
        except RuntimeError:
            # With --io-delay-ms the buffers behind it were taken too.
            self._refuse(buffer, "tx-dropped-congested")
        else:
            self._blocked.add(buffer.queue)

    def _refuse(self, buffer: Buffer, reason: str) -> None:
        self._counters.drop(reason, buffer.queue)
        buffer.complete(0)
