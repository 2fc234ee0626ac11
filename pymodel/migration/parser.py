"""The stream of context bytes that CTX_WRITE takes, cut anywhere (A-13).

A parser is a value: a command works on a fork of the one that stands, which replaces it when the whole
command has validated. A command that fails leaves nothing behind (A-11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import ClassVar

import numpy as np

from pymodel.errors import InvalidField
from pymodel.memory import Bytes
from pymodel.migration.context import DEVICE_TYPES, HEADER, ROWS, Fields, Shape
from pymodel.spec import context as spec


class ContextParser:
    """Takes contexts apart, and hands the fields of each to `ended` when its END_MARKER is there.

    `limit` bounds the memory that one context may stage: without it, a driver could fill the server's
    memory with extents that overlap.
    """

    __slots__ = ("_filled", "_limit", "_open", "_shape", "_tail", "_type", "_value", "fields")

    # What the check of a whole context takes, in fields.
    END_PRICE: ClassVar[int] = 32

    def __init__(self, shape: Shape, limit: int) -> None:
        self._shape = shape
        self._limit = limit
        self._open = False  # between START_MARKER and END_MARKER
        self._tail = b""  # a header that was cut
        self._type = 0
        self._value: Bytes | None = None  # the value under way, of its full length
        self._filled = 0
        self.fields = Fields()

    @property
    def partial(self) -> bool:
        """Whether a context was begun and has not ended."""
        return self._open or bool(self._tail)

    @property
    def position(self) -> tuple[bool, bytes, int]:
        """Whether a context is open, what is there of a field's header, bytes that a value still lacks."""
        missing = 0 if self._value is None else len(self._value) - self._filled
        return self._open, self._tail, missing

    def fork(self) -> ContextParser:
        """A parser to go on with. The one it comes from stays good; `trim` it when the fork is given up.

        The value under way is shared: a fork only writes behind `_filled`, where this one will write again.
        """
        fork = ContextParser(self._shape, self._limit)
        fork._open, fork._tail, fork._type = self._open, self._tail, self._type
        fork._value, fork._filled = self._value, self._filled
        fork.fields = self.fields.fork()
        return fork

    def trim(self) -> None:
        """Free what a fork that was given up staged."""
        self.fields.trim()

    def feed(self, views: Iterable[Bytes], ended: Callable[[Fields], None], budget: int) -> int:
        """Take the bytes of `views`; value bytes are copied once, to where they stay.

        Stops early when `budget` fields were begun, an END_MARKER counted as `END_PRICE`: a stream of tiny
        fields takes far more time than its bytes. Returns how many bytes were taken, at least one of each
        call. Raises `InvalidField` for bytes that no context can hold; the parser is then of no more use.
        """
        taken = 0
        for view in views:
            data = view.data
            at, end = 0, len(data)
            while at < end:
                if budget <= 0:
                    return taken + at
                if self._value is None:
                    if not self._tail and end - at >= HEADER.size:
                        kind, reserved, length = HEADER.unpack_from(data, at)
                        at += HEADER.size
                    else:
                        count = min(HEADER.size - len(self._tail), end - at)
                        self._tail += data[at : at + count]
                        at += count
                        if len(self._tail) < HEADER.size:
                            continue
                        kind, reserved, length = HEADER.unpack(self._tail)
                        self._tail = b""
                    self._check(kind, reserved, length)
                    budget -= self.END_PRICE if kind == spec.END_MARKER else 1
                    if kind < DEVICE_TYPES and length <= end - at:
                        # Nearly all fields, so they are not worth an array.
                        self._finish(kind, bytes(data[at : at + length]), ended)
                        at += length
                        continue
                    # The pages of a large array are taken as they are filled, and one value at a time is
                    # under way.
                    self._type, self._filled = kind, 0
                    self._value = np.empty(length, np.uint8)
                count = min(len(self._value) - self._filled, end - at)
                self._value[self._filled : self._filled + count] = view[at : at + count]
                self._filled += count
                at += count
                if self._filled == len(self._value):
                    value, self._value = self._value, None
                    if self._type < DEVICE_TYPES:
                        self._finish(self._type, value.tobytes(), ended)
                    else:
                        self.fields.add(self._type, value)
            taken += end
        return taken

    def _check(self, kind: int, reserved: int, length: int) -> None:
        """Refuse a field by its header."""
        self._shape.check_header(kind, reserved, length)
        if kind == spec.START_MARKER:
            if self._open:
                raise InvalidField("a second START_MARKER before END_MARKER")
        elif not self._open:
            raise InvalidField(f"field {kind:#06x} before START_MARKER")
        if self.fields.cost + length > self._limit:
            raise InvalidField(f"the context holds more than this function can: over {self._limit} bytes")

    def _finish(self, kind: int, value: bytes, ended: Callable[[Fields], None]) -> None:
        """Act on a complete field that is not the device type's own."""
        if kind in ROWS:
            index, members = self._shape.decode(kind, value)
            self.fields.common[kind, index] = members
        elif kind == spec.DEVICE_CFG:
            self.fields.config = value
        elif kind == spec.START_MARKER:
            self._open = True
        elif kind == spec.END_MARKER:
            self._open = False
            fields, self.fields = self.fields, Fields()
            ended(fields)
        else:
            assert kind == spec.DISCARD, "no other type has a length in `Shape`"
            self.fields.clear()
