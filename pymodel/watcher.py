"""What passes a function, told to who watches it: the rules for drivers, a trace. Usually nobody does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymodel.errors import BrokenQueue
from pymodel.memory import Buffer

INTX: Final = -1
"""Where an interrupt has no vector."""


class Witness:
    """Is told of buffers, interrupts, memory and events of a function, and does nothing here.

    Called with the function's lock held.
    """

    def turn(self, queue: int) -> None:
        """A queue is about to be looked at: by a kick, or because there was a reason to look again."""

    def taken(self, buffer: Buffer) -> None:
        """A buffer was taken, and its consumer has not seen it. The queue's `chain` is that of the buffer."""

    def given_back(self, buffer: Buffer) -> None:
        """A buffer was given back, the last of those taken: it will be taken again."""

    def used(self, buffer: Buffer, written: int) -> None:
        """A buffer was completed; the driver sees it when the queue publishes."""

    def broke(self, queue: int, error: BrokenQueue) -> None:
        """What is in a queue cannot be worked on. Memory that is missing may be back in a moment."""

    def interrupt(self, vector: int) -> None:
        """An MSI-X message was sent, or, with `INTX`, the interrupt pin asserted."""

    def mapped(self, address: int, length: int, *, there: bool, writable: bool) -> None:
        """The client made guest memory accessible to the function, or took it away (`there` is false)."""

    def was_reset(self) -> None:
        """The device was reset, by its driver or with the function."""

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """What the function's `Observer` is told of."""


class Watcher(Witness):
    """Is told of accesses too, and does nothing here.

    A watcher changes nothing, and lets nothing out: an exception would be the function's.
    """

    def config_read(self, offset: int, data: bytes) -> None:
        """Configuration space was read: `data` is the answer."""

    def config_write(self, offset: int, data: bytes) -> None:
        """Configuration space is about to be written."""

    def config_wrote(self, offset: int, data: bytes) -> None:
        """It was; the function is as it is afterwards."""

    def bar_read(self, bar: int, offset: int, data: bytes) -> None:
        """A BAR was read: `data` is the answer."""

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """A BAR is about to be written."""

    def bar_wrote(self, bar: int, offset: int, data: bytes) -> None:
        """It was."""
