"""A member of the SR-IOV group, as the owner's admin commands see it: one virtual function.

What the modes mean (draft; requirements by ID in docs/wire.md):

    Active   the function runs
    Stop     it starts no PCI transaction; its context may still change
    Freeze   its context does not change, but by CTX_WRITE and what PCI itself defines (A-14)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pymodel.errors import GuestError, InvalidCommand, InvalidField
from pymodel.host import MODE_CHANGED, NOBODY, Observer
from pymodel.memory import Segments
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
        observer: Observer = NOBODY,
    ) -> None:
        self.lock = lock
        self.name = name
        self.mode = spec.MODE_ACTIVE
        self.record = WriteRecord()
        self._function = function
        self._log = logging.getLogger(f"virtio.{name}")
        self._observer = observer
        self._stopping = False
        self._told = False
        self._reading = Reading(function)
        self._writing = Writing(function)
        self._waiters: dict[Callable[[], None], None] = {}

    # --- the function's side -------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """The function's gate: whether it may fetch, and send interrupts (DEV-13, DEV-14, DEV-22, DEV-23)."""
        return self.mode == spec.MODE_ACTIVE and not self._stopping

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

    def function_reset(self) -> None:
        """FLR: drops read position and staging, keeps mode and write record (A-15, A-29)."""
        self.discard_context()

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

    def set_mode(self, mode: int) -> bool:
        """Go to `mode`. False: the gate is closed, requests are outstanding or the disk has yet to be let go,
        call again (DEV-14).

        Raises `InvalidField` for what is not a mode (DEV-03), `InvalidCommand` for leaving Freeze with a
        partial context (DEV-05) and for a disk that can't be flushed; the mode stays (DEV-04). The present
        mode changes nothing (DEV-02).
        """
        if mode not in MODE_NAMES:
            raise InvalidField(f"mode {mode}")
        if mode == self.mode:
            return True
        steps = TRANSITIONS.get((self.mode, mode))
        if steps is None:
            raise InvalidCommand(f"{MODE_NAMES[self.mode]} to {MODE_NAMES[mode]}")
        if self.partial:
            raise InvalidCommand(f"{MODE_NAMES[self.mode]} with a context that was written in part")
        if self.mode == spec.MODE_ACTIVE and not self._at_rest():
            if not self._stopping:
                self._stopping = True
                self._function.mode_changed()
            return False
        self._reading.begin_anew()  # a mode change begins a new read
        self._told = False
        for step in steps:
            self._log.info("%s -> %s", MODE_NAMES[self.mode], MODE_NAMES[step])
            self.mode = step
            self._stopping = False
            self._observer.event(self.name, MODE_CHANGED, {"mode": MODE_NAMES[step]})
            self._function.mode_changed()
        return True

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

        Returns (bytes left, bytes placed). Raises `MemoryFault`, the position unmoved.
        """
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
        try:
            committed = self._writing.take(source, start)
        except InvalidField as error:
            if not self._told:
                self._log.info("a context is refused: %s", error)
                self._told = True
            raise
        if committed:
            self._reading.forget()
        return committed is not None

    def discard_context(self) -> None:
        """Drop the read position and what was written in part; never undoes a commit (A-10).

        The next read gives the whole context: its reader may have lost the one before (DEV-09).
        """
        self._reading.forget()
        self._writing.discard()

    def fields(self) -> Mapping[int, int]:
        """Every field type that can be sent or taken, by number: exact length or LENGTH_VARIES (DEV-10)."""
        return self._writing.fields().lengths
