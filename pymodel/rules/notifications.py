"""Rules about notifications of available buffers: their form, and when they are due."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from pymodel.pci.function import Function
from pymodel.pci.virtio_bar import NOTIFY_MULTIPLIER
from pymodel.queue.split import SplitRing
from pymodel.queue.virtqueue import Virtqueue
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import HINT, MUST, MUST_NOT, SHOULD_NOT, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import pci, ring, virtio
from pymodel.watch.access import Access
from pymodel.watch.ring_view import available, place

_FORM: Final = "Available Buffer Notifications"
_SUPPRESSION: Final = "Available Buffer Notification Suppression"
_IGNORES: Final = "ignores it; buffers are found all the same when there is another reason to look"

UNSERVED: Final = 33
"""Notifications between two looks at a queue that are told of, with EVENT_IDX. One that was due may be late,
of each processor that the driver runs on.
"""

LOOK_SECONDS: Final = 1.0
"""How long a buffer may lie there that the driver was to notify of."""


class Notifications(Topic):
    """What a driver writes to the notify structure, and what it does not."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "KICK-01": Rule(
            MUST,
            _FORM,
            "notify with 16 bits without NOTIFICATION_DATA",
            "a notification of another width",
            "takes it by its first 16 bits",
        ),
        "KICK-02": Rule(
            MUST,
            _FORM,
            "notify with 32 bits with NOTIFICATION_DATA",
            "a notification of another width",
            "takes it by its first 16 bits",
        ),
        "KICK-03": Rule(
            MUST,
            _FORM,
            "notify with the queue's index without NOTIF_CONFIG_DATA",
            "another number in the first 16 bits",
            _IGNORES,
        ),
        "KICK-04": Rule(
            MUST,
            _FORM,
            "notify with queue_notif_config_data with NOTIF_CONFIG_DATA",
            "another number in the first 16 bits",
            _IGNORES,
        ),
        "KICK-05": Rule(
            HINT,
            "Notification structure layout",
            "notifies where no queue has its address",
            "a write to the notify structure that is not at queue_notify_off times the multiplier",
            _IGNORES,
        ),
        "KICK-06": Rule(
            HINT,
            _FORM,
            "notifies of a queue that is not there, or not enabled",
            "such a notification",
            _IGNORES,
        ),
        "KICK-07": Rule(
            MUST,
            "The Virtqueue Descriptor Table",
            "tell with NOTIFICATION_DATA which descriptor comes next",
            "next_off and next_wrap (or, of a split ring, the index) where the driver has not been yet",
            "looks at the ring, and does without it",
        ),
        "KICK-08": Rule(
            SHOULD_NOT,
            _SUPPRESSION,
            "notify where the device asked for none",
            "with EVENT_IDX, many notifications before the device asks for the next one",
            "looks at the queue",
        ),
        "KICK-09": Rule(
            MUST,
            _SUPPRESSION,
            "notify of buffers where the device asked for it",
            "a buffer that is there for a second, with no notification",
            "does not see the buffer before it has another reason to look",
        ),
        "KICK-10": Rule(
            HINT,
            _SUPPRESSION,
            "notifies of nothing",
            "notifications while the available index, or the next descriptor, stays where it was",
            "looks at the queue",
        ),
        "KICK-11": Rule(
            HINT,
            "Virtio Over PCI Bus",
            "notifies while the device may not access memory",
            "a notification while Bus Master Enable is clear",
            "looks at the queue once it is set",
        ),
        "KICK-12": Rule(
            MUST_NOT,
            "The Virtqueue Available Ring",
            "decrement the available index",
            "an index that is behind the one seen before",
            "sets DEVICE_NEEDS_RESET where that leaves more available than the ring holds",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        # By queue: where the driver was at its last notification, and when the queue was last looked at.
        self._at_kick: dict[int, int] = {}
        self._seen: dict[int, int] = {}
        # By queue: notifications in a row that told of nothing.
        self._in_vain: dict[int, int] = {}
        # By queue: notifications since the queue was looked at.
        self._unserved: dict[int, int] = {}
        # By queue: what was available, and not notified of, at the last look.
        self._waiting: dict[int, int] = {}
        self._looking = False

    def was_reset(self) -> None:
        """All rings are new."""
        self._at_kick.clear()
        self._seen.clear()
        self._waiting.clear()
        self._in_vain.clear()
        self._unserved.clear()

    # -- a notification --------------------------------------------------------------------------------------

    def writing_notification(self, access: Access) -> None:
        """Its form, and whether it is due."""
        index, rest = divmod(access.offset, NOTIFY_MULTIPLIER)
        queue = self.transport.queues.get(index)
        number = f"{access.value:#0{2 + 2 * len(access.data)}x}"
        what = f"{number} written at {access.offset:#x} of the notify structure"
        if rest:
            at = f"{index * NOTIFY_MULTIPLIER:#x} for queue {index}"
            self.tell("KICK-05", what, expected=at, queue=index)
            return
        if queue is None:
            last = max(self.transport.queues)
            rest_of_them = f" to queue {last} at {last * NOTIFY_MULTIPLIER:#x}" if last else ""
            self.tell("KICK-06", what, expected=f"queue 0 at 0x0{rest_of_them}", queue=index)
            return
        if not queue.enabled:
            self.tell("KICK-06", f"{what}: queue {index} is not enabled", queue=index)
        self._check_form(queue, access, what)
        if not self.function.gate.command & pci.COMMAND_MASTER:
            self.tell("KICK-11", f"queue {index} notified, and Bus Master Enable is clear", queue=index)
        elif queue.enabled and self.transport.running and self.function.may_access:
            self._check_due(queue, access)

    def _check_form(self, queue: Virtqueue, access: Access, what: str) -> None:
        with_data = self.transport.negotiated(virtio.F_NOTIFICATION_DATA)
        by_name = self.transport.negotiated(virtio.F_NOTIF_CONFIG_DATA)
        width = 4 if with_data else 2
        if len(access.data) != width:
            rule = "KICK-02" if with_data else "KICK-01"
            self.tell(
                rule, f"{what}: {8 * len(access.data)} bits", expected=f"{8 * width}", queue=queue.index
            )
        name = queue.notify_data if by_name else queue.index
        given = access.value & 0xFFFF
        if len(access.data) >= 2 and given != name:
            rule = "KICK-04" if by_name else "KICK-03"
            self.tell(rule, f"{what}: {given:#x}", expected=f"{name:#x}", queue=queue.index)

    def _check_due(self, queue: Virtqueue, access: Access) -> None:
        """Whether there is anything new, and the device wanted to be told."""
        now = self._position(queue)
        before = self._at_kick.get(queue.index)
        self._at_kick[queue.index] = now
        self._check_wanted(queue)
        self._waiting.pop(queue.index, None)
        if self.transport.negotiated(virtio.F_NOTIFICATION_DATA) and len(access.data) == 4:
            given = access.value >> 16
            # The driver may have gone on since it wrote this, on other processors too.
            if _ahead(queue, given, now) > queue.size:
                self.tell(
                    "KICK-07",
                    f"{given:#06x} in the upper half of the notification of queue {queue.index}",
                    expected=f"{now:#06x}",
                    queue=queue.index,
                )
        new = before != now if before is not None else not queue.untouched
        empty = now == queue.ring.last_avail and not new
        self._in_vain[queue.index] = self._in_vain.get(queue.index, 0) + 1 if empty else 0
        # As many as there are buffers may be under way when the device takes all of those at once.
        if self._in_vain[queue.index] == queue.size + 1 or (empty and queue.untouched):
            what = "available index" if queue.ring.name == SplitRing.name else "next descriptor"
            self.tell(
                "KICK-10",
                f"queue {queue.index} notified, and its {what} is still {now & ring.OFFSET_MASK}",
                queue=queue.index,
            )

    def _check_wanted(self, queue: Virtqueue) -> None:
        """Whether the device asked for this notification.

        With EVENT_IDX it asks for one, and for the next one in its next turn.
        """
        count = self._unserved[queue.index] = self._unserved.get(queue.index, 0) + 1
        if queue.ring.event_idx and count == UNSERVED:
            self.tell(
                "KICK-08",
                f"queue {queue.index} notified {count} times where the device asked for one notification",
                queue=queue.index,
            )

    # -- between notifications -------------------------------------------------------------------------------

    def turn(self, queue: int) -> None:
        """The driver's index goes only forward."""
        found = self.transport.queues[queue]
        self._unserved.pop(queue, None)
        self._look_again()
        if found.ring.name != SplitRing.name:
            return
        now = self._position(found)
        before = self._seen.get(queue, now)
        if (found.ring.last_avail - before) & 0xFFFF <= found.size:
            before = found.ring.last_avail  # it took more than was there when it began to look
        self._seen[queue] = now
        if (now - before) & 0xFFFF > 0x8000:
            self.tell(
                "KICK-12",
                f"the available index of queue {queue} is {now}, and was {before}",
                queue=queue,
                address=found.driver + ring.RING_IDX,
            )

    def _look_again(self) -> None:
        """Look at all queues in a while."""
        if not self._looking:
            self._looking = True
            self.later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        """Whether anything lies there that the driver did not notify of."""
        self._looking = False
        if not (self.transport.running and self.function.may_fetch and self.function.attached):
            return
        for queue in self.transport.queues.values():
            if not queue.enabled or queue.waiting:
                continue
            now = self._position(queue)
            taken = queue.ring.last_avail
            if now == taken or self.transport.has_turn(queue.index):
                self._waiting.pop(queue.index, None)
            elif self._waiting.get(queue.index) == now:
                del self._waiting[queue.index]
                self.tell(
                    "KICK-09",
                    f"the driver of queue {queue.index} is at {_name(queue, now)}, the device at"
                    f" {_name(queue, taken)}, and no notification came for {LOOK_SECONDS:g} s",
                    queue=queue.index,
                )
            else:
                self._waiting[queue.index] = now
        self._look_again()

    def _position(self, queue: Virtqueue) -> int:
        """Where the driver will put its next buffer, in the form of `Ring.last_avail`."""
        memory = self.function.memory
        if queue.ring.name == SplitRing.name:
            return memory.load_u16(queue.driver + ring.RING_IDX)
        at = queue.ring.last_avail
        offset, wrap = place(at)
        for _ in range(queue.size):
            flags = memory.load_u16(queue.desc + ring.PACKED_DESC.itemsize * offset + ring.PACKED_FLAGS)
            flags &= ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED
            if flags != available(wrap):
                break
            offset += 1
            if offset == queue.size:
                offset, wrap = 0, wrap ^ 1
        return offset | wrap << ring.WRAP_SHIFT


def _name(queue: Virtqueue, position: int) -> str:
    """A position for people."""
    if queue.ring.name == SplitRing.name:
        return f"index {position}"
    offset, wrap = place(position)
    return f"descriptor {offset}, wrap counter {wrap}"


def _ahead(queue: Virtqueue, start: int, end: int) -> int:
    """How far one position is ahead of another. Of one that cannot be, farther than any."""
    if queue.ring.name == SplitRing.name:
        return (end - start) & 0xFFFF
    if start & ring.OFFSET_MASK >= queue.size:
        return 2 * queue.size
    laps = (end >> ring.WRAP_SHIFT) ^ (start >> ring.WRAP_SHIFT)
    return ((end & ring.OFFSET_MASK) - (start & ring.OFFSET_MASK) + laps * queue.size) % (2 * queue.size)
