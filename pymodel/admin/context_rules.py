"""The draft's rules for drivers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.admin.rule import Rule, Sent
from pymodel.migration.member import MODE_NAMES


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


CONTEXT_RULES: Final[Mapping[str, Rule]] = {
    "DRV-01": Rule("SHOULD", "read a context to its end", _partly_read),
    "DRV-03": Rule("MUST", "write complete contexts", _partly_written),
    "DRV-04": Rule("MUST NOT", "ask for stop or active with a partial context", _leaves_partly_written),
    "DRV-05": Rule("SHOULD NOT", "access device configuration in stop or freeze"),
    "DRV-06": Rule("MUST NOT", "write the PCI_CFG capability in freeze"),
    "DRV-07": Rule("MUST", "begin a context with START_MARKER", _no_start_marker),
    "DRV-08": Rule("MUST", "end a context with END_MARKER", _no_end_marker),
    "DRV-09": Rule("MUST", "END_MARKER is the last field of the last WRITE", _after_end_marker),
}
