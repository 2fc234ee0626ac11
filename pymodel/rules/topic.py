"""What the rules of one topic share: a table, and a function to watch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

from pymodel.memory import Buffer
from pymodel.pci.function import Function
from pymodel.queue.split import SplitRing
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import Rule
from pymodel.spec.ring import OFFSET_MASK
from pymodel.watch.access import COMMON, CONFIG, DEVICE, ISR, NOTIFY, Access, Piece
from pymodel.watch.listener import Listener, guarded

if TYPE_CHECKING:
    from pymodel.queue.virtqueue import Virtqueue


class Topic(Listener):
    """Holds what passes `function` against `RULES`.

    A subclass says what it is about by the names of its methods: `writing_queue_size(piece)` is called before
    that field of the common configuration is written, `wrote_queue_size` afterwards, `reads_queue_size` when
    it was read. Accesses to other structures come whole: `writing_config`, `wrote_config` and `reads_config`
    (configuration space), `writing_device` and `reads_device` (device configuration), `notifies`.
    """

    RULES: ClassVar[Mapping[str, Rule]] = {}

    def __init__(self, function: Function, breaches: Breaches) -> None:
        self.function = function
        self.transport = function.transport
        self._breaches = breaches

    def tell(
        self,
        rule: str,
        seen: str,
        *,
        expected: str = "",
        queue: int | None = None,
        subject: str = "",
        **where: Any,
    ) -> None:
        """The driver broke a rule of the table; once for each queue, or other subject, it is told.

        Not after a fault on purpose that reset the device under it.
        """
        if self.transport.reset_unasked:
            return
        if queue is not None:
            where["queue"] = queue
            subject = subject or f"queue {queue}"
        if self._breaches.add(
            rule, self.RULES[rule], self.function.name, subject, seen, expected=expected, where=where
        ):
            self.end(rule)

    def end(self, rule: str) -> None:
        """The driver of the function did what ends that."""
        self.function.end(f"its driver broke {rule}, and --check-driver=fatal was asked for")

    def tell_of(self, rule: str, buffer: Buffer, seen: str, *, expected: str = "", **where: Any) -> None:
        """The same, of the buffer that a queue took last."""
        queue = self.transport.queues[buffer.queue]
        position, head = taken_at(queue), queue.chain.id
        name = "head" if queue.ring.name == SplitRing.name else "buffer id"
        what = f"ring position {position}, {name} {head}"
        self.tell(
            rule,
            f"queue {queue.index}, {what}: {seen}",
            expected=expected,
            queue=queue.index,
            position=position,
            head=head,
            **where,
        )

    def later(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` in a while, on the function's own thread with its lock held."""
        self.function.after(seconds, partial(guarded, self.function.log, call))

    def queue_selected(self) -> Virtqueue | None:
        """The queue that queue_select names."""
        return self.transport.queues.get(self.transport.queue_select)

    # -- accesses, by structure ----------------------------------------------------------------------------

    def read(self, access: Access) -> None:
        """See `Listener`."""
        self._dispatch("reads", access)

    def write(self, access: Access) -> None:
        """See `Listener`."""
        self._dispatch("writing", access)

    def wrote(self, access: Access) -> None:
        """See `Listener`."""
        self._dispatch("wrote", access)

    def _dispatch(self, what: str, access: Access) -> None:
        if access.structure == COMMON:
            self._call(f"{what}_common", access)
            for piece in access.pieces:
                self._call(f"{what}_{piece.name}", piece)
        elif access.structure in _STRUCTURES:
            self._call(f"{what}_{_STRUCTURES[access.structure]}", access)

    def _call(self, name: str, what: Access | Piece) -> None:
        method = getattr(self, name, None)
        if method is not None:
            method(what)


def taken_at(queue: Virtqueue) -> int:
    """The position in its ring of the buffer that a queue took last."""
    if queue.ring.name == SplitRing.name:
        return (queue.ring.last_avail - 1) & 0xFFFF
    return ((queue.ring.last_avail & OFFSET_MASK) - queue.chain.slots) % queue.size


_STRUCTURES: Mapping[str, str] = {CONFIG: "config", DEVICE: "device", ISR: "isr", NOTIFY: "notification"}
