"""The admin virtqueue of a physical function: takes commands, holds those that must wait, answers each.

virtio 1.4, "Group administration commands" and "Administration Virtqueues". One object serves all admin
queues of its function; what waits holds up its own queue only (P-DEV-21).
"""

from __future__ import annotations

import logging
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Final

from pymodel.admin.capabilities import capability_commands
from pymodel.admin.context_commands import context_commands
from pymodel.admin.dispatch import Call, Dispatcher, GroupCommand, MemberCommand, Owner, Reply, Table
from pymodel.admin.legacy_commands import LEGACY_COMMANDS
from pymodel.admin.lists import LONGEST_LIST, Lists
from pymodel.admin.parts_commands import parts_commands
from pymodel.admin.resources import Resources
from pymodel.admin.sent import Sent
from pymodel.errors import BrokenQueue, CommandError, MemoryFault, NoMemory
from pymodel.memory import Buffer
from pymodel.migration.member import Member
from pymodel.spec import admin as spec

# spec.COMMAND without its reserved bytes, and spec.RESULT.
_COMMAND = struct.Struct("<HH12xQ")
_RESULT = struct.Struct("<HH4x")

STATUS_NAMES: Final = {
    spec.STATUS_OK: "OK",
    spec.STATUS_ENXIO: "ENXIO",
    spec.STATUS_ENOMEM: "ENOMEM",
    spec.STATUS_EBUSY: "EBUSY",
    spec.STATUS_EEXIST: "EEXIST",
    spec.STATUS_EINVAL: "EINVAL",
    spec.STATUS_ENOSPC: "ENOSPC",
}
QUALIFIER_NAMES: Final = {
    spec.Q_OK: "Q_OK",
    spec.Q_INVALID_COMMAND: "Q_INVALID_COMMAND",
    spec.Q_INVALID_OPCODE: "Q_INVALID_OPCODE",
    spec.Q_INVALID_FIELD: "Q_INVALID_FIELD",
    spec.Q_INVALID_GROUP: "Q_INVALID_GROUP",
    spec.Q_INVALID_MEMBER: "Q_INVALID_MEMBER",
    spec.Q_NORESOURCE: "Q_NORESOURCE",
}


@dataclass(slots=True)
class _Held:
    """A command that waits, and whom for."""

    buffer: Buffer
    call: Call
    member: Member


