"""The rules of virtio 1.4 for all admin commands, and those that are about what goes on beside them.

DRV IDs are rules of the draft, P-DRV and P-DEV IDs those of virtio 1.4. Not here is what a device cannot see
(P-DRV-05, P-DRV-09) or never meets (P-DRV-11), and what only permits (DRV-02, P-DRV-04).
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import ClassVar, Final

from pymodel.admin.dispatch import MemberCommand
from pymodel.admin.sent import Sent
from pymodel.memory import Buffer
from pymodel.migration.member import MODE_NAMES, Dialect, Member
from pymodel.pci.function import Function
from pymodel.pci.physical_function import PhysicalFunction
from pymodel.rules.breaches import Breaches
from pymodel.rules.context_commands import CONTEXT_RULES
from pymodel.rules.legacy_commands import ACCESSES, LEGACY_RULES
from pymodel.rules.parts_commands import PARTS_RULES
from pymodel.rules.rule import MUST, MUST_NOT, SHOULD, SHOULD_NOT, CommandRule, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import admin
from pymodel.spec import context as spec
from pymodel.watch.access import Access

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


def _half(sent: Sent) -> str:
    lengths = sent.call.readable.length, sent.call.writable.length
    return "" if all(lengths) else f"{lengths[0]} bytes readable, {lengths[1]} writable"


def _unordered(sent: Sent) -> str:
    return "another admin queue holds a command for the same member" if sent.elsewhere else ""


_GROUP: Final = "Group administration commands"
_QUEUE: Final = "Administration Virtqueues"
_REFUSES: Final = "refuses the command and changes nothing"
_FOLLOWS: Final = "does what it is asked for"

COMMAND_RULES: Final[Mapping[str, CommandRule]] = {
    "P-DRV-01": CommandRule(
        MUST,
        _GROUP,
        "have LIST_USE succeed before other commands of its group",
        "an opcode that no LIST_USE named",
        "takes it all the same where LIST_QUERY reports it",
        _not_announced,
    ),
    "P-DRV-02": CommandRule(
        MUST_NOT,
        _GROUP,
        "send LIST_USE while a command is outstanding",
        "LIST_USE while a command is held",
        _FOLLOWS,
        _while_outstanding,
    ),
    "P-DRV-03": CommandRule(
        MUST_NOT,
        _GROUP,
        "use a command that LIST_QUERY did not report",
        "LIST_USE with such a bit",
        _REFUSES,
        _not_offered,
    ),
    "P-DRV-06": CommandRule(
        MUST,
        _GROUP,
        "name members 1 to NumVFs, and keep VF Enable while a command is outstanding",
        "another member, or fewer VFs while a command is held",
        "refuses the command, or ends it",
        _no_member,
    ),
    "P-DRV-07": CommandRule(
        MUST,
        _QUEUE,
        "make both parts of a command a multiple of 8 bytes long",
        "a part of another length",
        _FOLLOWS,
        _odd_length,
    ),
    "P-DRV-08": CommandRule(
        SHOULD,
        _QUEUE,
        "make the readable part as long as the command at least",
        "less than the header",
        "takes what is missing as 0",
        _short,
    ),
    "P-DEV-22": CommandRule(
        MUST,
        _QUEUE,
        "have both parts of a command (which the standard asks of devices)",
        "a command without a part",
        "takes what is missing as 0, or ignores a command that has no room for its status",
        _half,
    ),
    "P-DRV-10": CommandRule(
        MUST,
        _QUEUE,
        "order commands for one member across admin queues",
        "a command while another queue's for the same member is held",
        _FOLLOWS,
        _unordered,
    ),
    **CONTEXT_RULES,
    **PARTS_RULES,
    **LEGACY_RULES,
}


def hold(sent: Sent, breaches: Breaches) -> str:
    """Hold one command, which has had no effect, against all rules for commands.

    Returns the rule that ends the owner, if there is one.
    """
    fatal = ""
    with sent.member.lock if sent.member is not None else nullcontext():
        function = sent.member.name if sent.member is not None else "pf"
        for name, rule in COMMAND_RULES.items():
            seen = rule.check(sent)
            where = {"command": sent.name}
            if seen and breaches.add(name, rule, function, sent.name, seen, where=where):
                fatal = fatal or name
    return fatal


class Commands(Topic):
    """What comes through the PF's admin queue, and what it forbids to the member's own driver."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        **COMMAND_RULES,
        "DRV-05": Rule(
            SHOULD_NOT,
            "the draft of 2023",
            "access device configuration in stop or freeze",
            "such an access",
            "answers reads; takes writes in stop, not in freeze",
        ),
        "DRV-06": Rule(
            MUST_NOT,
            "the draft of 2023",
            "write the PCI_CFG capability in freeze",
            "such a write",
            "ignores the write",
        ),
        "P-DRV-18": Rule(
            SHOULD_NOT,
            "Device parts",
            "access device configuration of a member that is stopped",
            "such an access",
            "answers reads; takes writes",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        self._owner = function if isinstance(function, PhysicalFunction) else None
        self._enabled = 0

    # -- commands --------------------------------------------------------------------------------------

    def taken(self, buffer: Buffer) -> None:
        """Hold a command against all rules for commands. It has had no effect."""
        if self._owner is None or buffer.queue < self.transport.admin_index:
            return
        sent = self._owner.admin.look(buffer)
        fatal = hold(sent, self._breaches)
        if fatal:
            self.end(fatal)
        if sent.member is not None and sent.call.opcode in _LEGACY_CONFIG:
            with sent.member.lock:
                self._look_at_configuration(sent.member, _LEGACY_CONFIG[sent.call.opcode])

    # -- what is outstanding -----------------------------------------------------------------------------

    def writing_config(self, access: Access) -> None:
        """The PCI_CFG capability, or VF Enable."""
        if self.function.frozen and any(piece.name.startswith("pci_cfg.") for piece in access.pieces):
            self.tell("DRV-06", f"{access.describe()} in freeze", subject="a write to the PCI_CFG capability")
        if self._owner is not None:
            self._enabled = len(self._owner.vfs) if self._owner.admin.outstanding else 0

    def wrote_config(self, access: Access) -> None:
        """Whether VFs went while a command was held."""
        if self._owner is not None and len(self._owner.vfs) < self._enabled:
            self.tell("P-DRV-06", "cleared while a command is outstanding", subject="VF Enable")

    # -- device configuration ------------------------------------------------------------------------------

    def reads_device(self, access: Access) -> None:
        """A member that is not active is not to be looked at."""
        self._look_at_configuration(self.function.member, "read")

    def writing_device(self, access: Access) -> None:
        """Nor to be written."""
        self._look_at_configuration(self.function.member, "write")

    def _look_at_configuration(self, member: Member | None, kind: str) -> None:
        if member is None or member.mode == spec.MODE_ACTIVE:
            return
        rule = "P-DRV-18" if member.dialect is Dialect.PARTS else "DRV-05"
        what = f"a {kind} of device configuration"
        seen = f"in {MODE_NAMES[member.mode]}"
        self._breaches.add(rule, self.RULES[rule], member.name, what, seen)


_LEGACY_CONFIG: Final[Mapping[int, str]] = {
    admin.LEGACY_DEV_CFG_READ: "read",
    admin.LEGACY_DEV_CFG_WRITE: "write",
}
