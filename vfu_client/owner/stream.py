"""Where the fields of a context begin and end, in bytes that come cut anywhere (A-13)."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import context

# context.FIELD without the reserved word.
_FIELD = struct.Struct("<I4xQ")
assert _FIELD.size == context.FIELD.itemsize

ReadBytes = bytes | bytearray | memoryview | NDArray[Any]


def as_view(data: ReadBytes) -> memoryview:
    """The bytes of any of these, not copied."""
    return (data.data if isinstance(data, np.ndarray) else memoryview(data)).cast("B")


def is_whole(view: memoryview) -> bool:
    """Whether these bytes are whole contexts and nothing else, without saying what is wrong."""
    at, inside = 0, False
    while at <= len(view) - _FIELD.size:
        kind, length = _FIELD.unpack_from(view, at)
        if (kind == context.START_MARKER) == inside or length > context.MAX_FIELD_LENGTH:
            return False
        inside = kind != context.END_MARKER
        at += _FIELD.size + length
    return at == len(view) and not inside


class BadContextError(ValueError):
    """Bytes that are no context: no START_MARKER first, a second one, or a header that makes no sense."""


class ContextWalker:
    """Follows a stream from header to header. Copies headers only, never values."""

    def __init__(self) -> None:
        self.position = 0
        self.complete = 0
        self._inside = False
        self._header = bytearray()
        self._value_left = 0
        self._type = 0

    @property
    def partial(self) -> bool:
        """Whether a context was begun and not ended."""
        return self._inside or bool(self._header)

    def copy(self) -> ContextWalker:
        """A walker at the same place."""
        twin = ContextWalker()
        twin.__dict__.update(self.__dict__, _header=bytearray(self._header))
        return twin

    def feed(self, data: ReadBytes) -> Iterator[tuple[int, int, int]]:
        """Walk on; yields (type, position of the value in the stream, its length) when a header is whole.

        Raises `BadContextError` and stays where it found that. Runs only as far as the iterator is taken.
        """
        view = as_view(data)
        at = 0
        while at < len(view):
            if self._value_left:
                step = min(self._value_left, len(view) - at)
                self._value_left -= step
                at += step
                self.position += step
            else:
                if not self._header and len(view) - at >= _FIELD.size:
                    step = _FIELD.size
                    kind, length = _FIELD.unpack_from(view, at)
                else:
                    step = min(_FIELD.size - len(self._header), len(view) - at)
                    self._header += view[at : at + step]
                at += step
                self.position += step
                if self._header:
                    if len(self._header) < _FIELD.size:
                        return
                    kind, length = _FIELD.unpack(self._header)
                    self._header.clear()
                self._begin(kind, length)
                yield kind, self.position, length
            if self._inside and not self._value_left and self._type == context.END_MARKER:
                self._inside = False
                self.complete += 1

    def walk(self, data: ReadBytes) -> None:
        """`feed`, for those who want the result only."""
        for _ in self.feed(data):
            pass

    def _begin(self, kind: int, length: int) -> None:
        """Go into a field, by its header. Raises `BadContextError`."""
        if (kind == context.START_MARKER) == self._inside:
            what = "a second START_MARKER" if self._inside else f"field {kind:#x} before START_MARKER"
            raise BadContextError(f"{what} at byte {self.position - _FIELD.size}")
        if length > context.MAX_FIELD_LENGTH:
            raise BadContextError(f"field {kind:#x} of {length} bytes at byte {self.position}")
        self._inside = True
        self._value_left = length
        self._type = kind
