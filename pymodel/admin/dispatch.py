"""Which command a header names, and whether it is allowed: the checks in the standard's order, once.

virtio 1.4, "Group administration commands" (device normative): group, then opcode, then member, each with
its own qualifier (P-DEV-01).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from pymodel.admin.lists import Lists
from pymodel.errors import InvalidGroup, InvalidMember, InvalidOpcode
from pymodel.memory import Segments
from pymodel.migration.member import Member
from pymodel.spec import admin as spec


class Owner(Protocol):
    """The group owner (the PF), as the admin queue sees it."""

    @property
    def sriov(self) -> bool:
        """Whether the SR-IOV capability exists."""
        ...

    @property
    def vf_enabled(self) -> bool:
        """VF Enable."""
        ...

    @property
    def members(self) -> Mapping[int, Member]:
        """The members that exist now: 1 .. NumVFs."""
        ...


@dataclass(slots=True)
class Call:
    """One command as it was taken, before it is known to be good.

    The header and `data` are copies: the driver may change its buffer while the command waits.
    """

    opcode: int
    group: int
    member_id: int
    data: bytes
    readable: Segments
    writable: Segments

    @property
    def first(self) -> int:
        """The first byte of the command data, which is all that several commands have; 0 if it is missing."""
        return self.data[0] if self.data else 0

    def fields(self, layout: np.dtype[np.void]) -> Any:
        """The command data as `layout`; missing bytes are 0, surplus is ignored (P-DEV-16)."""
        return np.frombuffer(self.data[: layout.itemsize].ljust(layout.itemsize, b"\0"), layout)[0]


@dataclass(frozen=True, slots=True)
class Reply:
    """What a command that succeeded returns.

    `streamed` bytes were put behind the result by the command itself; `note` is for the log.
    """

    result: bytes = b""
    streamed: int = 0
    note: str = ""


# Carries out a call; None: it must wait, and is called again. Raises CommandError, nothing changed.
Handler = Callable[[Call], Reply | None]
MemberHandler = Callable[[Member, Call], Reply | None]


@dataclass(frozen=True, slots=True)
class GroupCommand:
    """A command about the group itself; it names no member."""

    name: str
    run: Handler


@dataclass(frozen=True, slots=True)
class MemberCommand:
    """A command about one member. With `waits` it is held while the member is in transition (A-23)."""

    name: str
    run: MemberHandler
    waits: bool = False


Command = GroupCommand | MemberCommand
Table = Mapping[int, Command]


@dataclass(frozen=True, slots=True)
class Dispatcher:
    """The command tables of all groups, and the checks before a command is run.

    `strict` reads virtio 1.4 to the letter; otherwise LIST_QUERY and LIST_USE of the SR-IOV group work
    before VF Enable, because Linux sends them only then (P-DEV-14).
    """

    owner: Owner
    lists: Lists
    tables: Mapping[int, Table]
    strict: bool = field(default=False)

    def find(self, call: Call) -> tuple[Command, Member | None]:
        """The command of `call` and its member. Raises `InvalidGroup`, `InvalidOpcode`, `InvalidMember`."""
        table = self.tables.get(call.group)
        if table is None or (call.group == spec.GROUP_SRIOV and not self._sriov_group(call.opcode)):
            raise InvalidGroup(f"group type {call.group}")
        command = table.get(call.opcode)
        if command is None or not self.lists.allows(call.group, call.opcode):
            raise InvalidOpcode(f"opcode {call.opcode:#x} of group type {call.group}")
        if isinstance(command, GroupCommand):
            return command, None
        member = self.owner.members.get(call.member_id)
        if member is None:
            raise InvalidMember(f"member {call.member_id}")
        return command, member

    def _sriov_group(self, opcode: int) -> bool:
        """Whether the SR-IOV group exists for this command now (P-DEV-14)."""
        if not self.owner.sriov:
            return False
        return self.owner.vf_enabled or (not self.strict and opcode in (spec.LIST_QUERY, spec.LIST_USE))
