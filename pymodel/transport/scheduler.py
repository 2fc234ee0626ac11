"""The turns of a function's queues: which are to be looked at, and which consumer gets their buffers."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from pymodel.devices.device import Device
from pymodel.memory import HOW_TO_SHARE, Consumer
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.transport.bus import Bus
from pymodel.transport.delay_line import Delayed, DelayLine
from pymodel.transport.faults import Failing, Fault, Faults, Faulty

ADMIN_TABLE_MAX: Final = 1 << 14
"""Descriptors that an indirect table of the admin queue may have, 64 MiB in pages: Linux makes one of each
page of a result, whatever the queue's size.
"""


class Scheduler:
    """The queues of a function by index, those of `device` and then that of `admin`, each with its consumer.

    A queue has a turn when the driver notified it, when its consumer takes buffers again, and when there was
    more in it than one turn is for.
    """

    def __init__(
        self,
        device: Device,
        bus: Bus,
        log: logging.Logger,
        *,
        admin: Failing | None,
        admin_queue_size: int,
        io_delay: float,
    ) -> None:
        self._device = device
        self._bus = bus
        self._log = log
        self._delay = DelayLine(io_delay, bus.after)
        self._admin_index = len(device.queue_sizes)
        self.queues = {
            index: Virtqueue(index, size, in_order=device.in_order)
            for index, size in enumerate(device.queue_sizes)
        }
        self._consumers: dict[int, Failing] = dict.fromkeys(self.queues, device)
        if admin is not None:
            self.queues[self._admin_index] = Virtqueue(
                self._admin_index, admin_queue_size, long_tables=ADMIN_TABLE_MAX
            )
            self._consumers[self._admin_index] = admin
        self._distinct: list[Failing] = [device] if admin is None else [device, admin]
        self._notifications = 0
        self._kicked: set[int] = set()
        # Queues that the driver itself notified, until something was found there or its absence was told.
        self._notified: set[int] = set()
        # Queues of which was told that a notification named another one.
        self._misnamed: set[int] = set()
        # What is to go wrong on purpose, what of it is no buffer's matter, and the consumers that see to it.
        self.faults: Faults | None = None
        self.happens: Mapping[str, Callable[[Fault], None]] = {}
        self._faulty: dict[int, Faulty] = {}

    @property
    def notifications(self) -> int:
        """Those of queues that exist, ever."""
        return self._notifications + sum(queue.kicks for queue in self.queues.values())

    # -- resets ----------------------------------------------------------------------------------------

    def reset(self, features: int = 0) -> None:
        """All queues as `Virtqueue.reset` leaves them, with no turn to come; their buffers are nobody's."""
        self._delay.clear()
        self._kicked.clear()
        self._notified.clear()
        self._misnamed.clear()
        for queue in self.queues.values():
            self._consumers[queue.index].drop(queue.index)
            queue.reset(features)

    def reset_consumers(self) -> None:
        """Have each consumer do what a device reset asks of it."""
        for consumer in self._distinct:
            consumer.reset()

    def reset_queue(self, queue: Virtqueue, features: int) -> None:
        """One queue as `Virtqueue.reset` leaves it ("Virtqueue Reset")."""
        self._delay.drop(queue.index)
        self._consumers[queue.index].drop(queue.index)
        queue.reset(features)

    def halt(self) -> None:
        """A device reset begins: nothing is fetched, and what was fetched completes into nothing."""
        for queue in self.queues.values():
            queue.reset()
        self._delay.clear()

    def abandon(self) -> None:
        """The device broke: show the driver what was completed; nothing else will be."""
        self._delay.clear()
        for queue in self.queues.values():
            self._consumers[queue.index].drop(queue.index)
            queue.publish(self._bus.memory)
            queue.abandon()

    def succeed(self, device: Device) -> None:
        """Another device takes the place of the present one: no buffer is anybody's."""
        for index in range(self._admin_index):
            self._consumers[index] = device
        self._distinct[0] = self._device = device
        self._faulty.clear()

    # -- turns to come ---------------------------------------------------------------------------------

    def kick(self, index: int, data: bytes, *, by_name: bool) -> None:
        """A driver notification, written to the address of queue `index` ("Available Buffer Notifications").

        Whatever the form, its first word names the queue: by its index, or (`by_name`) by its
        notif_config_data. What follows with NOTIFICATION_DATA is not needed. One that names another queue, or
        is for a queue that is not there or not enabled, does nothing.
        """
        queue = self.queues.get(index)
        if queue is None:
            return
        name = queue.notify_data if by_name else index
        if len(data) < 2 or data[0] | data[1] << 8 != name:
            if index not in self._misnamed:
                self._misnamed.add(index)
                self._log.warning(
                    "queue %d is notified with 0x%s, not with %#06x", index, data[3::-1].hex(), name
                )
            return
        self._notifications += 1
        self._kicked.add(index)
        if queue.untouched:
            self._notified.add(index)

    def has_turn(self, index: int) -> bool:
        """Whether a queue has one to come."""
        return index in self._kicked

    def resume(self, index: int) -> None:
        """Give a queue a turn, in the `work` under way or the next."""
        self._kicked.add(index)

    def rescan(self) -> None:
        """Give every enabled queue a turn, as if it had been kicked (A-18, A-31)."""
        self._kicked.update(index for index, queue in self.queues.items() if queue.enabled)

    # -- turns -----------------------------------------------------------------------------------------

    def work(self) -> None:
        """Let each queue whose turn it is run, as far as the gate allows, and settle what was completed.

        Raises `BrokenQueue` for a driver's mistake and `MemoryFault` for memory that is not there; what was
        completed stays so.
        """
        for consumer in self._distinct:
            consumer.service()
        self._delay.go_on()
        for queue in self.queues.values():
            may_fetch = self._bus.may_fetch
            if may_fetch and queue.waiting and self._consumers[queue.index].accepts(queue.index):
                self._kicked.add(queue.index)
            if queue.index in self._kicked and may_fetch:
                self._kicked.discard(queue.index)
                if queue.enabled and queue.run(self._bus.memory, self._consumer(queue.index)):
                    self._kicked.add(queue.index)
                    self._bus.wake()
                if queue.index in self._notified and queue.enabled:
                    self._look_for_private_memory(queue)
        # Work on one queue may have completed buffers of another.
        for queue in self.queues.values():
            if queue.enabled:
                queue.settle(self._bus.memory)

    def engines(self) -> list[tuple[Engine, bool]]:
        """The queues that can do without their consumer for a while, and whether each had a turn to come.

        Those turns are the caller's to give now.
        """
        if self._delay.seconds or (self.faults is not None and self.faults.active):
            return []
        found = []
        for queue in self.queues.values():
            if queue.index == self._admin_index or not queue.ready:
                continue
            engine = self._device.engine(queue, self._bus.memory)
            if engine is not None:
                found.append((engine, queue.index in self._kicked))
                self._kicked.discard(queue.index)
        return found

    def _look_for_private_memory(self, queue: Virtqueue) -> None:
        """Tell, once, of a queue that was notified while nothing was ever in it.

        A client whose memory is a file that it maps privately hands over the file, but what its guest
        writes is not in there: all rings stay empty.
        """
        if queue.untouched and not queue.waiting:
            self._log.warning(
                "queue %d was notified, but nothing was ever put in it: is the guest's memory shared? %s",
                queue.index,
                HOW_TO_SHARE,
            )
            queue.untouched = False
        self._notified.discard(queue.index)

    def set_faults(self, faults: Faults | None) -> None:
        """Have the buffers of all queues meet `faults` from now on, or none."""
        self.faults = faults
        self._faulty.clear()

    def _consumer(self, index: int) -> Consumer:
        consumer: Consumer = self._consumers[index]
        if self.faults is not None:
            faulty = self._faulty.get(index)
            if faulty is None:
                faulty = Faulty(self._consumers[index], self.faults, self._bus.after, self.happens)
                self._faulty[index] = faulty
            consumer = faulty
        delayed = self._delay.seconds and index != self._admin_index and self._device.delayable(index)
        return Delayed(self._delay, consumer) if delayed else consumer
