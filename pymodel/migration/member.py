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
from dataclasses import dataclass
from typing import Any, Protocol

from pymodel.errors import GuestError, InvalidCommand, InvalidField
from pymodel.host import MODE_CHANGED, NOBODY, Observer
from pymodel.memory import Bytes, Segments
from pymodel.migration.context import Fields, Shape, encode
from pymodel.migration.parser import ContextParser
from pymodel.migration.record import WriteRecord
from pymodel.migration.state import FunctionState
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

# What a written context may stage beside the device's content: tables of the device type, and the
# bookkeeping of many small fields.
STAGING_SLACK = 64 << 20
# A CTX_WRITE is taken in slices of this many bytes and fields at most; the locks are free between them.
SLICE_BYTES = 64 << 20
SLICE_FIELDS = 2048
_MOST = 0xFFFFFFFF


class Migratable(Protocol):
    """What a function offers to be migrated. Called with the function's lock held."""

    def mark(self) -> int:
        """Begin an epoch: `capture` with the number returned may leave out content older than it."""
        ...

    def capture(self, since: int | None = None) -> FunctionState:
        """The present state, a fresh object each time. What happens later does not change it (A-07)."""
        ...

    def check(self, state: FunctionState) -> None:
        """Raises `InvalidField` where `restore` could not take `state`. Changes nothing."""
        ...

    def restore(self, state: FunctionState) -> None:
        """Take over a state that `check` found good. Cannot fail.

        `state.device` holds only the fields that were written, in order; content that it does not
        mention stays as it is.
        """
        ...

    def device_fields(self) -> dict[int, int]:
        """The device type's own field types: exact length, or LENGTH_VARIES."""
        ...

    @property
    def content_size(self) -> int:
        """Bytes of content that the device holds (a disk's size), else 0: bounds what a context may stage."""
        ...

    @property
    def in_transition(self) -> bool:
        """Whether an FLR, a device reset or a power state change is under way."""
        ...

    @property
    def outstanding(self) -> int:
        """Requests fetched that can and will be completed."""
        ...

    def quiesce(self) -> bool:
        """Nothing is outstanding: let another host have what the device stands on, its disk.

        False: under way, `settled` follows; call again. Raises `CommandError` if that is not possible.
        """
        ...

    def mode_changed(self) -> None:
        """The gate opened or closed (`Member.active`), or the mode changed. Called on the admin's thread."""
        ...


class _Reading:
    """A context that is being read: its buffers, and how far."""

    __slots__ = ("_buffers", "_first", "_offset", "left", "mark")

    def __init__(self, buffers: list[Bytes], mark: int) -> None:
        self._buffers = buffers
        self.mark = mark
        self._first = 0  # the buffer that is next, and how much of it was read
        self._offset = 0
        self.left = sum(len(buffer) for buffer in buffers)

    def next(self, count: int) -> list[Bytes]:
        """The next `count` bytes, as views. Moves nothing."""
        offset = self._offset
        pieces: list[Bytes] = []
        for index in range(self._first, len(self._buffers)):
            if count <= 0:
                break
            piece = self._buffers[index][offset : offset + count]
            count -= len(piece)
            offset = 0
            pieces.append(piece)
        return pieces

    def advance(self, count: int) -> None:
        """Go on by `count` bytes; buffers that were passed are let go."""
        self.left -= count
        self._offset += count
        while self._first < len(self._buffers) and self._offset >= len(self._buffers[self._first]):
            self._offset -= len(self._buffers[self._first])
            self._buffers[self._first] = self._buffers[self._first][:0].copy()
            self._first += 1


@dataclass(slots=True)
class _Commit:
    """What the contexts that ended in one CTX_WRITE come to."""

    fields: Fields
    state: FunctionState


