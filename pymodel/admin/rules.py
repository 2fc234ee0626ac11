"""What drivers must do, as far as the device can see it, and who did otherwise (`--check-driver`).

DRV IDs are rules of the draft, P-DRV IDs those of virtio 1.4's admin commands. Not here is what a device
cannot see (P-DRV-05, P-DRV-09) or never meets (P-DRV-11), and what only permits (DRV-02, P-DRV-04). Checking
changes nothing about what becomes of a command.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pymodel.admin.context_rules import CONTEXT_RULES
from pymodel.admin.dispatch import MemberCommand
from pymodel.admin.legacy_rules import ACCESSES, LEGACY_RULES
from pymodel.admin.parts_rules import PARTS_RULES
from pymodel.admin.rule import Rule, Sent
from pymodel.host import NOBODY, RULE_BROKEN, Observer
from pymodel.spec import admin
from pymodel.spec import context as spec

_LIST_COMMANDS: Final = (admin.LIST_QUERY, admin.LIST_USE)
_UNIT: Final = 8
"""Both parts of a command are a multiple of this long."""


def _not_announced(sent: Sent) -> str:
    if sent.call.opcode in _LIST_COMMANDS or sent.used >> sent.call.opcode & 1:
        return ""
    return f"opcode {sent.call.opcode:#x} without LIST_USE of group type {sent.call.group}"


def _while_outstanding(sent: Sent) -> str:
    return f"{sent.outstanding} commands outstanding" if _is_use(sent) and sent.outstanding else ""


def _not_offered(sent: Sent) -> str:
    extra = int.from_bytes(sent.call.data, "little") & ~sent.listed if _is_use(sent) else 0
    return f"opcode {extra.bit_length() - 1:#x} was not reported" if extra else ""


def _is_use(sent: Sent) -> bool:
    return sent.call.opcode == admin.LIST_USE


def _no_member(sent: Sent) -> str:
    if not isinstance(sent.command, MemberCommand) or sent.member is not None:
        return ""
    return f"member {sent.call.member_id}"


def _odd_length(sent: Sent) -> str:
    # The bytes of a context are as many as they are; the draft knows no padding for them. So are those of a
    # register.
    if sent.member is not None and sent.call.opcode in ACCESSES:
        return ""
    readable = 0 if sent.context == spec.CTX_WRITE else sent.call.readable.length
    writable = 0 if sent.context == spec.CTX_READ else sent.call.writable.length
    if readable % _UNIT or writable % _UNIT:
        return f"{sent.call.readable.length} bytes readable, {sent.call.writable.length} writable"
    return ""


def _short(sent: Sent) -> str:
    length = sent.call.readable.length
    return f"{length} bytes readable" if length < admin.COMMAND.itemsize else ""


def _unordered(sent: Sent) -> str:
    return "another admin queue holds a command for the same member" if sent.elsewhere else ""


RULES: Final[Mapping[str, Rule]] = {
    **CONTEXT_RULES,
    "P-DRV-01": Rule("MUST", "LIST_USE of a group before its other commands", _not_announced),
    "P-DRV-02": Rule("MUST NOT", "send LIST_USE while a command is outstanding", _while_outstanding),
    "P-DRV-03": Rule("MUST NOT", "use a command that LIST_QUERY did not report", _not_offered),
    "P-DRV-06": Rule(
        "MUST", "name members 1 to NumVFs; VF Enable stays while one is outstanding", _no_member
    ),
    "P-DRV-07": Rule("MUST", "both parts of a command are a multiple of 8 bytes long", _odd_length),
    "P-DRV-08": Rule("SHOULD", "the readable part holds the whole header", _short),
    "P-DRV-10": Rule("MUST", "order commands for one member across admin queues", _unordered),
    **PARTS_RULES,
    **LEGACY_RULES,
}


@dataclass(frozen=True, slots=True)
class Breach:
    """How often a rule was broken with the same command on the same function."""

    rule: str
    function: str
    command: str
    count: int


class Rules:
    """Counts breaches, and logs and tells the first of each rule, command and function.

    Calls about a function are made with its lock held; `breaches` may be called by anyone.
    """

    def __init__(self, observer: Observer = NOBODY, log: logging.Logger | None = None) -> None:
        self._observer = observer
        self._log = log or logging.getLogger("virtio.rules")
        self._counts: dict[tuple[str, str, str], int] = {}

    def check(self, sent: Sent) -> None:
        """Hold a command against all rules. The lock of its member is held."""
        function = sent.member.name if sent.member is not None else "pf"
        for name, rule in RULES.items():
            seen = rule.check(sent) if rule.check is not None else ""
            if seen:
                self.broken(name, function, sent.name, seen)

    def broken(self, rule: str, function: str, command: str, seen: str) -> None:
        """`rule` was broken with `command` on `function`; `seen` says how."""
        key = rule, function, command
        count = self._counts.get(key, 0)
        self._counts[key] = count + 1
        if count:
            return
        level, text = RULES[rule].level, RULES[rule].text
        self._log.warning(
            "%s (%s: %s): %s on %s: %s", rule, level, text, command, function, seen, extra={"kind": rule}
        )
        self._observer.event(
            function, RULE_BROKEN, {"rule": rule, "level": level, "command": command, "seen": seen}
        )

    def breaches(self) -> list[Breach]:
        """All breaches so far."""
        return [Breach(*key, count) for key, count in list(self._counts.items())]
