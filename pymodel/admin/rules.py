"""What drivers must do, as far as the device can see it, and who did otherwise (`--check-driver`).

DRV IDs are rules of the draft, P-DRV IDs those of virtio 1.4's admin commands. Not here is what a device
cannot see (P-DRV-05, P-DRV-09) or never meets (P-DRV-11 to P-DRV-17), and what only permits (DRV-02,
P-DRV-04). Checking changes nothing about what becomes of a command.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from typing import Final

import numpy as np

from pymodel.admin.dispatch import Call, Command, MemberCommand
from pymodel.errors import MemoryFault
from pymodel.host import NOBODY, RULE_BROKEN, Observer
from pymodel.memory import Bytes
from pymodel.migration.member import MODE_NAMES, Member
from pymodel.spec import admin
from pymodel.spec import context as spec

_LIST_COMMANDS: Final = (admin.LIST_QUERY, admin.LIST_USE)
_UNIT: Final = 8
"""Both parts of a command are a multiple of this long."""


@dataclass
class Sent:
    """One command as it was sent, and what it met; nothing has been done about it yet.

    `context` is its number among the draft's commands, `listed` and `used` are the bits of LIST_QUERY and
    LIST_USE, `outstanding` counts commands that are held, `elsewhere` says that one of them is for the same
    member, on another queue.
    """

    call: Call
    command: Command | None
    member: Member | None
    context: int | None
    listed: int
    used: int
    outstanding: int
    elsewhere: bool

    @property
    def name(self) -> str:
        """The command's name."""
        return self.command.name if self.command is not None else "unknown command"

    @property
    def mode(self) -> int | None:
        """The mode that a MODE_SET asks for and that is not the present one."""
        if self.member is None or self.context != spec.MODE_SET:
            return None
        mode = int(self.call.fields(spec.MODE)["mode"])
        return mode if mode in MODE_NAMES and mode != self.member.mode else None

    @cached_property
    def stream(self) -> Stream:
        """What a CTX_WRITE does to the written context; nothing in any other command."""
        stream = Stream()
        if self.member is not None and self.context == spec.CTX_WRITE:
            stream.walk(self.member, self.call)
        return stream


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


# What was seen of a breach, or nothing.
Check = Callable[[Sent], str]


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
    # The bytes of a context are as many as they are; the draft knows no padding for them.
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


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule, in our words. Those without a check are noticed where they are broken, not at a command."""

    level: str
    text: str
    check: Check | None = None


RULES: Final = {
    "DRV-01": Rule("SHOULD", "read a context to its end", _partly_read),
    "DRV-03": Rule("MUST", "write complete contexts", _partly_written),
    "DRV-04": Rule("MUST NOT", "ask for stop or active with a partial context", _leaves_partly_written),
    "DRV-05": Rule("SHOULD NOT", "access device configuration in stop or freeze"),
    "DRV-06": Rule("MUST NOT", "write the PCI_CFG capability in freeze"),
    "DRV-07": Rule("MUST", "begin a context with START_MARKER", _no_start_marker),
    "DRV-08": Rule("MUST", "end a context with END_MARKER", _no_end_marker),
    "DRV-09": Rule("MUST", "END_MARKER is the last field of the last WRITE", _after_end_marker),
    "P-DRV-01": Rule("MUST", "LIST_USE of a group before its other commands", _not_announced),
    "P-DRV-02": Rule("MUST NOT", "send LIST_USE while a command is outstanding", _while_outstanding),
    "P-DRV-03": Rule("MUST NOT", "use a command that LIST_QUERY did not report", _not_offered),
    "P-DRV-06": Rule(
        "MUST", "name members 1 to NumVFs; VF Enable stays while one is outstanding", _no_member
    ),
    "P-DRV-07": Rule("MUST", "both parts of a command are a multiple of 8 bytes long", _odd_length),
    "P-DRV-08": Rule("SHOULD", "the readable part holds the whole header", _short),
    "P-DRV-10": Rule("MUST", "order commands for one member across admin queues", _unordered),
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
