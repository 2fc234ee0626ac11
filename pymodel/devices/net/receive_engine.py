"""Frames of a port that a receive queue has room for: straight into the driver's buffers."""

from __future__ import annotations

from array import array

import numpy as np

from pymodel.devices.net import channel as channels
from pymodel.devices.net import filter as net_filter
from pymodel.devices.net import flow
from pymodel.devices.net import header as net_header
from pymodel.devices.net.channel import Channel
from pymodel.devices.net.counters import NetCounters
from pymodel.devices.net.flow import Flow, Toeplitz
from pymodel.devices.net.header import RECEIVE, Header
from pymodel.devices.net.port import FRAME_MAX
from pymodel.memory import Bytes, GuestMemory, Vectors, place_of
from pymodel.queue import engine
from pymodel.queue import ring as any_ring
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import net

# Compiled code has numbers of its own for these.
_HEADER, _ETHERNET = net_header.SIZE, net.ETHERNET_HEADER
_HASHED = net_header.HASHED_SIZE
_HEAD = flow.HEAD
_LONGEST = FRAME_MAX
_EMPTY, _MORE, _OTHER = engine.EMPTY, engine.MORE, engine.OTHER
_SKIP, _WROTE = any_ring.SKIP, any_ring.WROTE
_NOTHING, _NOT_NOW = channels.NOTHING, channels.NOT_NOW
# What a filter looks at.
_LOOK = net_filter.HEAD

# Frames of a batch, buffers that it may take in all, and those that are taken ahead.
_BATCH = 64
_BUFFERS = 1024
_MOST = 128


