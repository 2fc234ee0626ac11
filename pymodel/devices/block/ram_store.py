"""The fast side of a disk in memory: copies between its chunks and guest memory."""

from __future__ import annotations

from array import array

import numpy as np
import numpy.typing as npt

from pymodel.devices.block import store
from pymodel.devices.block.store import Store
from pymodel.memory import Bytes, GuestMemory, place_of
from pymodel.queue.chain import Chain

_DONE, _NOT_NOW = store.DONE, store.NOT_NOW


class RamStore(Store):
    """Where the chunks of `chunk` bytes are, as the `RamDisk` says, and which of them may be written in
    place.

    A chunk that is not there reads as `zeroes`. `written_in` has the epoch of the last write for each block
    of `block` bytes. While the content has a name nothing is written here: the disk has to take that away.
    """

    def __init__(
        self, count: int, chunk: int, block: int, written_in: npt.NDArray[np.uint32], zeroes: Bytes
    ) -> None:
        self.chunk = chunk
        self.block = block
        self.epoch = 0
        self.named = False
        self._zeroes = place_of(zeroes)
        self._places = array("Q", [self._zeroes]) * count
        self._own = array("B", bytes(count))
        self._written_in = written_in

    def put(self, number: int, chunk: Bytes | None) -> None:
        """A chunk is this from now on, and may be written in place; None: it is not there."""
        self._places[number] = self._zeroes if chunk is None else place_of(chunk)
        self._own[number] = chunk is not None

    def share(self, number: int) -> None:
        """A chunk may not be written in place any more."""
        self._own[number] = False

    def read(self, memory: GuestMemory, chain: Chain, first: int, skip: int, length: int, offset: int) -> int:
        """See `Store`. Everything is there."""
        return self.move(memory, chain, first, skip, length, offset, 0)

    def write(
        self, memory: GuestMemory, chain: Chain, first: int, skip: int, length: int, offset: int
    ) -> int:
        """See `Store`. A chunk that is missing, or that a snapshot has, is the disk's matter."""
        if not length:
            return _DONE
        if self.named:
            return _NOT_NOW
        number = offset // self.chunk
        while number <= (offset + length - 1) // self.chunk:
            if not self._own[number]:
                return _NOT_NOW
            number += 1
        number = offset // self.block
        while number <= (offset + length - 1) // self.block:
            self._written_in[number] = self.epoch
            number += 1
        return self.move(memory, chain, first, skip, length, offset, 1)

    def move(
        self, memory: GuestMemory, chain: Chain, first: int, skip: int, length: int, offset: int, write: int
    ) -> int:
        """Copy, piece by piece: each is cut at the end of a segment and at that of a chunk."""
        while length:
            if skip >= chain.lengths[first]:
                skip -= chain.lengths[first]
                first += 1
                continue
            count = chain.lengths[first] - skip
            count = min(count, length)
            count = min(count, self.chunk - offset % self.chunk)
            if write:
                memory.copy_out(
                    chain.addresses[first] + skip,
                    self._places[offset // self.chunk] + offset % self.chunk,
                    count,
                )
            else:
                memory.copy_in(
                    chain.addresses[first] + skip,
                    self._places[offset // self.chunk] + offset % self.chunk,
                    count,
                )
            skip += count
            offset += count
            length -= count
        return _DONE

    def clean(self) -> int:
        """See `Store`: nothing is more durable than memory here."""
        return 1
