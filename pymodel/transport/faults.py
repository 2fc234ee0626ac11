"""Faults on purpose: what a function does wrong because somebody wants to see how its driver bears it."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from pymodel.errors import BrokenQueue
from pymodel.host import FAULT_INJECTED
from pymodel.memory import Buffer, Consumer

KINDS: Final[Mapping[str, str]] = {
    "late": "a completion comes `ms` later",
    "reorder": "a completion comes behind the next one of its queue, or `ms` later",
    "error": "a request is answered as if it failed, and not carried out",
    "short": "a used length is half of what was written",
    "used-length": "a used length is `value`, whatever was written",
    "lose": "a buffer is taken and never used",
    "drop-interrupt": "an interrupt is not sent",
    "duplicate-interrupt": "an interrupt is sent twice",
    "dma-fault": "the memory of a buffer cannot be accessed: the device needs a reset",
    "needs-reset": "the device needs a reset when it takes a buffer",
    "reset": "the function is reset, as by a function-level reset, when it takes a buffer",
    "link-flap": "the link goes down when a buffer is taken, and up `ms` later",
    "config-change": "the configuration changes between two reads of it",
}
"""What can be asked for, and what happens."""

OF_BUFFERS: Final = ("needs-reset", "dma-fault", "reset", "link-flap", "error", "lose")
"""Those that are met when a buffer is taken, in this order."""

OF_COMPLETIONS: Final = ("used-length", "short", "late", "reorder")
"""Those that are met when one is used."""

MS: Final = 100
"""How long is late where nobody says."""


@dataclass
class Fault:
    """What is to go wrong: with one queue or any, the next `count` times (0: always), each with `chance`.

    `ms` and `value` are what `KINDS` says. `met` counts how often it went wrong.
    """

    kind: str
    queue: int | None = None
    count: int = 1
    chance: float = 1.0
    ms: int = MS
    value: int = 0xFFFFFFFF
    met: int = 0

    @property
    def over(self) -> bool:
        """Whether it happened as often as it was asked for."""
        return 0 < self.count <= self.met


@dataclass
class Faults:
    """The faults of one function. `tell` is told of each that happens, by name."""

    tell: Callable[[str, Mapping[str, Any]], None]
    asked: list[Fault] = field(default_factory=list)

    def meets(self, kind: str, queue: int | None = None) -> Fault | None:
        """A fault of this kind that is to happen now; it is counted, logged and told."""
        for fault in self.asked:
            mine = fault.kind == kind and (fault.queue is None or fault.queue == queue)
            if mine and not fault.over and (fault.chance >= 1 or random.random() < fault.chance):  # noqa: S311 - chance
                fault.met += 1
                of = {} if queue is None else {"queue": queue}
                self.tell(FAULT_INJECTED, {"fault": kind, "count": fault.met, **of})
                return fault
        return None

    @property
    def active(self) -> bool:
        """Whether anything can go wrong yet."""
        return any(not fault.over for fault in self.asked)


class Failing(Consumer, Protocol):
    """A consumer that can answer as if it failed."""

    def fail(self, buffer: Buffer) -> int:
        """Write the answer of a request that failed into a buffer, and do nothing else about it.

        Returns the used length to complete it with.
        """
        ...


class Faulty:
    """A consumer whose buffers meet faults. `after` calls back in so many seconds."""

    def __init__(
        self,
        consumer: Failing,
        faults: Faults,
        after: Callable[[float, Callable[[], None]], None],
        happens: Mapping[str, Callable[[Fault], None]],
    ) -> None:
        """`happens` does what is not a buffer's matter: "reset", "link-flap"."""
        self._consumer = consumer
        self._faults = faults
        self._after = after
        self._happens = happens
        self._waiting: dict[int, list[Callable[[], None]]] = {}

    def accepts(self, queue: int) -> bool:
        """See `Consumer`."""
        return self._consumer.accepts(queue)

    def take(self, buffer: Buffer) -> None:
        """See `Consumer`."""
        for kind in OF_BUFFERS:
            fault = self._faults.meets(kind, buffer.queue)
            if fault is None:
                continue
            if kind == "needs-reset":
                raise BrokenQueue(f"queue {buffer.queue}: it was asked for (inject)")
            if kind == "dma-fault":
                # No MemoryFault, which the rules for drivers hold against the driver.
                raise BrokenQueue(f"queue {buffer.queue}: no access to memory: it was asked for (inject)")
            if kind == "lose":
                return
            if kind == "error":
                buffer.complete(self._consumer.fail(buffer))
                return
            self._happens[kind](fault)
        self._consumer.take(_Spoilt(buffer, self._complete))

    def _complete(self, buffer: Buffer, written: int) -> None:
        queue = buffer.queue
        for kind in OF_COMPLETIONS:
            fault = self._faults.meets(kind, queue)
            if fault is None:
                continue
            if kind == "used-length":
                written = fault.value
            elif kind == "short":
                written //= 2
            else:
                self._hold(kind, fault, buffer, written)
                return
        buffer.complete(written)
        for late in self._waiting.pop(queue, ()):
            late()

    def _hold(self, kind: str, fault: Fault, buffer: Buffer, written: int) -> None:
        """Complete a buffer later: only the first call counts."""

        def late() -> None:
            buffer.complete(written)

        if kind == "reorder":
            self._waiting.setdefault(buffer.queue, []).append(late)
        self._after(fault.ms / 1000, late)

    def service(self) -> None:
        """See `Consumer`."""
        self._consumer.service()

    def drop(self, queue: int) -> None:
        """See `Consumer`."""
        self._waiting.pop(queue, None)
        self._consumer.drop(queue)

    def reset(self) -> None:
        """See `Consumer`."""
        self._waiting.clear()
        self._consumer.reset()


class _Spoilt(Buffer):
    """A buffer whose completion goes another way."""

    def __init__(self, buffer: Buffer, complete: Callable[[Buffer, int], None]) -> None:
        super().__init__(
            buffer.queue, buffer.readable, buffer.writable, lambda written: complete(buffer, written)
        )
        self._buffer = buffer

    def next(self) -> Buffer | None:
        """See `Buffer`. What is taken further meets no faults."""
        return self._buffer.next()

    @property
    def ring_is_full(self) -> bool:
        """See `Buffer`."""
        return self._buffer.ring_is_full

    def give_back(self) -> None:
        """See `Buffer`."""
        self._buffer.give_back()
