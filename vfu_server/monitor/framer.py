"""JSON objects one after another in a stream of bytes, as QMP clients send them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

MESSAGE_MAX: Final = 64 << 10
"""Bytes of one message of a client. Without it, one that never ends would fill our memory."""

NESTING_MAX: Final = 64
"""How deep a message nests. The JSON parser recurses."""


class Framer:
    """Finds where each JSON object of a stream ends, looking at every byte once."""

    _SPACE = re.compile(rb"[ \t\r\n\0]*")
    _STRUCTURE = re.compile(rb'["{}\[\]]')
    _STRING = re.compile(rb'["\\]')

    def __init__(self) -> None:
        self._data = bytearray()
        self._at = 0
        self._depth = 0
        self._in_string = False

    def feed(self, data: bytes) -> Iterator[bytes | None]:
        """The objects that are complete now. None is for bytes that are none: they end with their line.

        Raises OverflowError for an object that is too long or too deep; the stream is then of no more use.
        """
        self._data += data
        while True:
            if not self._depth:
                match = self._SPACE.match(self._data)
                assert match is not None
                del self._data[: match.end()]
                if not self._data:
                    return
                if self._data[0] != ord("{"):
                    line = self._data.find(b"\n")
                    del self._data[: line + 1 if line >= 0 else len(self._data)]
                    yield None
                    continue
            end = self._end()
            if max(end, self._at) > MESSAGE_MAX:
                raise OverflowError(f"a message of more than {MESSAGE_MAX} bytes")
            if not end:
                return
            message = bytes(self._data[:end])
            del self._data[:end]
            self._at = 0
            yield message

    def _end(self) -> int:
        """Where the object ends; 0 if that is not there yet."""
        data = self._data
        while match := (self._STRING if self._in_string else self._STRUCTURE).search(data, self._at):
            token = data[match.start()]
            self._at = match.end()
            if token == ord("\\"):
                if self._at == len(data):
                    self._at -= 1  # what it escapes is not there yet
                    return 0
                self._at += 1
            elif token == ord('"'):
                self._in_string = not self._in_string
            elif token in b"{[":
                self._depth += 1
                if self._depth > NESTING_MAX:
                    raise OverflowError(f"a message nested deeper than {NESTING_MAX}")
            else:
                self._depth -= 1
                if not self._depth:
                    return self._at
        self._at = len(data)
        return 0
