"""A virtqueue: its configuration, what it counts and owes, and the way of buffers from kick to used ring.

virtio 1.4, "Virtqueues". Where buffers stand in memory is the matter of its ring, split or packed.
"""

from __future__ import annotations

import contextlib
from collections import deque

from pymodel.errors import BrokenQueue, InvalidField, MemoryFault
from pymodel.memory import Consumer, GuestMemory, Segments
from pymodel.migration.state import QueueState
from pymodel.queue.broken import RING_REASONS
from pymodel.queue.chain import Chain
from pymodel.queue.packed import PackedRing
from pymodel.queue.ring import Ring, RingBuffer
from pymodel.queue.split import SplitRing
from pymodel.spec import virtio, virtio_pci
from pymodel.watcher import Watcher

# Buffers taken, and bytes moved by them, before a queue lets its thread look at anything else. Whoever waits
# for the function's lock waits for a batch at most.
BATCH = 256
BATCH_BYTES = 32 << 20

# queue_notif_config_data of queue 0; the next ones follow. Not the index, so that nobody takes one for the
# other.
NOTIFY_DATA = 0x100

# What `written` is of a buffer that was not completed, and of one that was given back.
_NOT_YET = -1
_GIVEN_BACK = -2


class TakenBuffer(RingBuffer):
    """A buffer of a queue. `life` is that of the queue when it was taken: in another one it is forgotten."""

    __slots__ = ("_owner", "life", "number")

    def __init__(self, owner: Virtqueue, memory: GuestMemory) -> None:  # its ring has said that there is one
        chain = owner.chain
        owner.ring.take(memory, chain)
        self.queue = owner.index
        self.readable = Segments(memory, chain.pairs(0, chain.readable_count), chain.readable_size)
        self.writable = Segments(memory, chain.pairs(chain.readable_count, chain.count), chain.writable_size)
        self.id = chain.id
        self.slots = chain.slots
        self.written = _NOT_YET
        self.life = owner.life
        self.number = 0
        self._owner = owner

    def complete(self, written: int) -> None:
        """See `Buffer`. The driver sees it when the queue settles."""
        if self.written == _NOT_YET and self.life == self._owner.life:
            self.written = written
            self._owner.completed(self)

    def next(self) -> TakenBuffer | None:
        """See `Buffer`."""
        return self._owner.take_next() if self.life == self._owner.life else None

    @property
    def ring_is_full(self) -> bool:
        """See `Buffer`."""
        return self.life == self._owner.life and self._owner.full

    def give_back(self) -> None:
        """See `Buffer`."""
        if self.written == _NOT_YET and self.life == self._owner.life:
            self._owner.take_back(self)
            self.written = _GIVEN_BACK