class AdminQueue:
    """A `pymodel.memory.Consumer` for the admin queues of `owner`.

    `wake` has `service` called soon on the owner's thread; any thread may call it. `context_opcodes` is
    where the draft's commands begin, None without them; `legacy`: members have a legacy interface. All
    methods are called with the owner's lock held; a member's lock is taken within it.
    """

    def __init__(
        self,
        owner: Owner,
        wake: Callable[[], None],
        *,
        context_opcodes: int | None = 0x40,
        legacy: bool = False,
        strict: bool = False,
        log: logging.Logger | None = None,
    ) -> None:
        self._owner = owner
        self._base = context_opcodes
        self._wake = wake
        self._log = log or logging.getLogger("virtio.pf")
        self._held: dict[int, _Held] = {}
        lists: Table = {
            spec.LIST_QUERY: GroupCommand("LIST_QUERY", self._list_query),
            spec.LIST_USE: GroupCommand("LIST_USE", self._list_use),
        }
        self._resources = Resources()
        capabilities = capability_commands(self._resources)
        tables: dict[int, Table] = {
            spec.GROUP_SELF: {**lists, **capabilities},
            spec.GROUP_SRIOV: {
                **lists,
                **({} if strict else capabilities),
                **(LEGACY_COMMANDS if legacy else {}),
                **parts_commands(self._resources),
                **context_commands(context_opcodes),
            },
        }
        self._lists = Lists(tables, strict=strict)
        self._dispatcher = Dispatcher(owner, self._lists, tables, strict)

    # --- Consumer ------------------------------------------------------------------------------------

    def accepts(self, queue: int) -> bool:
        """Not while a command of `queue` is held: they are taken in order (P-DEV-21)."""
        return queue not in self._held

    def take(self, buffer: Buffer) -> None:
        """Carry out one command, or hold it.

        Raises `MemoryFault` where the driver's buffer is not mapped; nothing has changed and the buffer
        was not completed.
        """
        call = _call(buffer)
        if not buffer.writable.length:
            # No room for a status: nothing could tell the driver what became of it, so nothing does.
            self._log.debug("a command without room for its status: ignored")
            buffer.complete(0)
            return
        self._run(buffer, call)

    def look(self, buffer: Buffer) -> Sent:
        """What the command in a buffer meets that was taken and not carried out. Raises `MemoryFault`."""
        call = _call(buffer)
        command = self._dispatcher.tables.get(call.group, {}).get(call.opcode)
        is_member = isinstance(command, MemberCommand)
        member = self._owner.members.get(call.member_id) if is_member else None
        return Sent(
            call,
            command,
            member,
            context=call.opcode - self._base if is_member and self._base is not None else None,
            resources=self._resources,
            listed=self._lists.offered(call.group),
            used=self._lists.used(call.group),
            outstanding=self.outstanding,
            elsewhere=any(
                held.member is member for other, held in self._held.items() if other != buffer.queue
            ),
        )

    @property
    def outstanding(self) -> int:
        """Commands that are held."""
        return len(self._held)

    def fail(self, buffer: Buffer) -> int:
        """Answer EINVAL, and do nothing about the command: a fault that is asked for."""
        return _answer(buffer, spec.STATUS_EINVAL, spec.Q_INVALID_COMMAND, Reply())

    # --- the owner's side ----------------------------------------------------------------------------

    def service(self) -> None:
        """Try held commands again, on the owner's thread.

        Raises `MemoryFault` where the client unmapped the buffer of one meanwhile; that one stays held.
        """
        for held in list(self._held.values()):
            del self._held[held.buffer.queue]
            try:
                self._run(held.buffer, held.call)
            except MemoryFault:
                self._held[held.buffer.queue] = held
                raise

    def members_leave(self, leaving: Iterable[Member]) -> None:
        """VF Enable is being cleared, or NumVFs lowered: these are going."""
        for member in leaving:
            self._resources.member_leaves(member)

    def drop(self, queue: int) -> None:
        """Reset of one admin queue: its held command is forgotten, never completed."""
        held = self._held.pop(queue, None)
        if held is not None:
            _give_up(held.member)

    def reset(self) -> None:
        """Reset of the owner: as `drop` for every queue; the lists start anew, members stay (A-29)."""
        for queue in list(self._held):
            self.drop(queue)
        self._lists.reset()
        self._resources.reset()
        for member in self._owner.members.values():
            with member.lock:
                member.owner_reset()

    # --- inside --------------------------------------------------------------------------------------

    def _run(self, buffer: Buffer, call: Call) -> None:
        # Looked up ahead of any effect: a fault must find nothing changed. The client cannot unmap
        # memory before this returns.
        buffer.writable.probe(write=True)
        name, subject = f"opcode {call.opcode:#x}", f"group {call.group}"
        member: Member | None = None
        try:
            command, member = self._dispatcher.find(call)
            name = command.name
            if isinstance(command, GroupCommand):
                reply = command.run(call)
            else:
                assert member is not None
                subject = member.name
                reply = self._run_on(member, command, buffer, call)
            if reply is None:
                self._log.debug("%s %s: waits", name, subject)
                return
        except (CommandError, MemoryError) as raised:
            error = raised if isinstance(raised, CommandError) else NoMemory("no memory for it")
            self._log.debug(
                "%s %s: %s, %s (%s)",
                name,
                subject,
                STATUS_NAMES.get(error.status, error.status),
                QUALIFIER_NAMES.get(error.qualifier, error.qualifier),
                error,
            )
            buffer.complete(_answer(buffer, error.status, error.qualifier, Reply()))
            return
        except BrokenQueue:
            raise
        except Exception:  # noqa: BLE001 - a mistake of ours, and drivers wait for an answer without end
            self._log.exception("%s %s: the server made a mistake, EINVAL is answered", name, subject)
            buffer.complete(_answer(buffer, spec.STATUS_EINVAL, spec.Q_INVALID_COMMAND, Reply()))
            if member is not None:
                _give_up(member)
            return
        self._log.debug("%s %s: OK%s", name, subject, f", {reply.note}" if reply.note else "")
        buffer.complete(_answer(buffer, spec.STATUS_OK, spec.Q_OK, reply))

    def _run_on(self, member: Member, command: MemberCommand, buffer: Buffer, call: Call) -> Reply | None:
        """Run a member's command under its lock; None after it was put aside."""
        with member.lock:
            reply = None if command.waits and member.in_transition else command.run(member, call)
            if reply is None:
                # Under the lock, so that `settled` cannot fall between the look and the wait.
                member.when_settled(self._wake)
                self._held[buffer.queue] = _Held(buffer, call, member)
        return reply

    def _list_query(self, call: Call) -> Reply:
        words = self._lists.query(call.group)
        return Reply(words, note=f"{int.from_bytes(words, 'little'):#x}")

    def _list_use(self, call: Call) -> Reply:
        self._lists.use(call.group, call.data)
        return Reply(note=f"{int.from_bytes(call.data[:LONGEST_LIST], 'little'):#x}")


def _call(buffer: Buffer) -> Call:
    head = buffer.readable.read(0, spec.COMMAND.itemsize + LONGEST_LIST)
    size = spec.COMMAND.itemsize
    opcode, group, member_id = _COMMAND.unpack(head[:size].ljust(size, b"\0"))
    return Call(opcode, group, member_id, head[size:], buffer.readable, buffer.writable)


def _give_up(member: Member) -> None:
    """Have a member forget what a command that is not answered in the end had begun."""
    with member.lock:
        member.abandon_stop()
        member.abandon_write()


def _answer(buffer: Buffer, status: int, qualifier: int, reply: Reply) -> int:
    """Write status and result, cut to the buffer (P-DEV-17, P-DEV-20). Returns the used length."""
    padded = reply.result.ljust(-(-len(reply.result) // 8) * 8, b"\0")
    return buffer.writable.put(0, _RESULT.pack(status, qualifier) + padded) + reply.streamed
