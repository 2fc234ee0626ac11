"""The driver's half of a virtqueue: what both ring formats have alike. virtio 1.4, "Virtqueues"."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from pymodel.spec import ring
from vfu_client.vfio.memory import Buffer, GuestMemory

Segment = tuple[int, int]

# Descriptors that a kept indirect table has at least, so that requests of a kind reuse it.
INDIRECT_TABLE = 16


class QueueFullError(Exception):
    """Not enough free descriptors; nothing was added."""


class QueueBrokenError(Exception):
    """The device published something that it was not given."""


class Waitable(Protocol):
    """What a queue needs of its interrupt."""

    def wait(self, timeout: float) -> int: ...

    def drain(self) -> int: ...


@dataclass(slots=True)
class Completion:
    """A buffer that the device has used: what `add` returned for it, and the bytes written to it."""

    head: int
    length: int


@dataclass(slots=True)
class Added:
    """What a driver remembers of a buffer: the slots that it takes, and the bytes of its writable part."""

    slots: Sequence[int]
    writable: int


class DriverQueue(ABC):
    """Rings of one queue in guest memory, and what the driver must remember about them.

    `parts` are descriptor, driver and device area, in the order of the common configuration. Publishing
    relies on `_fence`.
    """

    def __init__(
        self,
        memory: GuestMemory,
        index: int,
        size: int,
        *,
        notify: Callable[[int, int], None],
        interrupt: Waitable | None = None,
        event_idx: bool = False,
        indirect: bool = False,
        in_order: bool = False,
    ) -> None:
        self.index = index
        self.size = size
        self.interrupt = interrupt
        self.event_idx = event_idx
        self.indirect = indirect
        self.in_order = in_order
        self._memory = memory
        self._notify = notify
        self._lock = threading.Lock()
        # By what `add` returned, oldest first.
        self._added: dict[int, Added] = {}
        self._tables: dict[int, Buffer] = {}
        self.parts = self._make_rings(memory, size)

    @abstractmethod
    def _make_rings(self, memory: GuestMemory, size: int) -> tuple[Buffer, Buffer, Buffer]:
        """Make the rings of `size` descriptors and all that the format keeps of them; its `parts`."""

    @property
    def in_flight(self) -> int:
        """Buffers that were added and not collected."""
        return len(self._added)

    @property
    @abstractmethod
    def device_used_idx(self) -> int:
        """How many buffers the device has used by now, collected or not; the lower 16 bits."""

    @abstractmethod
    def add(
        self, readable: Sequence[Segment], writable: Sequence[Segment] = (), *, indirect: bool | None = None
    ) -> int:
        """Make a buffer available; what tells it from others in flight. The device is not told: see `kick`.

        Raises `QueueFullError`. With indirect descriptors a chain of two or more takes one slot.
        """

    @abstractmethod
    def kick(self, *, force: bool = False) -> bool:
        """Notify the device of what was added, where it wants to know; says whether it was notified."""

    @abstractmethod
    def collect(self) -> list[Completion]:
        """All buffers that the device has used since the last time; never waits.

        Raises `QueueBrokenError` for one that was not available. With IN_ORDER, what a batch skips counts as
        written completely.
        """

    @abstractmethod
    def ask_for_interrupt(self, count: int = 1) -> bool:
        """Ask to be told when `count` more buffers are used, or sooner; whether they are already."""

    def wait(self, timeout: float, count: int = 1) -> list[Completion]:
        """Block on the interrupt until something was used. Raises `TimeoutError` and `QueueBrokenError`.

        Raises what the interrupt raises where nobody will signal it any more.

        With `count` the device is asked to tell only of that many, where it can be (EVENT_IDX); there must
        be as many in flight.
        """
        if self.interrupt is None:
            raise ValueError(f"queue {self.index} has no interrupt to wait for")
        deadline = time.monotonic() + timeout
        while True:
            done = self.collect()
            if done:
                return done
            if self.ask_for_interrupt(count):
                continue
            try:
                self.interrupt.wait(deadline - time.monotonic())
            except TimeoutError:
                done = self.collect()
                if done:
                    return done
                raise TimeoutError(
                    f"queue {self.index}: nothing used within {timeout:.3g} s, {self.in_flight} in flight"
                ) from None

    def free(self) -> None:
        """Give the rings' memory back; the device must not use the queue any more."""
        for buffer in (*self._tables.values(), *self.parts):
            self._memory.free(buffer)
        self._tables.clear()

    def _table(self, slot: int, total: int) -> Buffer:
        """The indirect table that belongs to a slot, grown where it is too short."""
        table = self._tables.get(slot)
        if table is None or table.size < total * ring.DESC.itemsize:
            if table is not None:
                self._memory.free(table)
            table = self._memory.allocate(max(total, INDIRECT_TABLE) * ring.DESC.itemsize, ring.DESC_ALIGN)
            self._tables[slot] = table
        return table

    def _needed(
        self, readable: Sequence[Segment], writable: Sequence[Segment], indirect: bool | None, free: int
    ) -> int:
        """Slots that a buffer takes: more than one, or 1, or 0 for one that goes into a table and takes 1.

        Raises `QueueFullError` where fewer are `free`.
        """
        total = len(readable) + len(writable)
        if not total:
            raise ValueError("a chain needs at least one buffer")
        needed = 0 if (self.indirect and total > 1 if indirect is None else indirect) else total
        if free < (needed or 1):
            raise QueueFullError(f"queue {self.index}: {free} free descriptors, {needed or 1} needed")
        return needed

    def _used(self, head: int, length: int) -> list[tuple[Completion, Added]]:
        """Take note of a used buffer; with IN_ORDER also of those that it closes the batch of.

        Raises `QueueBrokenError`, nothing forgotten.
        """
        if head not in self._added:
            raise QueueBrokenError(f"queue {self.index}: used entry for descriptor {head}, not in flight")
        done: list[tuple[Completion, Added]] = []
        if self.in_order:
            while (oldest := next(iter(self._added))) != head:
                added = self._added.pop(oldest)
                done.append((Completion(oldest, added.writable), added))
        done.append((Completion(head, length), self._added.pop(head)))
        return done

    def _fence(self) -> None:
        """A full barrier, also between a store and a load after it.

        To give a lock back comes after all before it, and to take it before all after it. Processors that
        have instructions for either (ARM, RISC-V) keep the one before the other, so what was stored before is
        seen by others before anything after is loaded. On x86 each is a barrier by itself.
        """
        with self._lock:
            pass
        with self._lock:
            pass
