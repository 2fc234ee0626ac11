"""Device parts of one member, on their way to the owner and back."""

from __future__ import annotations

from collections.abc import Callable

from pymodel.errors import InvalidCommand
from pymodel.migration import parts
from pymodel.migration.context import Shape
from pymodel.migration.migratable import Migratable
from pymodel.migration.parts import Part
from pymodel.migration.state import FunctionState


class MemberParts:
    """What the owner gets and sets of a function by device parts.

    `objects` are the ids of its DEV_PARTS objects; the owner's lock guards them.
    What was set takes effect when the member is resumed; until then it is what is got, too.
    """

    def __init__(self, function: Migratable, shape: Callable[[], Shape]) -> None:
        self.objects: set[int] = set()
        self._function = function
        self._shape = shape
        self._staged: FunctionState | None = None

    def forget(self) -> None:
        """A reset of the function: what was set does not take effect any more (P-DEV-59)."""
        self._staged = None

    def capture(self) -> list[Part]:
        """All parts, in the standard's order. Raises `InvalidCommand` for a function with content."""
        self._refuse_content()
        return parts.encode(self._staged or self._function.capture(), self._function.parts_of_type)

    def stage(self, data: bytes) -> int:
        """Take parts to go on with, all or none, and return how many; they add up with those before them.

        Raises `InvalidField` for bad parts, `InvalidCommand` for a function with content; what was set before
        stays.
        """
        self._refuse_content()
        found = parts.parse(data)
        if found:
            state = self._function.capture() if self._staged is None else self._staged.copy()
            parts.apply(found, state, self._shape(), self._function.parts_of_type)
            self._function.check(state)
            self._staged = state
        return len(found)

    def take_effect(self) -> None:
        """The member is resumed. Raises MemoryError, nothing changed.

        Each queue that is enabled interrupts once: whoever moved the function may have lost one that was sent
        just before it stopped, and a driver takes one too many as a reason to look.
        """
        if self._staged is not None:
            for queue in self._staged.queues:
                queue.interrupt_owed |= queue.enable != 0
            self._function.restore(self._staged)
            self._staged = None

    def _refuse_content(self) -> None:
        if self._function.content_size:
            raise InvalidCommand(
                "its disk is in memory, and what is on it is in no part:"
                " give source and destination one file, as --disk /dev/shm/FILE"
            )