class Virtqueue:
    """One queue of a function. Its fields are those of the common configuration, for the transport to set.

    `chain` is where a buffer is taken up. `ring` is of the format that was negotiated: a new one each time
    the queue is reset, negotiated or restored, and a split one until then. `owed` is an interrupt that the
    driver asked for and has not been sent. `outstanding` counts buffers taken and not used. `waiting` says
    that the last `run` ended because the consumer took no more. `untouched` is for a queue from which nothing
    was ever taken. `requests` and `bytes` count what was taken ever, and how much was read and written by it;
    `kicks` and `interrupts` what the data path saw and sent. `in_order`: whether the consumer finishes
    buffers in the order in which they come, negotiated or not. `long_tables`: an indirect table may have so
    many descriptors, however few the ring has. `watcher` is told what becomes of buffers. `in_flight` has
    the ids of buffers that a consumer has, each with where it was taken, in the form of `Ring.last_avail`.
    """

    def __init__(self, index: int, max_size: int, *, in_order: bool = False, long_tables: int = 0) -> None:
        self.index = index
        self.max_size = max_size
        self._refetchable = in_order
        self._long_tables = long_tables
        self.notify_data = (NOTIFY_DATA + index) & 0xFFFF
        self.outstanding = 0
        # Since the function was made; nothing resets them.
        self.requests = 0
        self.bytes = 0
        self.kicks = 0
        self.interrupts = 0
        self.life = 0
        self.chain = Chain()
        self.watcher: Watcher | None = None
        self._memory: GuestMemory | None = None
        self.reset()

    def reset(self, features: int = 0) -> None:
        """Back to the state after a device reset, and after `features` were negotiated. Buffers still
        outstanding are forgotten.
        """
        self.size = self.max_size
        self.vector = virtio_pci.NO_VECTOR
        self.enabled = False
        self.desc = 0
        self.driver = 0
        self.device = 0
        self.owed = False
        self.waiting = False
        self.untouched = True
        # Whether the position is in the ring's memory only.
        self._lost = False
        self.negotiated(features)
        self.abandon()

    def abandon(self) -> None:
        """Forget the buffers that are outstanding: they complete into nothing."""
        self.outstanding = 0
        self.life += 1
        self.ring.forget()
        # With IN_ORDER: all that are outstanding and not yet used, in the order of taking.
        self._line: deque[TakenBuffer] = deque()
        self.in_flight: dict[int, int] = {}
        # Taken by the consumer itself, with `next`, in this round.
        self._further: list[TakenBuffer] = []
        self._taken = 0

    def negotiated(self, features: int) -> None:
        """Take the negotiated features that make the ring's rules. The queue is not enabled."""
        self.ring = _format(features)(
            self.index,
            event_idx=bool(features >> virtio.F_EVENT_IDX & 1),
            indirect=bool(features >> virtio.F_INDIRECT_DESC & 1),
            in_order=bool(features >> virtio.F_IN_ORDER & 1),
            long_tables=self._long_tables,
        )
        self._in_order = self.ring.in_order
        self._shown_notify_data = self.notify_data if features >> virtio.F_NOTIF_CONFIG_DATA & 1 else 0

    @property
    def full(self) -> bool:
        """See `Buffer.ring_is_full`: what is completed will be the driver's to use again."""
        return self.ring.full and not self.ring.completed

    @property
    def ready(self) -> bool:
        """Whether an engine may take buffers: in order, so what the consumer has not finished holds it up."""
        held_up = self._in_order and self.outstanding
        return self.enabled and not self.untouched and not self._lost and not held_up

    @property
    def notif_config_data(self) -> int:
        """queue_notif_config_data: 0 unless that was negotiated."""
        return self._shown_notify_data

    def trouble(self) -> str | None:
        """Why the queue cannot be enabled as it is set up, else None."""
        if not self.ring.accepts_size(self.size):
            return f"queue {self.index}: a {self.ring.name} ring of {self.size} descriptors"
        if not self.ring.aligned(self.desc, self.driver, self.device):
            return f"queue {self.index}: a ring address is not aligned"
        return None

    def enable(self) -> None:
        """Begin, on rings without `trouble`."""
        self.enabled = True
        self.ring.place(self.size, self.desc, self.driver, self.device)

    def capture(self) -> QueueState:
        """The queue as plain values.

        Where buffers are outstanding in order, its position is that of the first of them: whoever goes on
        from there fetches them again. Others are lost for it.
        """
        state = QueueState(
            index=self.index,
            size=self.size,
            msix_vector=self.vector,
            enable=int(self.enabled),
            notify_off=self.index,
            notif_config_data=self.notif_config_data,
            desc=self.desc,
            driver=self.driver,
            device=self.device,
            # Of what was shown and not decided on yet, rather one too many.
            interrupt_owed=self.owed or self.ring.unanswered > 0,
            lost=self._lost,
        )
        self.ring.capture(state)
        if self.outstanding and self._refetchable:
            state.last_avail_idx, state.last_avail = state.used_idx, state.last_used
        return state

    def check(self, state: QueueState, features: int) -> None:
        """Raise `InvalidField`, with the reason, for a state that this queue cannot be in with `features`."""
        name = f"queue {self.index}"
        ring = _format(features)
        if state.notify_off != self.index:
            raise InvalidField(f"{name}: notify_off {state.notify_off}, here it is {self.index}")
        if not 0 < state.size <= self.max_size:
            raise InvalidField(f"{name}: size {state.size} is not in 1 to {self.max_size}")
        if state.enable > 1 or state.reset:
            raise InvalidField(f"{name}: enable {state.enable}, reset {state.reset}")
        named = features >> virtio.F_NOTIF_CONFIG_DATA & 1
        if state.notif_config_data != self.notify_data and (
            state.notif_config_data or (named and state.enable)
        ):
            raise InvalidField(
                f"{name}: notif_config_data {state.notif_config_data:#x}, here it is {self.notify_data:#x}"
            )
        if state.enable:
            if not ring.accepts_size(state.size):
                raise InvalidField(f"{name}: a {ring.name} ring of {state.size} descriptors")
            if not ring.aligned(state.desc, state.driver, state.device):
                raise InvalidField(f"{name}: a ring address is not aligned")
        ring.check(state)

    def restore(self, state: QueueState) -> None:
        """Take over a state, after a `reset` with the features that `check` accepted it with."""
        self.size = state.size
        self.vector = state.msix_vector
        self.desc = state.desc
        self.driver = state.driver
        self.device = state.device
        if state.enable:
            self.enable()
            self.ring.restore(state)
            self._lost = state.lost
        self.owed = state.interrupt_owed
        self.untouched = False

    def run(self, memory: GuestMemory, consumer: Consumer) -> bool:
        """Take what the driver made available, up to a batch, and settle whether an interrupt is owed.

        Returns whether the queue may hold more. Raises `BrokenQueue`; what was completed stays so.
        """
        self.waiting = False
        self._memory = memory
        if self.watcher is not None:
            self.watcher.turn(self.index)
        if self._lost:
            self.ring.find(memory)
            self._lost = False
        self.ring.suppress_kicks(memory)
        try:
            more = self._rounds(memory, consumer)
        except BrokenQueue as error:
            if error.reason >= 0:
                error.args = (f"queue {self.index}: {error}{self._place(error.reason)}",)
            if self.watcher is not None:
                self.watcher.broke(self.index, error)
            self.publish(memory)
            raise
        self.settle(memory)
        return more

    def _place(self, reason: int) -> str:
        """Where in the ring the chain is that was looked at last, and how far that came."""
        chain = self.chain
        where = self.ring.where()
        if reason in RING_REASONS:
            return f" ({where})"
        # A packed ring's chain begins at its position, and has an id in its last descriptor only.
        head = f", head {chain.id}" if self.ring.name == SplitRing.name else ""
        return f" ({where}{head}, descriptor {chain.descriptor} of the table at {chain.table:#x})"

    def _rounds(self, memory: GuestMemory, consumer: Consumer) -> bool:
        ring, life = self.ring, self.life
        rounds, enough = 0, self.bytes + BATCH_BYTES
        while True:
            rounds += 1
            if not ring.pending(memory):
                if not ring.ask_for_kicks(memory):
                    return False
                # A guest that moves its index to and fro is not followed for ever.
                if rounds > BATCH:
                    return True
                continue
            if not consumer.accepts(self.index):
                self.waiting = True
                return False
            if rounds > BATCH or self.bytes >= enough:
                return True
            buffer = self._take(memory)
            try:
                consumer.take(buffer)
            except MemoryFault:
                # For another try, with all that was taken for it.
                for taken in (*reversed(self._further), buffer):
                    taken.give_back()
                raise
            finally:
                if self._further:
                    self._further.clear()
            if self.life != life:
                return False  # the consumer had the device reset
            if buffer.written == _GIVEN_BACK and not ring.ask_for_kicks(memory):
                # A consumer that still accepts wants more buffers than there are. One that does not needs no
                # more than these when it does again, and the driver has no reason to kick.
                self.waiting = not consumer.accepts(self.index)
                return False

    def _take(self, memory: GuestMemory) -> TakenBuffer:
        """Take the buffer that `pending` said is there."""
        self.untouched = False
        position = self.ring.last_avail
        buffer = TakenBuffer(self, memory)
        self.in_flight[buffer.id] = position
        self.outstanding += 1
        self.requests += 1
        self.bytes += buffer.readable.length
        self._taken += 1
        buffer.number = self._taken
        if self._in_order:
            self._line.append(buffer)
        if self.watcher is not None:
            self.watcher.taken(buffer)
        return buffer

    def take_next(self) -> TakenBuffer | None:
        """See `Buffer.next`."""
        memory = self._memory
        if memory is None or not self.ring.pending(memory):
            return None
        buffer = self._take(memory)
        self._further.append(buffer)
        return buffer

    def take_back(self, buffer: TakenBuffer) -> None:
        """See `Buffer.give_back`."""
        if buffer.number != self._taken:
            raise RuntimeError(f"queue {self.index}: buffer {buffer.number} of {self._taken} was given back")
        if self._in_order:
            self._line.pop()
        self._taken -= 1
        self.outstanding -= 1
        self.requests -= 1
        self.in_flight.pop(buffer.id, None)
        self.bytes -= buffer.readable.length
        self.ring.untake(buffer.slots)
        if self.watcher is not None:
            self.watcher.given_back(buffer)

    def completed(self, buffer: TakenBuffer) -> None:
        """See `Buffer.complete`. With IN_ORDER it waits for those that were taken before it."""
        self.bytes += buffer.written
        if self.watcher is not None:
            self.watcher.used(buffer, buffer.written)
        if not self._in_order:
            self._use(buffer)
            return
        line = self._line
        while line and line[0].written != _NOT_YET:
            self._use(line.popleft())

    def _use(self, buffer: RingBuffer) -> None:
        self.in_flight.pop(buffer.id, None)
        self.ring.put(buffer.id, buffer.slots, buffer.written, buffer.marks)

    def publish(self, memory: GuestMemory) -> None:
        """Show the driver what was completed. What cannot be shown now stays for `settle`."""
        with contextlib.suppress(MemoryFault):
            self._publish(memory)

    def _publish(self, memory: GuestMemory) -> int:
        used = self.ring.completed
        if used:
            self.ring.publish(memory)
            self.outstanding -= used
        return 0

    def settle(self, memory: GuestMemory) -> int:
        """Publish what was completed, and decide whether it owes an interrupt.

        Raises `MemoryFault`, and may be called again.
        """
        self._publish(memory)
        if self.ring.unanswered:
            # What is used must be visible before the driver's wish is read: the driver sets its wish and
            # then looks at what is used.
            memory.barrier()
            if self.ring.wants_interrupt(memory):
                self.owed = True
        return 0

    def told(self) -> None:
        """The interrupt is no longer owed."""
        self.owed = False


def _format(features: int) -> type[Ring]:
    """What a queue's ring is with `features`."""
    return PackedRing if features >> virtio.F_RING_PACKED & 1 else SplitRing
