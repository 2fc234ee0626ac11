"""Rules about setting queues up: registers, rings in memory, vectors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, ClassVar, Final

from pymodel.pci.function import Function
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import HINT, MUST, MUST_NOT, SHOULD_NOT, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import ring, virtio, virtio_pci
from pymodel.watch.access import Access, Piece

if TYPE_CHECKING:
    from pymodel.queue.virtqueue import Virtqueue

_COMMON: Final = "Common configuration structure layout"
_VECTORS: Final = "MSI-X Vector Configuration"

_READ_ONLY: Final = (
    "device_feature",
    "num_queues",
    "config_generation",
    "queue_notify_off",
    "queue_notif_config_data",
)
_ADMIN_READ_ONLY: Final = ("admin_queue_index", "admin_queue_num")

_WHERE_LEGACY_DRIVERS_HAVE: Final = {0: "device_features", 18: "device_status"}
"""Registers of legacy drivers, by offsets at which a read-only register is today."""

# Names of a ring's three parts, and their alignment.
_SPLIT: Final = (
    ("descriptor table", "queue_desc", ring.DESC_ALIGN),
    ("available ring", "queue_driver", ring.AVAIL_ALIGN),
    ("used ring", "queue_device", ring.USED_ALIGN),
)
_PACKED: Final = (
    ("descriptor ring", "queue_desc", ring.DESC_ALIGN),
    ("driver event suppression structure", "queue_driver", ring.EVENT_ALIGN),
    ("device event suppression structure", "queue_device", ring.EVENT_ALIGN),
)


class Queues(Topic):
    """What a driver writes to the fields of a queue, and where it puts the ring."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "CFG-01": Rule(
            MUST_NOT,
            _COMMON,
            "write device_feature, num_queues, config_generation, queue_notify_off or notif_config_data",
            "such a write",
            "ignores the write",
        ),
        "CFG-02": Rule(
            MUST_NOT,
            _COMMON,
            "write a queue_size that is no power of 2 without RING_PACKED",
            "such a write",
            "ignores the write, and the queue keeps its size",
        ),
        "CFG-03": Rule(
            MUST_NOT,
            _COMMON,
            "write 0 to queue_size with RING_PACKED",
            "such a write",
            "ignores the write, and the queue keeps its size",
        ),
        "CFG-04": Rule(
            HINT,
            _COMMON,
            "asks for a larger queue than there is",
            "a queue_size beyond what it read before",
            "ignores the write, and the queue keeps its size",
        ),
        "CFG-05": Rule(
            MUST,
            _COMMON,
            "configure the other fields of a queue before queue_enable",
            "queue_enable while an address was not written",
            "looks for the ring at address 0",
        ),
        "CFG-06": Rule(
            MUST,
            _COMMON,
            "configure a queue before it is enabled, not afterwards",
            "a field of an enabled queue that is written",
            "ignores the write",
        ),
        "CFG-07": Rule(
            MUST_NOT,
            _COMMON,
            "write 0 to queue_enable",
            "such a write",
            "ignores the write",
        ),
        "CFG-08": Rule(
            MUST_NOT,
            _COMMON,
            "take a queue reset for complete before queue_reset reads 0",
            "a field of the queue that is written, and queue_reset was not read since 1 was written to it",
            "takes the write, as the reset is over",
        ),
        "CFG-09": Rule(
            HINT,
            _COMMON,
            "resets a queue that cannot be reset",
            "queue_reset without RING_RESET, or of a queue that is not enabled",
            "ignores the write",
        ),
        "CFG-10": Rule(
            HINT,
            _COMMON,
            "sets up a queue that there is not",
            "a field of a queue that is written, and queue_select names none",
            "ignores the write",
        ),
        "CFG-11": Rule(
            HINT,
            _COMMON,
            "writes a value that a field cannot have",
            "another value than 0 and 1 in queue_enable or queue_reset, or admin_queue_index or _num written",
            "ignores the write",
        ),
        "CFG-12": Rule(
            HINT,
            _COMMON,
            "enables a queue whose size it does not know",
            "queue_enable, and queue_size was neither read nor written",
            "takes the size that queue_size has, and a ring of as many entries",
        ),
        "VQ-01": Rule(
            MUST,
            "Virtqueues",
            "align each part of a ring",
            "queue_enable with an address that is not a multiple of what the format asks for",
            "sets DEVICE_NEEDS_RESET",
        ),
        "VQ-02": Rule(
            HINT,
            "Virtqueues",
            "has two rings at the same place",
            "queue_enable with a part of the ring that overlaps one of an enabled queue, or of its own",
            "works on both",
        ),
        "VQ-03": Rule(
            HINT,
            "Virtqueues",
            "has a ring where the device finds no memory",
            "queue_enable with a part that is not mapped for the device",
            "sets DEVICE_NEEDS_RESET when it looks at the queue",
        ),
        "VQ-04": Rule(
            MUST,
            "Available Buffer Notification Suppression",
            "set the flags of the used ring to 0 when it allocates it",
            "other flags there at queue_enable",
            "writes its own",
        ),
        "VQ-05": Rule(
            HINT,
            "Virtqueues",
            "enables a queue whose ring it did not clear",
            "at queue_enable a used index, or used flags of descriptors, that are not 0",
            "begins at 0 all the same",
        ),
        "MSIX-01": Rule(
            MUST_NOT,
            _VECTORS,
            "map an event to a vector outside the MSI-X table",
            "such a write of config_msix_vector or queue_msix_vector",
            "shows NO_VECTOR, and sends no interrupt",
        ),
        "MSIX-02": Rule(
            MUST,
            _VECTORS,
            "read a vector field back after it mapped an event",
            "DRIVER_OK without such a read",
            "does what it is asked for",
        ),
        "MSIX-03": Rule(
            HINT,
            _VECTORS,
            "maps events to vectors while MSI-X is disabled",
            "DRIVER_OK with such a vector, and MSI-X Enable is clear",
            "sends no message: a VF interrupts nobody, a PF asserts INTx",
        ),
        "ISR-01": Rule(
            SHOULD_NOT,
            "ISR status capability",
            "access ISR status upon a queue's interrupt while MSI-X is enabled",
            "a read of ISR status that says nothing, with MSI-X enabled",
            "answers, and clears it",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        # Vector fields that were written and not read: name and queue.
        self._unread_vectors: dict[tuple[str, int], int] = {}
        # Queues whose reset was asked for and not looked at.
        self._unread_resets: set[int] = set()
        # Fields of a queue that were written, by index; and queues whose size was read or written.
        self._written: dict[int, set[str]] = {}
        self._sized: set[int] = set()

    def was_reset(self) -> None:
        """All is as at first."""
        self._unread_vectors.clear()
        self._unread_resets.clear()
        self._written.clear()
        self._sized.clear()

    # -- fields --------------------------------------------------------------------------------------------

    def writing_common(self, access: Access) -> None:
        """Fields that are not a driver's to write."""
        for piece in access.pieces:
            what = f"{piece.value:#x} written to {piece.name}"
            if piece.name in _READ_ONLY:
                legacy = _WHERE_LEGACY_DRIVERS_HAVE.get(access.offset)
                hint = f"; legacy drivers have {legacy} at this offset: is this one?" if legacy else ""
                self.tell("CFG-01", what + hint, subject=piece.name, register=piece.name)
            elif piece.name in _ADMIN_READ_ONLY:
                self.tell("CFG-11", what, subject=piece.name, register=piece.name)

    def writing_queue_size(self, piece: Piece) -> None:
        """How large a queue is to be."""
        self._sized.add(self.transport.queue_select)
        queue = self._field(piece)
        if queue is None:
            return
        size = piece.value
        packed = self.transport.negotiated(virtio.F_RING_PACKED)
        what = f"{size} written to queue_size of queue {queue.index}"
        if packed and not size:
            self.tell("CFG-03", what, expected=f"1 to {queue.max_size}", queue=queue.index)
        elif not packed and (not size or size & (size - 1)):
            self.tell("CFG-02", what, expected=f"a power of 2 up to {queue.max_size}", queue=queue.index)
        elif size > queue.max_size:
            self.tell("CFG-04", what, expected=f"at most {queue.max_size}", queue=queue.index)

    def reads_queue_size(self, _piece: Piece) -> None:
        """How large it may be, or is."""
        self._sized.add(self.transport.queue_select)

    def writing_queue_enable(self, piece: Piece) -> None:
        """A queue is to begin."""
        index = self.transport.queue_select
        what = f"{piece.value} written to queue_enable of queue {index}"
        if piece.value == 0:
            self.tell("CFG-07", what, queue=index, register="queue_enable")
            return
        if piece.value != 1:
            self.tell("CFG-11", what, expected="1", queue=index, register="queue_enable")
            return
        queue = self._field(piece)
        if queue is None or queue.enabled:
            return
        if self.transport.status & virtio.STATUS_FEATURES_OK:
            self._look_at_ring(queue)

    def writing_queue_reset(self, piece: Piece) -> None:
        """A queue is to be reset."""
        index = self.transport.queue_select
        queue = self.queue_selected()
        what = f"{piece.value} written to queue_reset of queue {index}"
        if piece.value != 1:
            self.tell("CFG-11", what, expected="1", queue=index, register="queue_reset")
        elif queue is None:
            self.tell("CFG-10", what, queue=index, register="queue_reset")
        elif not self.transport.negotiated(virtio.F_RING_RESET):
            self.tell("CFG-09", f"{what} without RING_RESET (bit 40)", queue=index, register="queue_reset")
        elif not queue.enabled:
            self.tell("CFG-09", f"{what}, which is not enabled", queue=index, register="queue_reset")
        else:
            self._unread_resets.add(index)
            self._written.pop(index, None)

    def reads_queue_reset(self, _piece: Piece) -> None:
        """The driver looks whether the reset is over."""
        self._unread_resets.discard(self.transport.queue_select)

    def _field(self, piece: Piece) -> Virtqueue | None:
        """The queue that a field is written of; None after that was told of one that there is not."""
        index = self.transport.queue_select
        queue = self.queue_selected()
        what = f"{piece.shifted:#x} written to {piece.name} of queue {index}"
        if queue is None:
            there = ", ".join(map(str, self.transport.queues)) if len(self.transport.queues) < 9 else ""
            names = f"one of {there or f'{len(self.transport.queues)} queues'}"
            expected = names if len(self.transport.queues) > 1 else "queue 0 only"
            self.tell("CFG-10", what, expected=expected, queue=index, register=piece.name)
            return None
        if queue.enabled:
            self.tell("CFG-06", f"{what}, which is enabled", queue=index, register=piece.name)
            return queue
        if index in self._unread_resets:
            self._unread_resets.discard(index)
            self.tell("CFG-08", what, expected="a read of queue_reset", queue=index, register=piece.name)
        self._written.setdefault(index, set()).add(piece.name)
        return queue

    writing_queue_desc = writing_queue_driver = writing_queue_device = _field

    # -- rings in memory -------------------------------------------------------------------------------------

    def _look_at_ring(self, queue: Virtqueue) -> None:
        """A queue is about to be enabled: whether its ring is where one can be."""
        packed = self.transport.negotiated(virtio.F_RING_PACKED)
        addresses = (queue.desc, queue.driver, queue.device)
        missing = [
            name
            for name in ("queue_desc", "queue_driver", "queue_device")
            if name not in self._written.get(queue.index, ())
        ]
        if missing:
            names = " and ".join(missing)
            self.tell("CFG-05", f"queue {queue.index} enabled, and {names} never written", queue=queue.index)
            return
        if queue.index not in self._sized:
            self.tell(
                "CFG-12",
                f"queue {queue.index} enabled with the size of {queue.size} that it has at first",
                queue=queue.index,
                register="queue_size",
            )
        aligned = True
        for (part, register, alignment), address in zip(
            _PACKED if packed else _SPLIT, addresses, strict=True
        ):
            if address % alignment:
                aligned = False
                self.tell(
                    "VQ-01",
                    f"the {part} of queue {queue.index} at {address:#x} ({register})",
                    expected=f"a multiple of {alignment}",
                    queue=queue.index,
                    register=register,
                    address=address,
                )
        # Without Bus Master Enable nothing can be said of memory.
        if aligned and self.function.may_access:
            self._look_at_memory(queue, packed=packed)

    def _look_at_memory(self, queue: Virtqueue, *, packed: bool) -> None:
        parts = list(_parts(queue, queue.size, packed=packed))
        others = [
            (other, part)
            for other in self.transport.queues.values()
            if other.enabled and other is not queue
            for part in _parts(other, other.size, packed=packed)
        ]
        others += [(queue, part) for part in parts]
        for part in parts:
            name, address, length = part
            for other, (other_name, start, size) in others:
                if (other, (other_name, start, size)) != (queue, part) and _overlap(
                    address, length, start, size
                ):
                    self.tell(
                        "VQ-02",
                        f"the {name} of queue {queue.index} at {address:#x}, {length} bytes for a size of"
                        f" {queue.size}, overlaps the {other_name} of queue {other.index} at {start:#x}",
                        queue=queue.index,
                        address=address,
                    )
                    break
            if address + length > 1 << 64 or not self.function.memory.is_mapped(address, length):
                self.tell(
                    "VQ-03",
                    f"the {name} of queue {queue.index} at {address:#x}, {length} bytes, is in no memory"
                    " that the device may access",
                    queue=queue.index,
                    address=address,
                )
                return
        if packed:
            self._look_for_old_descriptors(queue)
        else:
            self._look_at_used_ring(queue)

    def _look_at_used_ring(self, queue: Virtqueue) -> None:
        memory = self.function.memory
        flags, index = memory.load_u16(queue.device), memory.load_u16(queue.device + ring.RING_IDX)
        at = f"the used ring of queue {queue.index} at {queue.device:#x}"
        if flags:
            self.tell("VQ-04", f"flags {flags:#x} in {at}", queue=queue.index, address=queue.device)
        if index:
            self.tell("VQ-05", f"index {index} in {at}", queue=queue.index, address=queue.device)

    def _look_for_old_descriptors(self, queue: Virtqueue) -> None:
        both = ring.PACKED_DESC_F_AVAIL | ring.PACKED_DESC_F_USED
        for number in range(queue.size):
            at = queue.desc + ring.PACKED_DESC.itemsize * number + ring.PACKED_FLAGS
            flags = self.function.memory.load_u16(at) & both
            if flags & ring.PACKED_DESC_F_USED:
                self.tell(
                    "VQ-05",
                    f"descriptor {number} of queue {queue.index} has flags {flags:#x}",
                    queue=queue.index,
                    descriptor=number,
                    address=at,
                )
                return

    # -- vectors ---------------------------------------------------------------------------------------------

    def writing_config_msix_vector(self, piece: Piece) -> None:
        """Configuration changes are mapped."""
        self._maps(piece, -1)

    def writing_queue_msix_vector(self, piece: Piece) -> None:
        """A queue is mapped."""
        self._maps(piece, self.transport.queue_select)

    def reads_config_msix_vector(self, _piece: Piece) -> None:
        """The driver looks whether that was possible."""
        self._unread_vectors.pop(("config_msix_vector", -1), None)

    def reads_queue_msix_vector(self, _piece: Piece) -> None:
        """The driver looks whether that was possible."""
        self._unread_vectors.pop(("queue_msix_vector", self.transport.queue_select), None)

    def writing_device_status(self, piece: Piece) -> None:
        """With DRIVER_OK the driver counts on what it mapped."""
        if piece.value & virtio.STATUS_DRIVER_OK:
            for (name, queue), vector in self._unread_vectors.items():
                of = f" of queue {queue}" if queue >= 0 else ""
                seen = f"vector {vector} was written to {name}{of}, and DRIVER_OK followed"
                self.tell("MSIX-02", seen, queue=queue if queue >= 0 else None, register=name)
            self._unread_vectors.clear()
            self._check_enabled()

    def _check_enabled(self) -> None:
        """Whether messages can come."""
        if self.function.msix.enabled or self.transport.running:
            return
        for queue in self.transport.queues.values():
            if queue.enabled and queue.vector != virtio_pci.NO_VECTOR:
                seen = f"DRIVER_OK, vector {queue.vector} for queue {queue.index}, and MSI-X Enable is clear"
                self.tell("MSIX-03", seen, queue=queue.index, register="queue_msix_vector")

    def _maps(self, piece: Piece, queue: int) -> None:
        vector, vectors = piece.value, self.function.msix_vectors
        if vector == virtio_pci.NO_VECTOR:
            self._unread_vectors.pop((piece.name, queue), None)
            return
        of = f" of queue {queue}" if queue >= 0 else ""
        if vector >= vectors:
            self.tell(
                "MSIX-01",
                f"vector {vector} written to {piece.name}{of}",
                expected=f"0 to {vectors - 1}, or 0xffff",
                queue=queue if queue >= 0 else None,
                register=piece.name,
            )
        self._unread_vectors[piece.name, queue] = vector

    def reads_isr(self, access: Access) -> None:
        """With MSI-X there is nothing to be seen but configuration changes."""
        if self.function.msix.enabled and not access.value:
            self.tell("ISR-01", "ISR status read as 0 while MSI-X is enabled")


def _parts(queue: Virtqueue, size: int, *, packed: bool) -> Iterator[tuple[str, int, int]]:
    """Name, address and length of the parts of a queue's ring."""
    addresses = (queue.desc, queue.driver, queue.device)
    for (name, _, _), address, length in zip(
        _PACKED if packed else _SPLIT, addresses, queue.ring.parts(size), strict=True
    ):
        yield name, address, length


def _overlap(first: int, length: int, second: int, size: int) -> bool:
    return first < second + size and second < first + length
