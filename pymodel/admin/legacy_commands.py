"""The commands by which an owner stands in for the legacy driver of a member.

virtio 1.4, "Legacy Interfaces" of group administration commands (P-DEV-63 to P-DEV-65). An access is as long
as what there is to write, or the room for what is read.
"""

from __future__ import annotations

import numpy as np

from pymodel.admin.dispatch import Call, MemberCommand, Reply, Table
from pymodel.errors import InvalidOpcode
from pymodel.migration.legacy_access import LegacyAccess
from pymodel.migration.member import Member
from pymodel.spec import admin as spec

READS = frozenset({spec.LEGACY_COMMON_CFG_READ, spec.LEGACY_DEV_CFG_READ})
COMMON = frozenset({spec.LEGACY_COMMON_CFG_READ, spec.LEGACY_COMMON_CFG_WRITE})


def legacy_access(member: Member, call: Call) -> LegacyAccess:
    """What a command of `LEGACY_COMMANDS` may access. Raises `InvalidField` where it is not one field."""
    legacy = _legacy(member)
    length = _room(call) if call.opcode in READS else len(_written(call))
    (legacy.check_common if call.opcode in COMMON else legacy.check_device)(call.first, length)
    return legacy


def _legacy(member: Member) -> LegacyAccess:
    if member.legacy is None:
        raise InvalidOpcode(f"{member.name} has no legacy interface")
    return member.legacy


def _room(call: Call) -> int:
    return max(call.writable.length - spec.RESULT.itemsize, 0)


def _written(call: Call) -> bytes:
    return call.data[spec.LEGACY_ACCESS.itemsize :]


def _note(call: Call, data: bytes) -> str:
    return f"{data.hex(' ')} at {call.first}"


def _common_read(member: Member, call: Call) -> Reply:
    data = legacy_access(member, call).read_common(call.first, _room(call))
    return Reply(data, note=_note(call, data))


def _common_write(member: Member, call: Call) -> Reply:
    legacy_access(member, call).write_common(call.first, _written(call))
    return Reply(note=_note(call, _written(call)))


def _device_read(member: Member, call: Call) -> Reply:
    data = legacy_access(member, call).read_device(call.first, _room(call))
    return Reply(data, note=_note(call, data))


def _device_write(member: Member, call: Call) -> Reply:
    legacy_access(member, call).write_device(call.first, _written(call))
    return Reply(note=_note(call, _written(call)))


def _notify_info(member: Member, _: Call) -> Reply:
    """One address, of the member; the entries behind it are ends."""
    bar, offset = _legacy(member).notify_address
    entries = np.zeros(spec.LEGACY_NOTIFY_ENTRIES, spec.LEGACY_NOTIFY_ENTRY)
    entries[0] = spec.LEGACY_NOTIFY_MEMBER, bar, 0, offset
    return Reply(entries.tobytes(), note=f"BAR {bar}, {offset:#x}")


# What comes during a reset or a change of the power state is done after it: a driver that accesses a BAR then
# would have to wait, and a legacy one does not.
LEGACY_COMMANDS: Table = {
    spec.LEGACY_COMMON_CFG_WRITE: MemberCommand("LEGACY_COMMON_CFG_WRITE", _common_write, waits=True),
    spec.LEGACY_COMMON_CFG_READ: MemberCommand("LEGACY_COMMON_CFG_READ", _common_read, waits=True),
    spec.LEGACY_DEV_CFG_WRITE: MemberCommand("LEGACY_DEV_CFG_WRITE", _device_write, waits=True),
    spec.LEGACY_DEV_CFG_READ: MemberCommand("LEGACY_DEV_CFG_READ", _device_read, waits=True),
    spec.LEGACY_NOTIFY_INFO: MemberCommand("LEGACY_NOTIFY_INFO", _notify_info),
}
