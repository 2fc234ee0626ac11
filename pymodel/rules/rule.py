"""A rule for drivers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pymodel.admin.sent import Sent

MUST: Final = "MUST"
MUST_NOT: Final = "MUST NOT"
SHOULD: Final = "SHOULD"
SHOULD_NOT: Final = "SHOULD NOT"
HINT: Final = "HINT"
"""No rule of the standard, but hardly meant."""


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule in our words, which go on from "A driver" and the level.

    `section` is the title of the standard's. `sees` is what the device sees of a breach, `does` what it does
    when there was one, in words that go on from "the device".
    """

    level: str
    section: str
    text: str
    sees: str
    does: str


@dataclass(frozen=True, slots=True)
class CommandRule(Rule):
    """A rule about admin commands: what was seen of a breach, or nothing."""

    check: Callable[[Sent], str]