class ReceiveEngine(Engine):
    """The frames of one port for one queue, behind headers of `start` bytes, which tell of `hashes` where
    there is room for that; without `merge` each in one buffer. Those longer than `longest` are `Receiver`'s.

    Buffers are taken ahead, as many as it takes to have room for frames like those that came last, and given
    back at the end of a batch. A frame that turns out to be longer, or for which `Receiver` has to decide, is
    kept: `left` is how many bytes that has. The first kind goes into the buffers that the driver adds.
    """

    def __init__(
        self,
        queue: Virtqueue,
        memory: GuestMemory,
        channel: Channel,
        counters: NetCounters,
        features: int,
        *,
        start: int,
        hashes: Toeplitz | None,
        merge: bool,
        longest: int,
    ) -> None:
        super().__init__(queue, memory)
        self.channel = channel
        self.left = 0
        self._counters = counters
        self._header = Header(RECEIVE, features)
        self._start = start
        self._hashes = hashes
        self._merge = merge
        self._longest = longest
        self._flow = Flow()
        # The header of the frame that comes in, and behind it a copy of how that begins.
        own = array("Q", bytes(32))
        self._own = own
        self._own_at = own.buffer_info()[0]
        self._spare = np.empty(FRAME_MAX, np.uint8)
        self._spare_at = place_of(self._spare)
        # Bytes for which there is to be room.
        self._enough = 0
        self._room = Vectors()
        # Of each buffer taken: where it begins, the first of its pieces, where it ends if all are one, and
        # what its ring knows it by. Those from number `first` on are not used.
        self._looked_at = 0
        self._first = 0
        self._count = 0
        self._heads = array("Q", bytes(8 * _MOST))
        self._pieces = array("I", bytes(4 * _MOST))
        self._ends = array("q", bytes(8 * (_MOST + 1)))
        self._ids = array("I", bytes(4 * _MOST))
        self._slots = array("I", bytes(4 * _MOST))

    def run(self) -> int:
        """See `Engine`. EMPTY also where no frame waits: `fd` is then that of the port."""
        result = _MORE
        rounds = 0
        self.fd = self.channel.fd
        self.held = False
        # For frames, whatever is in the ring: the consumer may have the next one.
        self.queue.waiting = True
        self.queue.ring.suppress_kicks(self.memory)
        self._looked_at = 0
        while rounds < _BATCH and self._looked_at < _BUFFERS and result == _MORE:
            rounds += 1
            result = self.next()
        self.undo()
        self.queue.settle(self.memory)
        return result

    def next(self) -> int:
        """One frame: what `run` says then."""
        usual = self.fill(max(self._enough, self.left))
        room = self.free()
        if self._first == self._count or room < self.left:
            self.undo()
            if not usual:
                return _OTHER
            if self.queue.ring.ask_for_kicks(self.memory):
                return _MORE
            self.fd = -1
            self.held = self.left > 0
            return _EMPTY
        first = self.open()
        if self.left:
            count = self.left
            self.left = 0
            self.memory.spread(self._spare_at, count, self._room, first)
            return self.deliver(count)
        result = _NOT_NOW
        if room >= _LONGEST or self._room.add(self._spare_at + room, _LONGEST - room):
            result = self.channel.receive(self.memory, self._room, first)
        if room < _LONGEST:
            self._room.cut(self._room.count - 1)
        if result <= 0:
            return _EMPTY if result == _NOTHING else _OTHER
        count = result
        if count < _HEADER + _ETHERNET or not self.wanted(count - _HEADER):
            self.channel.dropped_receiving += 1
            self.close()
            return _MORE
        self.channel.received += 1
        self.channel.received_bytes += count - _HEADER
        self._enough = count * 2 if count * 2 > self._enough else self._enough - (self._enough >> 3)
        self._enough = min(self._enough, _LONGEST)
        if count <= room:
            return self.deliver(count)
        self.keep(count, room)
        return _MORE if self._merge else _OTHER

    def fill(self, needed: int) -> int:
        """Take buffers until there is room for `needed` bytes, and one at least, if there are as many.

        Whether no buffer is there that only the consumer knows what to do with.
        """
        if self._count in (self._first, _MOST):
            self.undo()
        while self._first == self._count or self.free() < needed:
            if self._count == _MOST or (not self._merge and self._count):
                return 1
            if not self.queue.ring.pending(self.memory):
                return 1
            self.queue.ring.take(self.memory, self.chain)
            self._looked_at += 1
            self._taken = self.chain.slots
            if not self.add():
                self._room.cut(self._pieces[self._count])
                self.queue.ring.untake(self._taken)
                self._taken = 0
                return 0
            self._taken = 0
        return 1

    def free(self) -> int:
        """Bytes of a frame, with the header that it has in a port, for which what is taken has room."""
        if self._first == self._count:
            return 0
        return self._ends[self._count] - self._ends[self._first] - self._start + _HEADER

    def add(self) -> int:
        """Note the buffer that was taken. Not one in which the header is not in one piece."""
        number = self._count
        if not self._room.count:
            # For the first header.
            self._room.add(self._own_at, 0)
        self._pieces[number] = self._room.count
        if self.chain.readable_size or not self.chain.count or self.chain.wraps:
            return 0
        if self.chain.lengths[0] < self._start:
            return 0
        self._heads[number] = self.chain.addresses[0]
        self._room.seal()
        before = self._room.size
        part = 0
        while part < self.chain.count:
            self.memory.places(self.chain.addresses[part], self.chain.lengths[part], True, self._room)
            part += 1
        size = self._room.size - before
        if size != self.chain.writable_size or self._room.pieces[2 * self._pieces[number] + 1] < self._start:
            return 0
        self._ids[number] = self.chain.id
        self._slots[number] = self.chain.slots
        self._ends[number + 1] = self._ends[number] + size
        self._count += 1
        return 1

    def open(self) -> int:
        """Have the header of a frame come here, and what lies behind it where it belongs in the first buffer.

        The number of the piece at which such a frame begins: one that was used, or never is.
        """
        first = self._pieces[self._first]
        self._room.pieces[2 * first - 2] = self._own_at
        self._room.pieces[2 * first - 1] = _HEADER
        self._room.pieces[2 * first] += self._start
        self._room.pieces[2 * first + 1] -= self._start
        return first - 1

    def close(self) -> int:
        """The first buffer is to have another frame."""
        first = self._pieces[self._first]
        self._room.pieces[2 * first] -= self._start
        self._room.pieces[2 * first + 1] += self._start
        return 0

    def wanted(self, length: int) -> int:
        """Whether the filter wants the frame of `length` bytes that begins in the first buffer."""
        if self.channel.filter is None:
            return 0
        # Not by its guest address: that may be for the device to write to only.
        self._own[3] = 0
        self.memory.collect(self._own_at + 16, min(length, _LOOK), self._room, self._pieces[self._first])
        return self.channel.filter.wants(self._own[2], self._own[3])

    def deliver(self, count: int) -> int:
        """Use the buffers in which a frame of `count` bytes is, and its header here."""
        length = count - _HEADER
        offset = self._own[1] & 0xFFFF
        if not self._header.check(self._own[0], offset, length) or (
            length > self._longest and not self._header.words >> 8 & 0xFF
        ):
            self.keep(count, count)
            return _OTHER
        end = self._ends[self._first] + self._start + length
        used = 1
        while self._ends[self._first + used] < end:
            used += 1
        head = self._heads[self._first]
        self.memory.poke(head, self._header.words, 8)
        self.memory.poke(head + 8, self._header.offset | used << 16, 4)
        if self._start == _HASHED:
            self.memory.poke(head + _HEADER, self.hash(length), 8)
        while used:
            start = self._ends[self._first]
            until = self._ends[self._first + 1]
            self.queue.ring.put(
                self._ids[self._first],
                self._slots[self._first],
                min(until, end) - start,
                _WROTE if end < until else _SKIP | _WROTE,
            )
            self.queue.outstanding += 1
            self.queue.requests += 1
            self._first += 1
            used -= 1
        self.queue.bytes += self._start + length
        self._counters.received(self.queue.index, length)
        return _MORE

    def hash(self, length: int) -> int:
        """The hash value of the frame in the first buffer, and the report behind it."""
        if self._hashes is None:
            return 0
        count = min(length, _HEAD)
        self.memory.collect(self._flow.head_at, count, self._room, self._pieces[self._first])
        self._flow.read(count)
        self._hashes.of(self._flow)
        report = self._hashes.report
        return report << 32 | self._hashes.value

    def keep(self, count: int, room: int) -> int:
        """Keep a frame of `count` bytes, of which `room` are in the buffers and the others with the spare."""
        self.memory.collect(self._spare_at, room, self._room, self._pieces[self._first] - 1)
        self.close()
        self.left = count
        return 0

    def take_left(self) -> Bytes:
        """The frame that was kept, a copy; it is no longer kept here."""
        count, self.left = self.left, 0
        self.held = False
        return self._spare[:count].copy()

    def undo(self) -> int:
        """Give back what was taken and not used."""
        if self._taken:
            self.queue.ring.untake(self._taken)
            self._taken = 0
        slots = 0
        while self._count > self._first:
            self._count -= 1
            slots += self._slots[self._count]
        if slots:
            self.queue.ring.untake(slots)
        self._first = self._count = 0
        self._room.clear()
        return 0
