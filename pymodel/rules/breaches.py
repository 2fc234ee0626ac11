"""Who broke which rule how often: counted, the first of each told."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pymodel.host import NOBODY, RULE_BROKEN, Observer
from pymodel.rules.rule import MUST, MUST_NOT, Rule


@dataclass(frozen=True, slots=True)
class Breach:
    """How often a rule was broken by the driver of one function, of one queue or with one command.

    `subject` is the queue ("queue 0") or the command; it is empty where the rule is about neither.
    """

    rule: str
    function: str
    subject: str
    count: int


class Breaches:
    """Counts breaches, and logs and tells the first of each rule and subject by a client of a function.

    `fatal`: the first MUST or MUST NOT that is broken ends the function of the driver who did it.

    Calls about a function are made with its lock held; `all` may be called by anyone.
    """

    def __init__(
        self, observer: Observer = NOBODY, log: logging.Logger | None = None, *, fatal: bool = False
    ) -> None:
        self._fatal = fatal
        self._observer = observer
        self._log = log or logging.getLogger("virtio.rules")
        self._counts: dict[tuple[str, str, str], int] = {}
        self._told: dict[str, set[tuple[str, str]]] = {}

    def begin(self, function: str) -> None:
        """Another client has the function: what its driver does is told anew."""
        self._told.pop(function, None)

    def add(
        self,
        name: str,
        rule: Rule,
        function: str,
        subject: str,
        seen: str,
        *,
        expected: str = "",
        where: Mapping[str, Any] | None = None,
    ) -> bool:
        """`function`'s driver broke a rule; `seen` says how, `where` has the place as JSON would have it.

        Returns whether the driver's function is to be ended.
        """
        key = name, function, subject
        self._counts[key] = self._counts.get(key, 0) + 1
        told = self._told.setdefault(function, set())
        if (name, subject) in told:
            return False
        told.add((name, subject))
        self._log.warning(
            "%s (%s: %s): %s: %s%s; the device %s [%s]",
            name,
            rule.level,
            rule.text,
            f"{function} {subject}".rstrip(),
            seen,
            f", expected {expected}" if expected else "",
            rule.does,
            rule.section,
            extra={"kind": name},
        )
        self._observer.event(
            function,
            RULE_BROKEN,
            {
                "rule": name,
                "level": rule.level,
                "section": rule.section,
                "subject": subject,
                "seen": seen,
                "expected": expected,
                "does": rule.does,
                **(where or {}),
            },
        )
        return self._fatal and rule.level in {MUST, MUST_NOT}

    def all(self) -> list[Breach]:
        """All breaches so far."""
        return [Breach(*key, count) for key, count in list(self._counts.items())]
