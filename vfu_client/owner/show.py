"""`vfu-owner show`: the context or the device parts in a file, or what differs in two."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pymodel.spec import parts
from vfu_client.owner import part
from vfu_client.owner.context import TYPE_NAMES, Field, Item, compare, decode
from vfu_client.owner.part import Part
from vfu_client.owner.subcommand import RefusedError, add, content, say

LABEL_WIDTH = 24


@dataclass(frozen=True)
class Stream:
    """What is in a file: sets of parts, of which the last one counts, or the fields of contexts."""

    of_parts: bool
    sets: Sequence[Sequence[Field | Part]]


def add_to(commands: Any) -> None:
    """Add the subcommand."""
    text = "decode a context, or device parts, or compare two of them; needs no server"
    show = add(commands, "show", run, text)
    show.add_argument("file", metavar="FILE")
    show.add_argument("other", nargs="?", metavar="FILE2")


def run(options: argparse.Namespace) -> Any:
    """Show what is in one file, or what differs in two."""
    first = _stream(content(options.file))
    if options.other is None:
        return _one(options, first)
    second = _stream(content(options.other))
    if first.of_parts != second.of_parts:
        raise RefusedError(
            "one file holds device parts and the other a context: only like compares with like"
        )
    return _two(options, first.sets[-1], second.sets[-1])


def _stream(data: bytes) -> Stream:
    """What a file holds: a context begins with START_MARKER, whose type is 0, parts with one above 0xff."""
    if part.is_vfio(data) or int.from_bytes(data[:2], "little") >= parts.DEV_FEATURES:
        return Stream(True, [part.decode(found, at=at) for at, found in part.sets(data)])
    return Stream(False, [decode(data)])


def _one(options: argparse.Namespace, stream: Stream) -> Any:
    rows = []
    for number, items in enumerate(stream.sets, 1):
        if len(stream.sets) > 1:
            say(options, f"record {number} of {len(stream.sets)}")
        width = max(LABEL_WIDTH, *(len(item.label) for item in items))
        for item in items:
            say(options, f"{item.offset:8}  {item.label:{width}}  {item.text()}".rstrip())
            rows.append(_plain(item) | ({"record": number} if len(stream.sets) > 1 else {}))
    return rows


def _two(options: argparse.Namespace, first: Sequence[Item], second: Sequence[Item]) -> Any:
    rows = []
    for difference in compare(first, second):
        one, two = difference.first, difference.second
        say(options, difference.label)
        say(options, f"  - {one.text() if one else '(not there)'}")
        say(options, f"  + {two.text() if two else '(not there)'}")
        rows.append(
            {
                "field": difference.label,
                "members": difference.members(),
                "first": one and one.members(),
                "second": two and two.members(),
            }
        )
    if not rows:
        say(options, "no difference")
    return rows


def _plain(item: Field | Part) -> dict[str, Any]:
    named: dict[str, Any] = {"type": item.type}
    if isinstance(item, Part):
        named |= {"name": part.TYPE_NAMES.get(item.type), "label": item.label, "optional": item.optional}
    else:
        named |= {"name": TYPE_NAMES.get(item.type)}
    return named | {"offset": item.offset, "length": len(item.value), "value": item.members()}
