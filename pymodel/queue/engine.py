"""What a device type does with the buffers of a queue at once: compiled, and run without the interpreter.

An engine takes buffers as long as it can do what they ask for on the spot, and stops in front of the first
one that it can't: that one, and all that are not usual, is for the device type's `Consumer`, which knows
every rule and has the words for what is wrong. So nothing is refused here, and an engine is never needed.
"""

from __future__ import annotations

from pymodel.memory import GuestMemory
from pymodel.queue import virtqueue
from pymodel.queue.chain import Chain
from pymodel.queue.virtqueue import Virtqueue

# What `run` says of the queue.
EMPTY, MORE, OTHER, BEGUN = range(4)

_EMPTY, _MORE, _OTHER, _BEGUN = EMPTY, MORE, OTHER, BEGUN

_BATCH = virtqueue.BATCH
_BATCH_BYTES = virtqueue.BATCH_BYTES

# Seconds that an engine waits for more buffers. A driver that means to add some does so at once; Linux adds
# none before it has received something.
PATIENCE = 0.1

# What `request` gives for a buffer that it left alone, and for one that `perform` is to finish.
NOT_MINE, LATER = -1, -2

_NOT_MINE, _LATER = NOT_MINE, LATER


class Engine:
    """One queue, driven while its function's lock is held and its gate is open. A device type has `request`.

    `life` is the queue's when the engine was made ready: what was begun in another one completes into
    nothing. `failed` is the last error number of what was begun, until somebody takes it. `landed`: what was
    begun is done, and its requests are not all told of it. `fd` is readable when there is work beside what
    the driver notifies of, -1 if that can't be now. `held`: there is something for which no buffer may ever
    come, so that the consumer is to have it after `PATIENCE`.
    """

    def __init__(self, queue: Virtqueue, memory: GuestMemory) -> None:
        self.queue = queue
        self.chain = queue.chain
        self.memory = memory
        self.life = queue.life
        # Of the buffer that is being looked at, where it has to go back.
        self._taken = 0
        # Buffers that `perform` is to finish.
        self.begun = 0
        self.landed = False
        self.failed = 0
        self.fd = -1
        self.held = False

    def run(self) -> int:
        """Do what is there, up to a batch, and settle whether an interrupt is owed.

        EMPTY: the driver was asked to notify of what it adds. MORE: another run will find more. OTHER: the
        next buffer is for the consumer. BEGUN: `perform`, without the lock, until `proceed` says no, then
        `finish`, then another run.
        Raises `BrokenQueue`; then `undo` has the queue as the consumer expects it.
        """
        result = _MORE
        rounds = 0
        enough = self.queue.bytes + _BATCH_BYTES
        self.queue.ring.suppress_kicks(self.memory)
        while rounds < _BATCH and self.queue.bytes < enough:
            rounds += 1
            if not self.queue.ring.pending(self.memory):
                if self.begun:
                    result = _BEGUN
                    break
                if not self.queue.ring.ask_for_kicks(self.memory):
                    result = _EMPTY
                    break
                continue
            self.queue.ring.take(self.memory, self.chain)
            self._taken = self.chain.slots
            written = self.request()
            if written == _NOT_MINE:
                self.undo()
                result = _BEGUN if self.begun else _OTHER
                break
            self._taken = 0
            self.queue.outstanding += 1
            self.queue.requests += 1
            self.queue.bytes += self.chain.readable_size
            if written != _LATER:
                self.queue.bytes += written
                self.queue.ring.put(self.chain.id, self.chain.slots, written, self.marks(self.chain, written))
        if self.begun:
            result = _BEGUN
        self.queue.settle(self.memory)
        return result

    def request(self) -> int:
        """Do what the buffer in `chain` asks for: the bytes written, NOT_MINE, or LATER."""
        raise NotImplementedError

    def marks(self, chain: Chain, written: int) -> int:
        """What the ring is to know of a buffer that was used: see `ring.marks`."""
        raise NotImplementedError

    def perform(self) -> int:
        """Do what may take a moment, without the lock and on memory of the engine's own."""
        return 0

    def proceed(self) -> int:
        """Whether there is more to `perform` of what was begun. To be called with the lock."""
        return 0

    def land(self) -> int:
        """Take over how `perform` went: nobody needs to keep anything for `finish`. To be called with the
        lock.
        """
        self.landed = self.begun > 0
        return 0

    def finish(self) -> int:
        """Complete what `perform` did, into nothing if the queue was reset meanwhile."""
        self.begun = 0
        self.landed = False
        return 0

    def complete(self) -> None:
        """`finish` what has `landed`, for Python: where a loop could not."""
        self.finish()

    def undo(self) -> int:
        """Give back the buffer that was being looked at."""
        if self._taken:
            self.queue.ring.untake(self._taken)
            self._taken = 0
        return 0
