"""What a CTX_WRITE does to the written context, as far as the draft's rules for drivers ask."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice

import numpy as np

from pymodel.admin.dispatch import Call
from pymodel.errors import MemoryFault
from pymodel.memory import Bytes
from pymodel.migration.member import Member
from pymodel.spec import admin
from pymodel.spec import context as spec

# Fields of one CTX_WRITE that are held against the rules.
MOST_FIELDS = 1 << 14


class Stream:
    """A walk over the field headers of one CTX_WRITE, from where the last one ended."""

    def __init__(self) -> None:
        self.no_start: int | None = None
        """The field that stands where START_MARKER belongs."""
        self.second_start = False
        """Whether START_MARKER came before the END_MARKER of the context before."""
        self.after_end = False
        """Whether more followed the END_MARKER of a context that earlier WRITEs began."""

    def walk(self, member: Member, call: Call) -> None:
        """Look at the headers, up to one that cannot be, or `MOST_FIELDS`: the PF waits for this."""
        if member.mode != spec.MODE_FREEZE:
            return
        start = admin.COMMAND.itemsize
        try:
            views = call.readable.views(start, max(call.readable.length - start, 0), write=False)
        except MemoryFault:
            return
        begun_before = member.partial
        ended = False
        opened, tail, missing = member.write_position
        for kind in islice(_headers(views, tail, missing), MOST_FIELDS):
            if begun_before and ended:
                self.after_end = True
            if kind == spec.START_MARKER:
                if opened:
                    self.second_start = True
                    return
                opened = True
            elif not opened:
                self.no_start = kind
                return
            elif kind == spec.END_MARKER:
                opened, ended = False, True


def _headers(views: list[Bytes], tail: bytes, missing: int) -> Iterator[int]:
    """The types of the fields whose headers end in `views`, up to one that is refused for its length."""
    size = spec.FIELD.itemsize
    for view in views:
        at = 0
        while at < len(view):
            if missing:
                step = min(missing, len(view) - at)
                missing -= step
            else:
                step = min(size - len(tail), len(view) - at)
                tail += view[at : at + step].tobytes()
                if len(tail) == size:
                    kind, reserved, missing = np.frombuffer(tail, spec.FIELD).item()
                    tail = b""
                    yield kind
                    if reserved or missing > spec.MAX_FIELD_LENGTH:
                        return
            at += step
