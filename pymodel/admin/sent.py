"""A command as rules for drivers see it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from pymodel.admin.dispatch import Call, Command
from pymodel.admin.resources import Resources
from pymodel.admin.stream import Stream
from pymodel.migration.member import MODE_NAMES, Member
from pymodel.spec import context as spec


@dataclass
class Sent:
    """One command as it was sent, and what it met; nothing has been done about it yet.

    `context` is its number among the draft's commands, `resources` are the owner's. `listed` and `used` are
    the bits of LIST_QUERY and LIST_USE, `outstanding` counts commands that are held, `elsewhere` says that
    one of them is for the same member, on another queue.
    """

    call: Call
    command: Command | None
    member: Member | None
    context: int | None
    resources: Resources
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
