"""One thing that the standard asks of drivers, and who sees whether they do it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple

MUST: Final = "MUST"
MUST_NOT: Final = "MUST NOT"
SHOULD: Final = "SHOULD"
SHOULD_NOT: Final = "SHOULD NOT"

ITSELF: Final = "what a driver thinks, or does in itself"
TOLERATES: Final = "what a driver must put up with"
BARRIER: Final = "a barrier of the driver's processor"
NOT_OFFERED: Final = "of what the device does not offer"
OTHERWISE: Final = "of devices unlike this one"
VAGUE: Final = "has no measure"
MOMENT: Final = "depends on when a driver looked"
HINTED: Final = "told of by a hint only"

REASONS: Final = (ITSELF, TOLERATES, BARRIER, NOT_OFFERED, OTHERWISE, VAGUE, MOMENT, HINTED)


class Statement(NamedTuple):
    """In words that go on from "A driver" and the level; the rules that hold a driver to it, or why none."""

    level: str
    text: str
    rules: tuple[str, ...] = ()
    reason: str = ""


Sections = Mapping[str, tuple[Statement, ...]]
"""By section of the standard, each with a statement for each of its words MUST and SHOULD, in their order."""


def seen(level: str, text: str, *rules: str) -> Statement:
    """A statement that rules for drivers hold them to, by their IDs."""
    return Statement(level, text, rules=rules)


def unseen(level: str, text: str, reason: str) -> Statement:
    """A statement that no rule holds drivers to."""
    return Statement(level, text, reason=reason)
