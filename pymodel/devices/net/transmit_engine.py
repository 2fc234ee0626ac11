"""Frames of a transmit queue that a port takes at once."""

from __future__ import annotations

from array import array

from pymodel.devices.net import channel as channels
from pymodel.devices.net import header as net_header
from pymodel.devices.net.channel import Channel
from pymodel.devices.net.counters import NetCounters
from pymodel.devices.net.header import TRANSMIT, Header
from pymodel.devices.net.port import FRAME_MAX
from pymodel.memory import GuestMemory, Vectors
from pymodel.queue import engine
from pymodel.queue import ring as any_ring
from pymodel.queue.chain import Chain
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import net

# Compiled code has numbers of its own for these.
_HEADER = net_header.SIZE
_LEAST, _MOST = net.ETHERNET_HEADER, FRAME_MAX - net_header.SIZE
_EMPTY, _NOT_MINE = engine.EMPTY, engine.NOT_MINE
_SKIP = any_ring.SKIP
_DONE, _FULL, _LOST = channels.DONE, channels.FULL, channels.LOST


class TransmitEngine(Engine):
    """The frames of one transmit queue, behind headers of `start` bytes, on one port.

    `features` are the driver's. What is not sent is left to `Transmitter`, which has the reasons. `full`: a
    frame waits for the port to have room, and the driver does not notify of others.
    """

    def __init__(
        self,
        queue: Virtqueue,
        memory: GuestMemory,
        channel: Channel,
        counters: NetCounters,
        features: int,
        start: int,
    ) -> None:
        super().__init__(queue, memory)
        self.channel = channel
        self._counters = counters
        self._start = start
        self._header = Header(TRANSMIT, features)
        # The header is ours: the guest may change its own after we looked.
        own = array("Q", bytes(16))
        self._own = own
        self._own_at = own.buffer_info()[0]
        self._frame = Vectors()
        self.full = False

    def run(self) -> int:
        """See `Engine`. EMPTY also where the port is full: `fd` then tells of room."""
        self.full = False
        self.fd = -1
        result = Engine.run(self)
        if self.full:
            self.fd = self.channel.room
            result = _EMPTY
        return result

    def request(self) -> int:
        """See `Engine`."""
        length = self.chain.readable_size - self._start
        if length < _LEAST or length > _MOST or self.chain.lengths[0] < self._start:
            return _NOT_MINE
        if self.chain.writable_size or self.chain.wraps:
            return _NOT_MINE
        words = self.memory.peek(self.chain.addresses[0])
        offset = self.memory.peek(self.chain.addresses[0] + 4) >> 32 & 0xFFFF
        if not self._header.check(words, offset, length):
            return _NOT_MINE
        self._own[0] = self._header.words
        self._own[1] = self._header.offset
        self._frame.clear()
        self._frame.add(self._own_at, _HEADER)
        skip = self._start
        number = 0
        while number < self.chain.count:
            self.memory.places(
                self.chain.addresses[number] + skip, self.chain.lengths[number] - skip, False, self._frame
            )
            skip = 0
            number += 1
        found = self._frame.size
        if found != _HEADER + length:
            return _NOT_MINE
        said = self.channel.send(self.memory, self._frame)
        if said == _DONE:
            self.channel.sent += 1
            self.channel.sent_bytes += length
        elif said == _LOST:
            self.channel.dropped_sending += 1
        else:
            self.full = said == _FULL
            return _NOT_MINE
        self._counters.sent(self.queue.index, length)
        return 0

    def marks(self, chain: Chain, written: int) -> int:
        """See `Engine`. Nothing was written, nor could be."""
        return _SKIP
