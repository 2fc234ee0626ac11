"""What a driver, a client or saved state can do wrong, each with its answer on the wire.

    GuestError
    ├── BrokenQueue          a ring or chain that breaks the rules: DEVICE_NEEDS_RESET
    │   └── MemoryFault      an address that no mapped memory backs: the same
    └── CommandError         an admin command that is refused: its status and qualifier
        ├── InvalidCommand   EINVAL, Q_INVALID_COMMAND: right command, wrong state
        ├── InvalidOpcode    EINVAL, Q_INVALID_OPCODE
        ├── InvalidField     EINVAL, Q_INVALID_FIELD: bad content
        ├── InvalidGroup     EINVAL, Q_INVALID_GROUP
        ├── InvalidMember    EINVAL, Q_INVALID_MEMBER
        ├── NoSuchResource   ENXIO: a capability or resource object that is not there
        ├── AlreadyExists    EEXIST: a resource object that is there
        ├── ResourceBusy     EBUSY: a capability that its resource objects still need
        ├── NoSpace          ENOSPC: no room for another resource object
        └── NoMemory         ENOMEM, Q_NORESOURCE: nothing has changed, it can be tried again

Any other exception that reaches the edge is a bug of ours.
"""

from __future__ import annotations

from typing import ClassVar

from pymodel.spec import admin


class GuestError(Exception):
    """A mistake of the other side. It is answered, never raised out of the server."""


class BrokenQueue(GuestError):
    """A virtqueue that breaks the rules; the function sets DEVICE_NEEDS_RESET and stops using its queues.

    `reason` is its number in `pymodel.queue.broken`, where it has one.
    """

    reason = -1


class MemoryFault(BrokenQueue):
    """An access to guest memory that is not mapped, or not mapped for writing."""


class CommandError(GuestError):
    """An admin command that is refused and has changed nothing (P-DEV-04)."""

    status: ClassVar[int] = admin.STATUS_EINVAL
    qualifier: ClassVar[int] = admin.Q_INVALID_COMMAND


class InvalidCommand(CommandError):
    """The right command in the wrong state (A-26)."""


class InvalidOpcode(CommandError):
    """A command that is not in the group's list (P-DEV-10)."""

    qualifier = admin.Q_INVALID_OPCODE


class InvalidField(CommandError):
    """Command data that does not make sense (A-26)."""

    qualifier = admin.Q_INVALID_FIELD


class InvalidGroup(CommandError):
    """A group type that does not exist now (P-DEV-14)."""

    qualifier = admin.Q_INVALID_GROUP


class InvalidMember(CommandError):
    """A member id outside the group (P-DEV-15)."""

    qualifier = admin.Q_INVALID_MEMBER


class NoSuchResource(CommandError):
    """A capability that CAP_ID_LIST_QUERY does not name, or a resource object that is not there (P-DEV-28,
    P-DEV-32).
    """

    status = admin.STATUS_ENXIO


class AlreadyExists(CommandError):
    """The id of a resource object that is there (P-DEV-31)."""

    status = admin.STATUS_EEXIST


class ResourceBusy(CommandError):
    """A capability that is taken away from the resource objects that there are (P-DEV-27)."""

    status = admin.STATUS_EBUSY


class NoSpace(CommandError):
    """A resource object beyond the driver's limit (P-DEV-33)."""

    status = admin.STATUS_ENOSPC


class NoMemory(CommandError):
    """The server has no memory for a command (P-DEV-06)."""

    status = admin.STATUS_ENOMEM
    qualifier = admin.Q_NORESOURCE
