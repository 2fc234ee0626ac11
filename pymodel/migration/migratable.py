"""What migration needs of a function."""

from __future__ import annotations

from typing import Protocol

from pymodel.migration.legacy_access import LegacyAccess
from pymodel.migration.parts import PartsOfType
from pymodel.migration.state import FunctionState, Mark


class Migratable(Protocol):
    """What a function offers to be migrated. Called with the function's lock held."""

    def mark(self) -> Mark:
        """The present content: `capture` with it may leave out what has not changed since."""
        ...

    def capture(self, since: Mark | None = None, *, own_fields: bool = True) -> FunctionState:
        """The present state, a fresh object each time. What happens later does not change it (A-07).

        Without `own_fields` those of the device type are left out, as a snapshot of a disk has its price.
        """
        ...

    def check(self, state: FunctionState) -> None:
        """Raises `InvalidField` where `restore` could not take `state`. Changes nothing."""
        ...

    def restore(self, state: FunctionState) -> None:
        """Take over a state that `check` found good. Raises MemoryError, nothing changed.

        `state.device` holds only the fields that were written, in order; content that it does not
        mention stays as it is.
        """
        ...

    def device_fields(self) -> dict[int, int]:
        """The device type's own field types: exact length, or LENGTH_VARIES."""
        ...

    @property
    def parts_of_type(self) -> PartsOfType:
        """The device type's own device parts."""
        ...

    @property
    def content_size(self) -> int:
        """Bytes of content that the device holds (a disk's size), else 0: bounds what a context may stage."""
        ...

    @property
    def legacy(self) -> LegacyAccess | None:
        """What a legacy driver's accesses reach, where one can come."""
        ...

    @property
    def in_transition(self) -> bool:
        """Whether an FLR, a device reset or a power state change is under way."""
        ...

    @property
    def outstanding(self) -> int:
        """Requests fetched that can and will be completed."""
        ...

    def expect_quiesce(self, *, soon: bool) -> None:
        """Whether the function is about to be moved, so that `quiesce` should then take little time."""
        ...

    def quiesce(self) -> bool:
        """Nothing is outstanding: let another host have what the device stands on, its disk.

        False: under way, `settled` follows; call again. Raises `CommandError` if that is not possible.
        """
        ...

    def mode_changed(self) -> None:
        """The gate opened or closed (`Member.active`), or the mode changed. Called on the admin's thread."""
        ...
