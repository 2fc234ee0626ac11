"""Rules about what drivers put into rings: descriptors, indices, flags, and what is no longer theirs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.memory import Buffer
from pymodel.pci.function import Function
from pymodel.queue import broken
from pymodel.queue.packed import PackedRing
from pymodel.queue.split import SplitRing
from pymodel.queue.virtqueue import Virtqueue
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import HINT, MUST, MUST_NOT, Rule
from pymodel.rules.topic import Topic, taken_at
from pymodel.spec import ring, virtio
from pymodel.watch.ring_view import FLAGS, available, place

_TABLE: Final = "The Virtqueue Descriptor Table"
_INDIRECT: Final = "The Virtqueue Descriptor Table / Indirect Descriptors"
_PACKED_INDIRECT: Final = "Packed Virtqueues / The Virtqueue Descriptor Table / Indirect Descriptors"
_SCATTER: Final = "Packed Virtqueues / Scatter-Gather Support"
_NEEDS_RESET: Final = "sets DEVICE_NEEDS_RESET"

_SIZE: Final = ring.DESC.itemsize
_FLAGS_KNOWN: Final = ring.DESC_F_NEXT | ring.DESC_F_WRITE | ring.DESC_F_INDIRECT
_BOTH: Final = ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED
_RESERVED_EVENT: Final = 3

_SPLIT_REASONS: Final[Mapping[int, str]] = {
    broken.OUTSIDE: "SPLIT-01",
    broken.OUTSIDE_TABLE: "SPLIT-01",
    broken.LOOP: "SPLIT-02",
    broken.TABLE_LOOP: "SPLIT-02",
    broken.BOTH: "SPLIT-03",
    broken.NESTED: "SPLIT-04",
    broken.ORDER: "RING-01",
    broken.LONG: "SPLIT-05",
    broken.NO_TABLES: "SPLIT-06",
    broken.TABLE: "RING-03",
    broken.AVAILABLE: "SPLIT-07",
    broken.HEAD: "SPLIT-08",
}
_PACKED_REASONS: Final[Mapping[int, str]] = {
    broken.ORDER: "RING-01",
    broken.LONG: "PACK-01",
    broken.NO_TABLES: "PACK-04",
    broken.TABLE: "RING-03",
    broken.ROOM: "PACK-01",
    broken.GAP: "PACK-02",
    broken.NOT_ALONE: "PACK-03",
}
"""Why a queue cannot be worked on, and the rule that says so."""


@dataclass(frozen=True, slots=True)
class _Exposed:
    """A buffer that the device has: its descriptors by number, as they were when it was taken."""

    descriptors: Mapping[int, bytes]


class Rings(Topic):
    """Holds what is in a ring against the rules of its format."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "RING-01": Rule(
            MUST,
            "Message Framing",
            "place device-writable descriptors behind device-readable ones",
            "a readable one behind a writable one",
            _NEEDS_RESET,
        ),
        "RING-02": Rule(
            MUST,
            "Reserved Feature Bits",
            "give addresses that the device can access",
            "a ring, a table or a buffer where nothing is mapped for the device",
            _NEEDS_RESET,
        ),
        "RING-03": Rule(
            HINT,
            _INDIRECT,
            "has an indirect table of a length that none can have",
            "no multiple of 16 bytes, none at all, or more descriptors than the queue",
            _NEEDS_RESET,
        ),
        "RING-04": Rule(
            HINT,
            _TABLE,
            "has a descriptor of no bytes",
            "such a descriptor in a chain",
            "skips it",
        ),
        "RING-05": Rule(
            HINT,
            _TABLE,
            "sets flags of a descriptor that there are not",
            "such flags in a chain",
            "ignores them",
        ),
        "RING-06": Rule(
            MUST_NOT,
            "Device Cleanup",
            "alter a buffer's descriptors while the device has it",
            "descriptors that are not what they were when the device took the buffer",
            "works with the copy that it made",
        ),
        "RING-07": Rule(
            MUST_NOT,
            "Device Cleanup",
            "make a descriptor available again while the device has it",
            "a chain with a descriptor of one in flight, or a head that is available twice",
            "takes the buffer once more",
        ),
        "SPLIT-01": Rule(
            HINT,
            _TABLE,
            "has a chain that leaves its table",
            "next, or the head, is not below the table's size",
            _NEEDS_RESET,
        ),
        "SPLIT-02": Rule(
            MUST_NOT,
            _INDIRECT,
            "make a chain that is longer than the queue, or loops",
            "a chain of more descriptors than its table, or a table of more than the queue",
            "sets DEVICE_NEEDS_RESET; the admin queue takes long tables",
        ),
        "SPLIT-03": Rule(
            MUST_NOT,
            _INDIRECT,
            "set INDIRECT and NEXT in one descriptor",
            "both flags",
            _NEEDS_RESET,
        ),
        "SPLIT-04": Rule(
            MUST_NOT,
            _INDIRECT,
            "set INDIRECT inside of an indirect table",
            "such a descriptor in a table",
            _NEEDS_RESET,
        ),
        "SPLIT-05": Rule(
            MUST_NOT,
            _TABLE,
            "add a chain of more than 2^32 bytes",
            "the sum of a chain's lengths",
            _NEEDS_RESET,
        ),
        "SPLIT-06": Rule(
            MUST_NOT,
            _INDIRECT,
            "set INDIRECT unless INDIRECT_DESC was negotiated",
            "the flag in a descriptor",
            _NEEDS_RESET,
        ),
        "SPLIT-07": Rule(
            HINT,
            "The Virtqueue Available Ring",
            "has more buffers available than the ring holds",
            "an available index that is too far ahead",
            _NEEDS_RESET,
        ),
        "SPLIT-08": Rule(
            HINT,
            "The Virtqueue Available Ring",
            "puts a number into the available ring that no descriptor has",
            "a head that is not below the queue's size",
            _NEEDS_RESET,
        ),
        "SPLIT-09": Rule(
            MUST,
            "Used Buffer Notification Suppression",
            "set flags of the available ring to 0 or 1, and to 0 with EVENT_IDX",
            "another value there when the queue is looked at",
            "looks at bit 0, and not even that with EVENT_IDX",
        ),
        "SPLIT-10": Rule(
            MUST,
            _TABLE,
            "chain descriptors in their order with IN_ORDER, and the last one with 0",
            "another next in a chain",
            "follows it",
        ),
        "SPLIT-11": Rule(
            MUST,
            _INDIRECT,
            "have an indirect table in order with IN_ORDER",
            "another next in a table",
            "follows it",
        ),
        "SPLIT-12": Rule(
            HINT,
            "The Virtqueue Used Ring",
            "writes to the used ring",
            "an index there that is not what the device wrote",
            "goes on by its own",
        ),
        "SPLIT-13": Rule(
            HINT,
            "Used Buffer Notification Suppression",
            "asks for an interrupt that cannot come",
            "with EVENT_IDX a used_event beyond all that is available",
            "sends none before that many buffers more were used",
        ),
        "PACK-01": Rule(
            MUST_NOT,
            _SCATTER,
            "make a list that is longer than the ring has room, or of more than 2^32 bytes",
            "a list that comes upon descriptors in flight",
            _NEEDS_RESET,
        ),
        "PACK-02": Rule(
            MUST_NOT,
            _SCATTER,
            "make the first descriptor of a list available before the others",
            "a list that goes on in a descriptor which is not available",
            _NEEDS_RESET,
        ),
        "PACK-03": Rule(
            MUST_NOT,
            _PACKED_INDIRECT,
            "have an indirect descriptor in a list",
            "INDIRECT with NEXT, or behind another descriptor",
            _NEEDS_RESET,
        ),
        "PACK-04": Rule(
            MUST_NOT,
            _PACKED_INDIRECT,
            "set INDIRECT unless INDIRECT_DESC was negotiated",
            "the flag in a descriptor",
            _NEEDS_RESET,
        ),
        "PACK-05": Rule(
            MUST_NOT,
            _PACKED_INDIRECT,
            "set other flags than WRITE inside of an indirect table",
            "such flags in a table",
            "ignores them",
        ),
        "PACK-06": Rule(
            HINT,
            "Packed Virtqueues / Driver and Device Ring Wrap Counters",
            "makes a descriptor available with the wrap counter of the other lap",
            "the next descriptor, in the first lap or since the device wrote it, has the other lap's bits",
            "does not see the buffer",
        ),
        "PACK-07": Rule(
            HINT,
            "Packed Virtqueues / Event Suppression Structure Format",
            "sets flags of its event structure that mean nothing",
            "3, or 2 without EVENT_IDX",
            "takes them for a wish to be notified",
        ),
        "PACK-08": Rule(
            HINT,
            _SCATTER,
            "gives a buffer the id of one in flight",
            "such an id",
            "takes the buffer, and tells of both by the same id",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        # By queue and id: what the device has.
        self._exposed: dict[tuple[int, int], _Exposed] = {}
        # Queue and number of descriptors of packed rings that the device wrote, and the driver not since.
        self._written_used: set[tuple[int, int]] = set()

    def was_reset(self) -> None:
        """Nothing is in flight."""
        self._exposed.clear()
        self._written_used.clear()

    def wrote_queue_reset(self, _piece: object) -> None:
        """Nothing of that queue is in flight."""
        self._forget(self.transport.queue_select)

    def _forget(self, queue: int) -> None:
        self._exposed = {key: value for key, value in self._exposed.items() if key[0] != queue}
        self._written_used = {key for key in self._written_used if key[0] != queue}

    # -- what is broken --------------------------------------------------------------------------------------

    def broke(self, queue: int, error: BrokenQueue) -> None:
        """The device can't go on. Memory that is missing may be back in a moment."""
        found = self.transport.queues[queue]
        reasons = _SPLIT_REASONS if found.ring.name == SplitRing.name else _PACKED_REASONS
        chain = found.chain
        if isinstance(error, MemoryFault):
            if not self.function.memory_in_flux and self.function.may_access:
                self.tell("RING-02", f"queue {queue}: {error}", queue=queue)
        elif error.reason in reasons:
            seen, expected = str(error), ""
            if error.reason == broken.GAP:
                offset, wrap = place(found.ring.last_avail)
                wanted = available(wrap if chain.descriptor >= offset else 1 - wrap)
                expected = _bits(wanted)
                at = found.desc + _SIZE * chain.descriptor + ring.PACKED_FLAGS
                seen += f": it has {_bits(self.function.memory.load_u16(at))}"
            self.tell(
                reasons[error.reason],
                seen,
                expected=expected,
                queue=queue,
                descriptor=chain.descriptor,
                address=chain.table,
            )

    # -- a turn ----------------------------------------------------------------------------------------------

    def turn(self, queue: int) -> None:
        """What the driver says beside its descriptors."""
        found = self.transport.queues[queue]
        if found.ring.name == SplitRing.name:
            self._look_at_split(found)
        else:
            self._look_at_packed(found)

    def _look_at_split(self, queue: Virtqueue) -> None:
        memory, index = self.function.memory, queue.index
        self._look_at_heads(queue)
        flags = memory.load_u16(queue.driver)
        if flags > (0 if queue.ring.event_idx else 1):
            self.tell(
                "SPLIT-09",
                f"flags {flags:#x} in the available ring of queue {index}",
                expected="0" if queue.ring.event_idx else "0 or 1",
                queue=index,
                address=queue.driver,
            )
        used = memory.load_u16(queue.device + ring.RING_IDX)
        if used != queue.ring.used:
            self.tell(
                "SPLIT-12",
                f"index {used} in the used ring of queue {index}",
                expected=f"{queue.ring.used}",
                queue=index,
                address=queue.device + ring.RING_IDX,
            )
        if queue.ring.event_idx:
            at = queue.driver + ring.RING_ENTRIES + 2 * queue.size
            event = memory.load_u16(at)
            available = memory.load_u16(queue.driver + ring.RING_IDX)
            # What lies behind is used already: a driver that polls leaves it there. At the available index it
            # is the next buffer's.
            if 0 < (event - available) & 0xFFFF < queue.size:
                self.tell(
                    "SPLIT-13",
                    f"used_event of queue {index} is {event}, and the available index {available}",
                    expected=f"{available} at most",
                    queue=index,
                    address=at,
                )

    def _look_at_heads(self, queue: Virtqueue) -> None:
        """What became available since the last look: each head once."""
        memory, size = self.function.memory, queue.size
        index, taken = memory.load_u16(queue.driver + ring.RING_IDX), queue.ring.last_avail
        waiting = (index - taken) & 0xFFFF
        if waiting > size:
            return  # SPLIT-07
        positions: dict[int, int] = {}
        for step in range(waiting):
            position = (taken + step) & 0xFFFF
            head = memory.load_u16(queue.driver + ring.RING_ENTRIES + 2 * (position % size))
            if head in positions:
                self.tell(
                    "RING-07",
                    f"queue {queue.index}: head {head} is available at positions {positions[head]} and"
                    f" {position} (available index {index}, which counts chains and not descriptors)",
                    queue=queue.index,
                    position=position,
                    head=head,
                )
                return
            positions[head] = position

    def _look_at_packed(self, queue: Virtqueue) -> None:
        memory, index = self.function.memory, queue.index
        flags = memory.load_u16(queue.driver + ring.EVENT_FLAGS) & ring.EVENT_FLAGS_MASK
        if flags == _RESERVED_EVENT or (flags == ring.EVENT_FLAGS_DESC and not queue.ring.event_idx):
            self.tell(
                "PACK-07",
                f"flags {flags} in the driver event suppression structure of queue {index}",
                expected="0, 1 or 2" if queue.ring.event_idx else "0 or 1",
                queue=index,
                address=queue.driver,
            )
        offset, wrap = place(queue.ring.last_avail)
        at = queue.desc + _SIZE * offset + ring.PACKED_FLAGS
        flags = memory.load_u16(at) & _BOTH
        # In later laps a descriptor may look so that was skipped: of one that the device wrote it is known.
        known = (wrap and queue.requests == 0) or (index, offset) in self._written_used
        if known and flags == available(1 - wrap):
            self.tell(
                "PACK-06",
                f"descriptor {offset} of queue {index} has {_bits(flags)}, and the wrap counter is {wrap}",
                expected=_bits(available(wrap)),
                queue=index,
                descriptor=offset,
                address=at,
            )

    # -- buffers ---------------------------------------------------------------------------------------------

    def taken(self, buffer: Buffer) -> None:
        """A chain that can be worked on."""
        queue = self.transport.queues[buffer.queue]
        key = queue.index, queue.chain.id
        if queue.ring.name == SplitRing.name:
            descriptors = dict(self._chain_of(queue))
            self._check_split(buffer, queue, descriptors)
        else:
            first = taken_at(queue)
            numbers = [(first + step) % queue.size for step in range(queue.chain.slots)]
            descriptors = {number: self._descriptor(queue.desc, number) for number in numbers}
            self._check_packed(buffer, queue, descriptors)
            self._written_used -= {(queue.index, number) for number in numbers}
            if key in self._exposed:
                self.tell_of("PACK-08", buffer, f"id {queue.chain.id} is in flight")
        for (other, head), exposed in self._exposed.items():
            shared = exposed.descriptors.keys() & descriptors.keys()
            if other == queue.index and shared and queue.ring.name == SplitRing.name:
                number = min(shared)
                seen = f"descriptor {number} is in flight, in the chain of head {head}"
                self.tell_of("RING-07", buffer, seen, descriptor=number)
                break
        self._exposed[key] = _Exposed(descriptors)

    def given_back(self, buffer: Buffer) -> None:
        """As if it had not been taken."""
        self._exposed.pop((buffer.queue, getattr(buffer, "id", -1)), None)

    def used(self, buffer: Buffer, written: int) -> None:
        """The driver may have its descriptors again; until now it may not."""
        number = getattr(buffer, "id", -1)
        exposed = self._exposed.pop((buffer.queue, number), None)
        queue = self.transport.queues[buffer.queue]
        if exposed is None or not queue.enabled:
            return
        self._look(queue, number, exposed)
        if isinstance(queue.ring, PackedRing) and not self.transport.negotiated(virtio.F_IN_ORDER):
            # The device writes over a descriptor of whatever buffer has it, and the driver has these again.
            theirs = {(queue.ring.next_used + step) % queue.size for step in range(len(exposed.descriptors))}
            self._written_used.add((queue.index, queue.ring.next_used))
            for key, each in self._exposed.items():
                if key[0] == queue.index and theirs & each.descriptors.keys():
                    left = each.descriptors.keys() - theirs
                    self._exposed[key] = _Exposed({slot: each.descriptors[slot] for slot in left})

    def _look(self, queue: Virtqueue, number: int, exposed: _Exposed) -> None:
        """Hold a buffer's descriptors against what they were."""
        for slot, before in exposed.descriptors.items():
            now = self._descriptor(queue.desc, slot)
            if now != before:
                self.tell(
                    "RING-06",
                    f"queue {queue.index}: descriptor {slot} of buffer {number} is {_words(queue, now)},"
                    f" and was {_words(queue, before)}",
                    queue=queue.index,
                    head=number,
                    descriptor=slot,
                    address=queue.desc + _SIZE * slot,
                )
                return

    def _descriptor(self, table: int, number: int) -> bytes:
        return self.function.memory.read(table + _SIZE * number, _SIZE)

    def _chain_of(self, queue: Virtqueue) -> Iterator[tuple[int, bytes]]:
        """The descriptors in the table of the chain that was taken."""
        number = queue.chain.id
        for _ in range(queue.size):
            data = self._descriptor(queue.desc, number)
            yield number, data
            flags = int.from_bytes(data[12:14], "little")
            if not flags & ring.DESC_F_NEXT:
                return
            number = int.from_bytes(data[14:16], "little")
            if number >= queue.size:
                return

    def _check_split(self, buffer: Buffer, queue: Virtqueue, descriptors: Mapping[int, bytes]) -> None:
        in_order = self.transport.negotiated(virtio.F_IN_ORDER)
        for number, data in descriptors.items():
            flags, following = int.from_bytes(data[12:14], "little"), int.from_bytes(data[14:16], "little")
            self._check_any(buffer, number, data, flags & ~_FLAGS_KNOWN)
            expected = 0 if number == queue.size - 1 else number + 1
            if in_order and flags & ring.DESC_F_NEXT and following != expected:
                self.tell_of(
                    "SPLIT-10",
                    buffer,
                    f"next {following} in descriptor {number}",
                    expected=f"{expected}",
                    descriptor=number,
                )
            if flags & ring.DESC_F_INDIRECT:
                self._check_table(buffer, data, packed=False, in_order=in_order)

    def _check_packed(self, buffer: Buffer, queue: Virtqueue, descriptors: Mapping[int, bytes]) -> None:
        for number, data in descriptors.items():
            flags = int.from_bytes(data[14:16], "little")
            self._check_any(buffer, number, data, flags & ~(_FLAGS_KNOWN | _BOTH))
            if flags & ring.DESC_F_INDIRECT:
                self._check_table(buffer, data, packed=True, in_order=False)

    def _check_any(self, buffer: Buffer, number: int, data: bytes, unknown: int) -> None:
        if not int.from_bytes(data[8:12], "little"):
            self.tell_of("RING-04", buffer, f"descriptor {number} has no bytes", descriptor=number)
        if unknown:
            self.tell_of("RING-05", buffer, f"flags {unknown:#x} in descriptor {number}", descriptor=number)

    def _check_table(self, buffer: Buffer, data: bytes, *, packed: bool, in_order: bool) -> None:
        """An indirect table, which is known to be one."""
        table, length = int.from_bytes(data[:8], "little"), int.from_bytes(data[8:12], "little")
        count = length // _SIZE
        if not packed and count > self.transport.queues[buffer.queue].size:
            seen = f"an indirect table of {count} descriptors at {table:#x}"
            most = f"{self.transport.queues[buffer.queue].size} at most"
            self.tell_of("SPLIT-02", buffer, seen, expected=most, address=table)
        raw = self.function.memory.read(table, count * _SIZE)
        for number in range(count):
            entry = raw[number * _SIZE : (number + 1) * _SIZE]
            low, high = int.from_bytes(entry[12:14], "little"), int.from_bytes(entry[14:16], "little")
            flags = high if packed else low
            if packed and flags & ~ring.DESC_F_WRITE:
                self.tell_of(
                    "PACK-05",
                    buffer,
                    f"flags {flags:#x} in entry {number} of the table at {table:#x}",
                    expected="0 or 2",
                    descriptor=number,
                    address=table,
                )
                return
            if in_order and flags & ring.DESC_F_NEXT and high != number + 1:
                self.tell_of(
                    "SPLIT-11",
                    buffer,
                    f"next {high} in entry {number} of the table at {table:#x}",
                    expected=f"{number + 1}",
                    descriptor=number,
                    address=table,
                )
                return


def _bits(flags: int) -> str:
    avail, used = flags & ring.PACKED_DESC_F_AVAIL, flags & ring.PACKED_DESC_F_USED
    return f"AVAIL {avail and 1}, USED {used and 1}"


def _words(queue: Virtqueue, descriptor: bytes) -> str:
    """A descriptor, field by field."""
    address, length = int.from_bytes(descriptor[:8], "little"), int.from_bytes(descriptor[8:12], "little")
    third, fourth = int.from_bytes(descriptor[12:14], "little"), int.from_bytes(descriptor[14:], "little")
    if queue.ring.name == SplitRing.name:
        return f"({address:#x}, length {length}, flags {_flags(third)}, next {fourth})"
    return f"({address:#x}, length {length}, id {third}, flags {_flags(fourth)})"


def _flags(flags: int) -> str:
    return "|".join(name for bit, name in FLAGS.items() if flags & bit) or "0"
