"""The draft's rules for drivers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.admin.sent import Sent
from pymodel.migration.member import MODE_NAMES
from pymodel.rules.rule import MUST, MUST_NOT, SHOULD, CommandRule


def _partly_read(sent: Sent) -> str:
    if sent.mode is None or sent.member is None or not sent.member.unread:
        return ""
    return f"{sent.member.unread} bytes of the context were not read"


def _partly_written(sent: Sent) -> str:
    if sent.mode is None or sent.member is None or not sent.member.partial:
        return ""
    return "the written context is not complete"


def _leaves_partly_written(sent: Sent) -> str:
    return (
        f"to {MODE_NAMES[sent.mode]} with a partial context"
        if _partly_written(sent) and sent.mode is not None
        else ""
    )


def _no_start_marker(sent: Sent) -> str:
    found = sent.stream.no_start
    return "" if found is None else f"field {found:#06x} where START_MARKER belongs"


def _no_end_marker(sent: Sent) -> str:
    if sent.stream.second_start:
        return "a second START_MARKER before END_MARKER"
    if _partly_written(sent) and sent.member is not None:
        _, tail, missing = sent.member.write_position
        return "" if tail or missing else "the written context has no END_MARKER"
    return ""


def _after_end_marker(sent: Sent) -> str:
    return "more follows END_MARKER" if sent.stream.after_end else ""


_MIGRATION: Final = "the draft of 2023"
_REFUSES: Final = "refuses the command and changes nothing"
_FOLLOWS: Final = "does what it is asked for"

CONTEXT_RULES: Final[Mapping[str, CommandRule]] = {
    "DRV-01": CommandRule(
        SHOULD,
        _MIGRATION,
        "read a context to its end",
        "a MODE_SET while part of the context is unread",
        _FOLLOWS,
        _partly_read,
    ),
    "DRV-03": CommandRule(
        MUST,
        _MIGRATION,
        "write complete contexts",
        "a MODE_SET while a written context is partial",
        _REFUSES,
        _partly_written,
    ),
    "DRV-04": CommandRule(
        MUST_NOT,
        _MIGRATION,
        "ask for stop or active with a partial context",
        "a MODE_SET that leaves freeze while a written context is partial",
        _REFUSES,
        _leaves_partly_written,
    ),
    "DRV-07": CommandRule(
        MUST,
        _MIGRATION,
        "begin a context with START_MARKER",
        "another field first in a WRITE",
        _REFUSES,
        _no_start_marker,
    ),
    "DRV-08": CommandRule(
        MUST,
        _MIGRATION,
        "end a context with END_MARKER",
        "a MODE_SET, or another START_MARKER, before END_MARKER",
        _REFUSES,
        _no_end_marker,
    ),
    "DRV-09": CommandRule(
        MUST,
        _MIGRATION,
        "have END_MARKER as the last field of the last WRITE",
        "a WRITE that goes on behind it",
        "takes what follows as another context",
        _after_end_marker,
    ),
}
