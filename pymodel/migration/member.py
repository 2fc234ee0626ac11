"""A member of the SR-IOV group, as the owner's admin commands see it: one virtual function.

What the modes mean (draft; requirements by ID in docs/wire.md):

    Active   the function runs
    Stop     it starts no PCI transaction; its context may still change
    Freeze   its context does not change, but by CTX_WRITE and what PCI itself defines (A-14)

Device parts of virtio 1.4 know two: running, which is Active, and stopped, which is Stop and ends with an
FLR.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import Enum
from typing import Any

from pymodel.errors import GuestError, InvalidCommand, InvalidField
from pymodel.host import MODE_CHANGED
from pymodel.memory import Segments
from pymodel.migration.legacy_access import LegacyAccess
from pymodel.migration.member_parts import MemberParts
from pymodel.migration.migratable import Migratable
from pymodel.migration.reading import Reading
from pymodel.migration.record import WriteRecord
from pymodel.migration.writing import Writing
from pymodel.spec import context as spec

MODE_NAMES: Mapping[int, str] = {
    spec.MODE_ACTIVE: "active",
    spec.MODE_STOP: "stop",
    spec.MODE_FREEZE: "freeze",
}
# (from, to): the modes passed through, in order. What is not here is refused.
TRANSITIONS: Mapping[tuple[int, int], tuple[int, ...]] = {
    (spec.MODE_ACTIVE, spec.MODE_STOP): (spec.MODE_STOP,),
    (spec.MODE_ACTIVE, spec.MODE_FREEZE): (spec.MODE_STOP, spec.MODE_FREEZE),
    (spec.MODE_STOP, spec.MODE_ACTIVE): (spec.MODE_ACTIVE,),
    (spec.MODE_STOP, spec.MODE_FREEZE): (spec.MODE_FREEZE,),
    (spec.MODE_FREEZE, spec.MODE_STOP): (spec.MODE_STOP,),
    (spec.MODE_FREEZE, spec.MODE_ACTIVE): (spec.MODE_ACTIVE,),
}


class Dialect(Enum):
    """The commands that a member is moved by: its state is in the hands of one of them at a time."""

    CONTEXT = "device contexts"
    PARTS = "device parts"


class Member:
    """One virtual function under the commands of its owner.

    Commands are called with `lock`, the function's own, held: `with member.lock: ...`. The owner's lock is
    taken before it, never after. Nothing here blocks: a command that must wait says so, is kept by the
    admin queue, and called again when `settled` told it to.
    """

    def __init__(
        self,
        function: Migratable,
        lock: AbstractContextManager[Any],
        name: str = "vf",
        event: Callable[[str, Mapping[str, Any]], None] = lambda _, __: None,
    ) -> None:
        self.lock = lock
        self.name = name
        self.mode = spec.MODE_ACTIVE
        self.record = WriteRecord()
        self._function = function
        self._log = logging.getLogger(f"virtio.{name}")
        self._event = event
        self._stopping = False
        self._told = False
        self._reading = Reading(function)
        self._writing = Writing(function)
        self.parts = MemberParts(function, self._writing.fields)
        self._stopped_by = Dialect.CONTEXT
        self._waiters: dict[Callable[[], None], None] = {}

    # --- the function's side -------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """The function's gate: whether it may fetch, and send interrupts (DEV-13, DEV-14, DEV-22, DEV-23)."""
        return self.mode == spec.MODE_ACTIVE and not self._stopping

    @property
    def legacy(self) -> LegacyAccess | None:
        """See `Migratable`."""
        return self._function.legacy

    @property
    def partial(self) -> bool:
        """Whether a context was written in part, or a CTX_WRITE is under way (DEV-05)."""
        return self._writing.partial

    @property
    def unread(self) -> int:
        """Bytes that are left of a context that was read in part, else 0."""
        return self._reading.unread

    @property
    def write_position(self) -> tuple[bool, bytes, int]:
        """Where the written stream stands (`ContextParser.position`)."""
        return self._writing.position

    @property
    def dialect(self) -> Dialect | None:
        """Whose commands this member is in the hands of; None where either may begin."""
        if self.mode != spec.MODE_ACTIVE or self._stopping:
            return self._stopped_by
        if self.partial or self.unread:
            return Dialect.CONTEXT
        return Dialect.PARTS if self.parts.objects else None

    def function_reset(self) -> None:
        """FLR: drops read position, staging and what parts were set, keeps the write record (A-15, A-29).

        The mode stays, but what device parts stopped runs again: their owner counts on it.
        """
        self._drop_contexts()
        self.parts.forget()
        if self.mode != spec.MODE_ACTIVE and self._stopped_by is Dialect.PARTS:
            self._enter(spec.MODE_ACTIVE)

    def device_reset(self) -> None:
        """A device reset: the driver begins anew, not where parts that were set before would have it."""
        self.parts.forget()

    def owner_reset(self) -> None:
        """The owner's driver may be another now: the next context that begins is a whole one."""
        self._reading.owner_reset()

    def settled(self) -> None:
        """The function says that a transition ended or its last request completed: held commands go on.

        Call it on any thread, with the lock held; what it calls only wakes the owner's thread.
        """
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            waiter()

    # --- waiting -------------------------------------------------------------------------------------

    @property
    def in_transition(self) -> bool:
        """Whether MODE_SET, CTX_READ and CTX_WRITE must wait (DEV-29, DEV-30, DEV-31)."""
        return self._function.in_transition

    def when_settled(self, waiter: Callable[[], None]) -> None:
        """Have `waiter` called once: at the next `settled`, or at once for a WRITE with slices left."""
        if self._writing.under_way and not self.in_transition:
            waiter()
        else:
            self._waiters[waiter] = None

    def abandon_write(self) -> None:
        """The owner gave up a CTX_WRITE that was under way: it has changed nothing."""
        self._writing.abandon()

    def abandon_stop(self) -> None:
        """The owner gave up a MODE_SET that waits: the mode was not changed, the gate opens again."""
        if self._stopping:
            self._stopping = False
            self._function.mode_changed()

    # --- commands ------------------------------------------------------------------------------------

    def set_mode(self, mode: int, dialect: Dialect = Dialect.CONTEXT) -> bool:
        """Go to `mode`. False: the gate is closed, requests are outstanding or the disk has yet to be let go,
        call again (DEV-14, P-DEV-49).

        Raises `InvalidField` for what is not a mode (DEV-03), `InvalidCommand` for leaving Freeze with a
        partial context (DEV-05), for a disk that can't be flushed and where the other dialect is at work,
        MemoryError; the mode stays (DEV-04). The present mode changes nothing (DEV-02, P-DEV-58).
        """
        if mode not in MODE_NAMES:
            raise InvalidField(f"mode {mode}")
        self._claim(dialect)
        if mode == self.mode:
            return True
        steps = TRANSITIONS.get((self.mode, mode))
        if steps is None:
            raise InvalidCommand(f"{MODE_NAMES[self.mode]} to {MODE_NAMES[mode]}")
        if self.partial:
            raise InvalidCommand(f"{MODE_NAMES[self.mode]} with a context that was written in part")
        if self.mode == spec.MODE_ACTIVE:
            self._stopped_by = dialect
            if not self._at_rest():
                if not self._stopping:
                    self._stopping = True
                    self._function.mode_changed()
                return False
        if mode == spec.MODE_ACTIVE:
            self.parts.take_effect()
        self._reading.begin_anew()  # a mode change begins a new read
        self._told = False
        for step in steps:
            self._enter(step)
        return True

    def _enter(self, mode: int) -> None:
        self._log.info("%s -> %s", MODE_NAMES[self.mode], MODE_NAMES[mode])
        self.mode = mode
        self._stopping = False
        self._event(MODE_CHANGED, {"mode": MODE_NAMES[mode]})
        self._function.mode_changed()

    def _claim(self, dialect: Dialect) -> None:
        """Raise `InvalidCommand` where the other dialect is at work."""
        if self.dialect not in (None, dialect):
            assert self.dialect is not None
            raise InvalidCommand(f"{self.name} is in the hands of {self.dialect.value}")

    def _at_rest(self) -> bool:
        """Whether nothing of the function is under way, and its disk is free for others."""
        try:
            return not self._function.outstanding and self._function.quiesce()
        except GuestError:
            self.abandon_stop()
            raise

    def context_size(self, freeze_mode: int) -> int:
        """What is left to read in this mode (0), or the whole context (1). Raises `InvalidField`."""
        if freeze_mode > 1:
            raise InvalidField(f"freeze_mode {freeze_mode}")
        return self._reading.size(anew=bool(freeze_mode))

    def read_context(self, target: Segments, start: int) -> tuple[int, int]:
        """Put the next context bytes into `target` from `start` on, as many as fit (A-27).

        Returns (bytes left, bytes placed). Raises `MemoryFault`, the position unmoved, and `InvalidCommand`
        where device parts are at work, or left a position in a ring that no context can tell.
        """
        self._claim(Dialect.CONTEXT)
        return self._reading.read(target, start)

    def write_context(self, source: Segments, start: int) -> bool:
        """Take the bytes of `source` from `start` on as context, all or nothing. False: call again.

        Contexts that end in it are committed together, once everything has validated (A-08, A-11); a
        commit begins a new read. Raises `InvalidCommand` unless the mode is Freeze (DEV-12),
        `InvalidField` for bad content, `MemoryFault`; what was staged before stays as it was. A reset of
        the function between two calls drops what was staged, and the command begins again.

        The answer has no room for the reason of a refusal, so the log has that of the first one in a mode.
        """
        if self.mode != spec.MODE_FREEZE:
            raise InvalidCommand(f"CTX_WRITE in mode {MODE_NAMES[self.mode]}")
        self._claim(Dialect.CONTEXT)
        try:
            committed = self._writing.take(source, start)
        except InvalidField as error:
            self._tell("a context is refused", error)
            raise
        if committed:
            self._reading.forget()
        return committed is not None

    def _tell(self, what: str, error: Exception) -> None:
        if not self._told:
            self._log.info("%s: %s", what, error)
            self._told = True

    def discard_context(self) -> None:
        """Drop the read position and what was written in part; never undoes a commit (A-10).

        The next read gives the whole context: its reader may have lost the one before (DEV-09). Raises
        `InvalidCommand` where device parts are at work.
        """
        self._claim(Dialect.CONTEXT)
        self._drop_contexts()

    def _drop_contexts(self) -> None:
        self._reading.forget()
        self._writing.discard()

    def start_record(self) -> None:
        """Begin to record what the function writes, with nothing recorded: it is about to be moved."""
        self.record.start()
        self._function.expect_quiesce(soon=True)

    def stop_record(self) -> None:
        """End the record, and forget what was recorded."""
        self.record.stop()
        self._function.expect_quiesce(soon=False)

    def begin_parts(self) -> None:
        """A DEV_PARTS object is about to be made. Raises `InvalidCommand` where contexts are at work."""
        self._claim(Dialect.PARTS)

    def set_parts(self, data: bytes) -> int:
        """Take parts to go on with when it is resumed, all or none, and return how many they are.

        Raises `InvalidCommand` unless it is stopped (P-DEV-44), and as `MemberParts.stage` does. The log has
        the reason of the first refusal, as with contexts.
        """
        if self.mode != spec.MODE_STOP:
            raise InvalidCommand(f"DEV_PARTS_SET in mode {MODE_NAMES[self.mode]}")
        try:
            return self.parts.stage(data)
        except (InvalidCommand, InvalidField) as error:
            self._tell("parts are refused", error)
            raise

    def fields(self) -> Mapping[int, int]:
        """Every field type that can be sent or taken, by number: exact length or LENGTH_VARIES (DEV-10)."""
        return self._writing.fields().lengths
