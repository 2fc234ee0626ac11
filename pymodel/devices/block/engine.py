"""Block requests that are done at once: reads, writes, GET_ID, and FLUSH where nothing is to be flushed."""

from __future__ import annotations

from array import array

from pymodel.devices.block import store as stores
from pymodel.devices.block.store import Store
from pymodel.memory import GuestMemory
from pymodel.queue import engine
from pymodel.queue import ring as any_ring
from pymodel.queue.chain import Chain
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import block

# Compiled code has numbers of its own for these.
_HEADER = block.REQUEST.itemsize
_SECTOR = block.SECTOR
_IN, _OUT, _FLUSH, _GET_ID = block.T_IN, block.T_OUT, block.T_FLUSH, block.T_GET_ID
_ID_BYTES = block.ID_BYTES
_OK, _IOERR = block.S_OK, block.S_IOERR
_WROTE = any_ring.WROTE
# The type of a request, of the first eight bytes of its header.
_TYPE = 0xFFFF_FFFF
_NOT_MINE, _LATER = engine.NOT_MINE, engine.LATER
_DONE, _BEGUN = stores.DONE, stores.BEGUN

# Writes that can be begun at a time.
_MOST = 64


class BlockEngine(Engine):
    """The requests of one queue on one store.

    `size` and `unit` are the disk's, in bytes, `serial` is what GET_ID gives. Raises MemoryFault in `finish`,
    which may be called again. `may_write`: writes are not refused, and need not be durable when they
    complete.
    """

    def __init__(
        self, queue: Virtqueue, memory: GuestMemory, store: Store, *, size: int, unit: int, serial: bytes
    ) -> None:
        super().__init__(queue, memory)
        self.store = store
        self.size = size
        self.unit = unit
        self._serial = array("B", serial)
        self._serial_at = self._serial.buffer_info()[0]
        self.may_write = False
        # Of what was begun, and how much of it was told.
        self._told = 0
        self._ids = array("I", bytes(4 * _MOST))
        self._slots = array("I", bytes(4 * _MOST))
        self._status = array("Q", bytes(8 * _MOST))
        self._errors = array("i", bytes(4 * _MOST))

    def request(self) -> int:
        """See `Engine`."""
        room = self.chain.writable_size - 1
        if self.chain.readable_size < _HEADER or room < 0 or self.chain.wraps:
            return _NOT_MINE
        if self.chain.lengths[0] < _HEADER or not self.chain.lengths[self.chain.count - 1]:
            return _NOT_MINE
        kind = self.memory.peek(self.chain.addresses[0]) & _TYPE
        sector = self.memory.peek(self.chain.addresses[0] + 8)
        written = 0
        if kind == _IN:
            if not self.fits(sector, room) or self.store.read(
                self.memory, self.chain, self.chain.readable_count, 0, room, sector * _SECTOR
            ):
                return _NOT_MINE
            written = room
        elif kind == _OUT:
            if not self.may_write or self.begun == _MOST or room:
                return _NOT_MINE
            length = self.chain.readable_size - _HEADER
            if not self.fits(sector, length):
                return _NOT_MINE
            result = self.store.write(self.memory, self.chain, 0, _HEADER, length, sector * _SECTOR)
            if result == _BEGUN:
                self._ids[self.begun] = self.chain.id
                self._slots[self.begun] = self.chain.slots
                self._status[self.begun] = self.status_at()
                self.begun += 1
                return _LATER
            if result:
                return _NOT_MINE
        elif kind == _FLUSH:
            if not self.store.clean():
                return _NOT_MINE
        elif kind == _GET_ID:
            # As drivers ask for it; cut, in pieces or in a larger room it is the consumer's.
            if room != _ID_BYTES or self.chain.lengths[self.chain.readable_count] < _ID_BYTES:
                return _NOT_MINE
            self.memory.copy_in(self.chain.addresses[self.chain.readable_count], self._serial_at, _ID_BYTES)
            written = room
        else:
            return _NOT_MINE
        self.memory.poke(self.status_at(), _OK, 1)
        return written + 1 if written == room else 0

    def fits(self, sector: int, length: int) -> int:
        """Whether a range is one of whole blocks on the disk."""
        if sector > self.size // _SECTOR or sector * _SECTOR % self.unit or length % self.unit:
            return 0
        return length <= self.size - sector * _SECTOR

    def status_at(self) -> int:
        """Where the status byte is: the last one of the chain."""
        return self.chain.addresses[self.chain.count - 1] + self.chain.lengths[self.chain.count - 1] - 1

    def marks(self, chain: Chain, written: int) -> int:
        """See `Engine`. A request has both parts, so it is never skipped; its status was written."""
        return _WROTE

    def perform(self) -> int:
        """See `Engine`."""
        return self.store.perform()

    def proceed(self) -> int:
        """See `Engine`."""
        return self.store.proceed(self.queue.life == self.life)

    def land(self) -> int:
        """See `Engine`. The store is free for others then, and may be closed."""
        if self.begun and not self.landed:
            number = 0
            while number < self.begun:
                self._errors[number] = self.store.error(number)
                if self._errors[number]:
                    self.failed = self._errors[number]
                number += 1
            self.store.landed()
            self.landed = True
        return 0

    def finish(self) -> int:
        """See `Engine`."""
        self.land()
        while self._told < self.begun:
            if self.queue.life == self.life:
                self.memory.poke(self._status[self._told], _IOERR if self._errors[self._told] else _OK, 1)
                # Of the writable part there is only the status.
                self.queue.ring.put(self._ids[self._told], self._slots[self._told], 1, _WROTE)
                self.queue.bytes += 1
            self._told += 1
        self.begun = self._told = 0
        self.landed = False
        return 0
