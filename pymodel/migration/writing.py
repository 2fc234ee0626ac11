"""Contexts that come from the owner: staged, checked, and committed all or nothing."""

from __future__ import annotations

from dataclasses import dataclass

from pymodel.errors import GuestError, InvalidField
from pymodel.memory import Segments
from pymodel.migration.context import Fields, Shape
from pymodel.migration.migratable import Migratable
from pymodel.migration.parser import ContextParser
from pymodel.migration.state import FunctionState

# What a written context may stage beside the device's content: tables of the device type, and the
# bookkeeping of many small fields.
STAGING_SLACK = 64 << 20
# A CTX_WRITE is taken in slices of this many bytes and fields at most; the locks are free between them.
SLICE_BYTES = 64 << 20
SLICE_FIELDS = 2048


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


class Writing:
    """What the owner writes to a function: a context that came in part, and a CTX_WRITE under way."""

    def __init__(self, function: Migratable) -> None:
        self._function = function
        self._partial: ContextParser | None = None
        self._taking: _Taking | None = None
        self._shape: Shape | None = None

    @property
    def partial(self) -> bool:
        """Whether a context was written in part, or a CTX_WRITE is under way (DEV-05)."""
        return self._partial is not None or self._taking is not None

    @property
    def under_way(self) -> bool:
        """Whether a CTX_WRITE has slices left."""
        return self._taking is not None

    @property
    def position(self) -> tuple[bool, bytes, int]:
        """Where the written stream stands (`ContextParser.position`)."""
        return self._partial.position if self._partial is not None else (False, b"", 0)

    def abandon(self) -> None:
        """The owner gave up a CTX_WRITE that was under way: it has changed nothing."""
        if self._taking is not None:
            self._taking = None
            if self._partial is not None:
                self._partial.trim()

    def discard(self) -> None:
        """Drop what was written in part; never undoes a commit (A-10)."""
        self._partial = self._taking = None

    def fields(self) -> Shape:
        """The field types that can be sent or taken."""
        if self._shape is None:
            self._shape = Shape.of(self._function.capture(own_fields=False), self._function.device_fields())
        return self._shape

    def take(self, source: Segments, start: int) -> bool | None:
        """Take the bytes of `source` from `start` on as context, all or nothing. None: call again.

        Contexts that end in it are committed together, once everything has validated (A-08, A-11). Returns
        whether any did. Raises `InvalidField` for bad content, `MemoryFault`, MemoryError; what was staged
        before stays as it was. A `discard` between two calls drops what was staged, and the command begins
        again.
        """
        length = max(source.length - start, 0)
        taking = self._taking
        if taking is None or taking.source is not source:
            self.abandon()
            if length > self._limit:
                raise InvalidField(f"a command of {length} bytes holds more than this function can")
            parser = self._partial.fork() if self._partial else ContextParser(self.fields(), self._limit)
            taking = self._taking = _Taking(source, parser, [])
        try:
            views = source.views(start + taking.at, SLICE_BYTES, write=False)
            taking.at += taking.parser.feed(
                views, lambda fields: self._ended(fields, taking.commits), SLICE_FIELDS
            )
        except (GuestError, MemoryError):
            self.abandon()
            raise
        if taking.at < length:
            return None
        if taking.commits:
            commit = taking.commits[0]
            commit.state.device = commit.fields.device()
            try:
                self._function.restore(commit.state)
            except MemoryError:
                self.abandon()
                raise
        self._taking = None
        self._partial = taking.parser if taking.parser.partial else None
        return bool(taking.commits)

    @property
    def _limit(self) -> int:
        # Twice the content: a context may write a range again, and small extents cost their bookkeeping.
        return 2 * self._function.content_size + STAGING_SLACK

    def _ended(self, fields: Fields, commits: list[_Commit]) -> None:
        """Check a context that ended on top of those before it in this command, and fold it onto them."""
        state = commits[0].state if commits else self._function.capture(own_fields=False)
        fields.apply(state)
        self._function.check(state)
        if not commits:
            commits.append(_Commit(fields, state))
            return
        commits[0].fields.follow(fields)
        if commits[0].fields.cost > self._limit:
            raise InvalidField("the contexts of one command hold more than this function can")