@dataclass(slots=True)
class _Taking:
    """A CTX_WRITE under way: `parser` has taken the first `at` bytes of the data in `source`."""

    source: Segments
    parser: ContextParser
    commits: list[_Commit]
    at: int = 0


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
        self._reading: _Reading | None = None
        # The mark of the last context that the owner read to its end: what it need not be sent again.
        self._known: int | None = None
        self._writing: ContextParser | None = None
        self._taking: _Taking | None = None
        self._shape: Shape | None = None
        self._waiters: dict[Callable[[], None], None] = {}

    # --- the function's side -------------------------------------------------------------------------

    @property
    def active(self) -> bool:
        """The function's gate: whether it may fetch, and send interrupts (DEV-13, DEV-14, DEV-22, DEV-23)."""
        return self.mode == spec.MODE_ACTIVE and not self._stopping

    @property
    def partial(self) -> bool:
        """Whether a context was written in part, or a CTX_WRITE is under way (DEV-05)."""
        return self._writing is not None or self._taking is not None

    @property
    def unread(self) -> int:
        """Bytes that are left of a context that was read in part, else 0."""
        return self._reading.left if self._reading is not None else 0

    @property
    def write_position(self) -> tuple[bool, bytes, int]:
        """Where the written stream stands (`ContextParser.position`)."""
        return self._writing.position if self._writing is not None else (False, b"", 0)

    def function_reset(self) -> None:
        """FLR: drops read position and staging, keeps mode and write record (A-15, A-29)."""
        self.discard_context()

    def owner_reset(self) -> None:
        """The owner's driver may be another now: the next read gives the whole context."""
        self._known = None

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
        if self._taking is not None and not self.in_transition:
            waiter()
        else:
            self._waiters[waiter] = None

    def abandon_write(self) -> None:
        """The owner gave up a CTX_WRITE that was under way: it has changed nothing."""
        if self._taking is not None:
            self._taking = None
            if self._writing is not None:
                self._writing.trim()

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
        self._reading = None  # a mode change begins a new read
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
        if self._reading is not None and not freeze_mode:
            return self._reading.left
        return sum(len(buffer) for buffer in encode(self._function.capture(self._known)))

    def read_context(self, target: Segments, start: int) -> tuple[int, int]:
        """Put the next context bytes into `target` from `start` on, as many as fit (A-27).

        Returns (bytes left, bytes placed). Raises `MemoryFault`, the position unmoved.
        """
        if self._reading is None:
            self._reading = _Reading(encode(self._function.capture(self._known)), self._function.mark())
            self._known = None
        reading = self._reading
        count = min(max(target.length - start, 0), reading.left, _MOST)
        if count:
            reading.advance(target.write(start, reading.next(count)))
        if not reading.left:
            self._known = reading.mark
        return min(reading.left, _MOST), count

    def write_context(self, source: Segments, start: int) -> bool:
        """Take the bytes of `source` from `start` on as context, all or nothing. False: call again.

        Contexts that end in it are committed together, once everything has validated (A-08, A-11); a
        commit begins a new read. Raises `InvalidCommand` unless the mode is Freeze (DEV-12),
        `InvalidField` for bad content, `MemoryFault`; what was staged before stays as it was. A reset of
        the function between two calls drops what was staged, and the command begins again.
        """
        if self.mode != spec.MODE_FREEZE:
            raise InvalidCommand(f"CTX_WRITE in mode {MODE_NAMES[self.mode]}")
        length = max(source.length - start, 0)
        taking = self._taking
        if taking is None or taking.source is not source:
            self.abandon_write()
            if length > self._limit:
                raise InvalidField(f"a command of {length} bytes holds more than this function can")
            parser = self._writing.fork() if self._writing else ContextParser(self._fields(), self._limit)
            taking = self._taking = _Taking(source, parser, [])
        try:
            views = source.views(start + taking.at, SLICE_BYTES, write=False)
            taking.at += taking.parser.feed(
                views, lambda fields: self._ended(fields, taking.commits), SLICE_FIELDS
            )
        except GuestError:
            self.abandon_write()
            raise
        if taking.at < length:
            return False
        self._taking = None
        if taking.commits:
            commit = taking.commits[0]
            commit.state.device = commit.fields.device()
            self._function.restore(commit.state)
            self._reading = self._known = None
        self._writing = taking.parser if taking.parser.partial else None
        return True

    def discard_context(self) -> None:
        """Drop the read position and what was written in part; never undoes a commit (A-10).

        The next read gives the whole context: its reader may have lost the one before (DEV-09).
        """
        self._reading = self._known = None
        self._writing = self._taking = None

    def fields(self) -> Mapping[int, int]:
        """Every field type that can be sent or taken, by number: exact length or LENGTH_VARIES (DEV-10)."""
        return self._fields().lengths

    # --- inside --------------------------------------------------------------------------------------

    @property
    def _limit(self) -> int:
        # Twice the content: a context may write a range again, and small extents cost their bookkeeping.
        return 2 * self._function.content_size + STAGING_SLACK

    def _fields(self) -> Shape:
        if self._shape is None:
            self._shape = Shape.of(self._function.capture(), self._function.device_fields())
        return self._shape

    def _ended(self, fields: Fields, commits: list[_Commit]) -> None:
        """Check a context that ended on top of those before it in this command, and fold it onto them."""
        state = commits[0].state if commits else self._function.capture()
        fields.apply(state)
        self._function.check(state)
        if not commits:
            commits.append(_Commit(fields, state))
            return
        commits[0].fields.follow(fields)
        if commits[0].fields.cost > self._limit:
            raise InvalidField("the contexts of one command hold more than this function can")
