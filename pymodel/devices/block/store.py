"""What a block engine needs of a disk: what can be done on guest memory at once, without the interpreter."""

from __future__ import annotations

from pymodel.memory import GuestMemory
from pymodel.queue.chain import Chain

# What `read` and `write` say: it is done; it is for the disk's `attempt`; it was copied, for `perform`.
DONE, NOT_NOW, BEGUN = range(3)


class Store:
    """The fast side of a disk. Offsets and lengths in bytes were checked; a range may be empty.

    A part of a chain is given as the number of its first segment, and how many bytes of that are to be
    skipped.
    """

    def read(self, memory: GuestMemory, chain: Chain, first: int, skip: int, length: int, offset: int) -> int:
        """From the disk into guest memory: DONE or NOT_NOW, guest memory then holding anything."""
        raise NotImplementedError

    def write(
        self, memory: GuestMemory, chain: Chain, first: int, skip: int, length: int, offset: int
    ) -> int:
        """From guest memory to the disk: DONE, NOT_NOW with nothing written, or BEGUN."""
        raise NotImplementedError

    def clean(self) -> int:
        """Whether all that was written is durable: a FLUSH has nothing to do."""
        raise NotImplementedError

    def perform(self) -> int:
        """Do the writes that were begun, in their order. The function's lock is not held."""
        return 0

    def proceed(self, wanted: int) -> int:
        """Whether `perform` is to be called again, for more of a long write. With the lock; `wanted`: its
        driver is still there.
        """
        return 0

    def error(self, number: int) -> int:
        """The error number of a write that was performed, counted from 0, or 0."""
        return 0

    def landed(self) -> int:
        """How it went is known: room for more."""
        return 0
