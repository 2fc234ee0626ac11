"""A split virtqueue: its configuration, its ring position, and the walk from kick to used ring.

virtio 1.4, "Split Virtqueues".
"""

from __future__ import annotations

import contextlib
import struct
from collections import deque
from collections.abc import Callable

from pymodel.errors import BrokenQueue, InvalidField, MemoryFault
from pymodel.memory import Buffer, Consumer, GuestMemory, Segments
from pymodel.migration.state import QueueState
from pymodel.queue import chain
from pymodel.spec import ring, virtio, virtio_pci

# Buffers taken, and bytes moved by them, before a queue lets its thread look at anything else. Whoever waits
# for the function's lock waits for a batch at most.
BATCH = 256
BATCH_BYTES = 32 << 20
# ring.USED_ELEM
_USED = struct.Struct("<II")


class SplitQueue:
    """One queue of a function. Its fields are those of the common configuration, for the transport to set.

    `owed` is an interrupt that the driver asked for and has not been sent. `outstanding` counts buffers
    taken and not completed. `waiting` says that the last `run` ended because the consumer took no more.
    `untouched` is for a queue from which nothing was ever taken. `requests` and `bytes` count what was taken
    ever, and how much was read and written by it.
    """

    def __init__(self, index: int, max_size: int) -> None:
        self.index = index
        self.max_size = max_size
        self.outstanding = 0
        # Since the function was made; nothing resets them.
        self.requests = 0
        self.bytes = 0
        self.reset()

    def reset(self) -> None:
        """Back to the state after a device reset. Buffers still outstanding are forgotten."""
        self.size = self.max_size
        self.vector = virtio_pci.NO_VECTOR
        self.enabled = False
        self.desc = 0
        self.driver = 0
        self.device = 0
        self.last_avail = 0
        self.used = 0
        self.owed = False
        self.waiting = False
        self.untouched = True
        self._answered = 0
        self._event_idx = False
        self._indirect = False
        self._taken: list[Buffer] = []
        self._taking = False
        self.abandon()

    def abandon(self) -> None:
        """Forget the buffers that are outstanding: they complete into nothing."""
        self.outstanding = 0
        self._completed: deque[tuple[int, int]] = deque()
        self._life = object()

    def negotiated(self, features: int) -> None:
        """Take the negotiated features that change the ring's rules."""
        self._event_idx = bool(features >> virtio.F_EVENT_IDX & 1)
        self._indirect = bool(features >> virtio.F_INDIRECT_DESC & 1)

    def capture(self) -> QueueState:
        """The queue as plain values."""
        return QueueState(
            index=self.index,
            size=self.size,
            msix_vector=self.vector,
            enable=int(self.enabled),
            notify_off=self.index,
            desc=self.desc,
            driver=self.driver,
            device=self.device,
            last_avail_idx=self.last_avail,
            used_idx=self.used,
            interrupt_owed=self.owed,
        )

    def check(self, state: QueueState) -> None:
        """Raise `InvalidField`, with the reason, for a state that this queue cannot be in."""
        name = f"queue {self.index}"
        if state.notify_off != self.index:
            raise InvalidField(f"{name}: notify_off {state.notify_off}, here it is {self.index}")
        if not 0 < state.size <= self.max_size or state.size & (state.size - 1):
            raise InvalidField(f"{name}: size {state.size} is no power of 2 up to {self.max_size}")
        if state.enable > 1 or state.reset or state.notif_config_data:
            raise InvalidField(f"{name}: enable {state.enable}, reset {state.reset}")
        if state.enable and not aligned(state.desc, state.driver, state.device):
            raise InvalidField(f"{name}: a ring address is not aligned")
        if (state.last_avail_idx - state.used_idx) & 0xFFFF > state.size:
            raise InvalidField(f"{name}: more buffers outstanding than its size")

    def restore(self, state: QueueState) -> None:
        """Take over a state that `check` accepted."""
        self.reset()
        self.size = state.size
        self.vector = state.msix_vector
        self.enabled = bool(state.enable)
        self.desc = state.desc
        self.driver = state.driver
        self.device = state.device
        self.last_avail = state.last_avail_idx
        self.used = self._answered = state.used_idx
        self.owed = state.interrupt_owed
        self.untouched = False

    def run(self, memory: GuestMemory, consumer: Consumer) -> bool:
        """Take what the driver made available, up to a batch, and settle whether an interrupt is owed.

        Returns whether the queue may hold more. Raises `BrokenQueue`; what was completed stays so.
        """
        rounds, enough = 0, self.bytes + BATCH_BYTES
        self.waiting = False
        self._suppress_kicks(memory, True)
        while True:
            rounds += 1
            available = memory.load_u16(self.driver + ring.RING_IDX)
            pending = (available - self.last_avail) & 0xFFFF
            if pending > self.size:
                raise BrokenQueue(f"queue {self.index}: {pending} buffers available in a ring of {self.size}")
            if pending == 0:
                self._suppress_kicks(memory, False)
                more = memory.load_u16(self.driver + ring.RING_IDX) != self.last_avail
                # A guest that moves its index to and fro is not followed for ever.
                if more and rounds <= BATCH:
                    continue
                break
            if not consumer.accepts(self.index):
                more, self.waiting = False, True
                break
            if rounds > BATCH or self.bytes >= enough:
                more = True
                break
            self._take(memory, consumer)
            if not self._taken:
                # Given back: the driver has to add something first.
                self._suppress_kicks(memory, False, available)
                more = memory.load_u16(self.driver + ring.RING_IDX) != available
                if more and rounds <= BATCH:
                    continue
                break
        self.settle(memory)
        return more

    def _take(self, memory: GuestMemory, consumer: Consumer) -> None:
        self._taken = []
        buffer = self._next(memory)
        self.requests += 1
        self._taking = True
        try:
            consumer.take(buffer)
        except MemoryFault:
            for taken in reversed(self._taken.copy()):
                taken.give_back()
            raise
        finally:
            self._taking = False
        # What cannot be published now stays for `settle`, whose caller knows what to do.
        with contextlib.suppress(MemoryFault):
            self._publish(memory)

    def _next(self, memory: GuestMemory) -> Buffer:
        slot = self.last_avail & (self.size - 1)
        head = memory.load_u16(self.driver + ring.RING_ENTRIES + 2 * slot)
        if head >= self.size:
            raise BrokenQueue(f"queue {self.index}: descriptor {head} in a ring of {self.size}")
        self.untouched = False
        found = chain.walk(memory, self.desc, self.size, head, indirect=self._indirect)
        readable = Segments(memory, found.readable)
        buffer = _RingBuffer(self, memory, head, readable, Segments(memory, found.writable))
        self.last_avail = (self.last_avail + 1) & 0xFFFF
        self.outstanding += 1
        self.bytes += readable.length
        self._taken.append(buffer)
        return buffer

    def take_next(self, memory: GuestMemory) -> Buffer | None:
        """One more buffer for whoever has just taken one. Raises `BrokenQueue`."""
        available = memory.load_u16(self.driver + ring.RING_IDX)
        pending = (available - self.last_avail) & 0xFFFF
        if pending > self.size:
            raise BrokenQueue(f"queue {self.index}: {pending} buffers available in a ring of {self.size}")
        return self._next(memory) if pending else None

    def give_back(self, buffer: Buffer) -> None:
        """See `Buffer`."""
        if not self._taken or self._taken.pop() is not buffer:
            raise RuntimeError("not the buffer that was taken last")
        self.last_avail = (self.last_avail - 1) & 0xFFFF
        self.outstanding -= 1
        self.bytes -= buffer.readable.length

    def completion(self, memory: GuestMemory, head: int) -> Callable[[int], None]:
        """What completes the buffer of a chain."""
        life = self._life

        def complete(written: int) -> None:
            if self._life is life:
                self.bytes += written
                self._completed.append((head, min(written, 0xFFFFFFFF)))
                if not self._taking:
                    with contextlib.suppress(MemoryFault):
                        self._publish(memory)

        return complete

    def _publish(self, memory: GuestMemory) -> None:
        """Put what was completed into the used ring, all at once. Raises `MemoryFault`, with nothing done."""
        if not self._completed:
            return
        used = self.used
        for head, written in self._completed:
            slot = used & (self.size - 1)
            memory.write(self.device + ring.RING_ENTRIES + 8 * slot, _USED.pack(head, written))
            used = (used + 1) & 0xFFFF
        memory.store_u16(self.device + ring.RING_IDX, used)
        self.used = used
        self.outstanding -= len(self._completed)
        self._completed.clear()

    def settle(self, memory: GuestMemory) -> None:
        """Publish what is left, and decide whether what was completed since the last call owes an interrupt.

        Raises `MemoryFault`, and may be called again.
        """
        if self._completed:
            self._publish(memory)
        old, new = self._answered, self.used
        if old == new:
            return
        # The used index must be visible before the driver's wish is read: the driver sets its wish
        # and then looks at the index.
        memory.fence()
        if self._event_idx:
            event = memory.load_u16(self.driver + ring.RING_ENTRIES + 2 * self.size)
            wanted = (new - event - 1) & 0xFFFF < (new - old) & 0xFFFF
        else:
            wanted = not memory.load_u16(self.driver + ring.RING_FLAGS) & ring.AVAIL_F_NO_INTERRUPT
        self.owed = self.owed or wanted
        self._answered = new

    def told(self) -> None:
        """The interrupt is no longer owed."""
        self.owed = False

    def _suppress_kicks(self, memory: GuestMemory, suppress: bool, seen: int | None = None) -> None:
        """Ask for no kicks while the ring is worked on anyway; asking again ends with a fence.

        With EVENT_IDX the event word of the last round stays where it is, so no kick comes until it is
        moved; without, the flag says it.
        """
        if self._event_idx:
            if not suppress:
                event = self.last_avail if seen is None else seen
                memory.store_u16(self.device + ring.RING_ENTRIES + 8 * self.size, event)
        else:
            memory.store_u16(self.device + ring.RING_FLAGS, ring.USED_F_NO_NOTIFY if suppress else 0)
        if not suppress:
            memory.fence()


class _RingBuffer(Buffer):
    """A buffer of a queue."""

    __slots__ = ("_memory", "_ring")

    def __init__(
        self, ring: SplitQueue, memory: GuestMemory, head: int, readable: Segments, writable: Segments
    ) -> None:
        super().__init__(ring.index, readable, writable, ring.completion(memory, head))
        self._ring = ring
        self._memory = memory

    def next(self) -> Buffer | None:
        return self._ring.take_next(self._memory)

    def give_back(self) -> None:
        self._ring.give_back(self)


def aligned(desc: int, driver: int, device: int) -> bool:
    """Whether the three ring addresses obey "Split Virtqueues", alignment requirements."""
    return not (desc % ring.DESC_ALIGN or driver % ring.AVAIL_ALIGN or device % ring.USED_ALIGN)
