"""What commands are called, and what their refusals mean, in words."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.spec import admin, context
from vfu_client.owner.admin import AdminError

# Counted from the base of the context commands.
CONTEXT_NAMES: Final[Mapping[int, str]] = {
    context.MODE_GET: "DEV_MODE_GET",
    context.MODE_SET: "DEV_MODE_SET",
    context.CTX_SIZE_GET: "DEV_CTX_SIZE_GET",
    context.CTX_READ: "DEV_CTX_READ",
    context.CTX_WRITE: "DEV_CTX_WRITE",
    context.CTX_FIELDS_QUERY: "DEV_CTX_FIELDS_QUERY",
    context.CTX_DISCARD: "DEV_CTX_DISCARD",
    context.WRITE_RECORD_START: "WRITE_RECORD_START",
    context.WRITE_RECORD_READ: "WRITE_RECORD_READ",
    context.WRITE_RECORD_STOP: "WRITE_RECORD_STOP",
}
STANDARD_NAMES: Final[Mapping[int, str]] = {
    admin.LIST_QUERY: "LIST_QUERY",
    admin.LIST_USE: "LIST_USE",
    admin.LEGACY_COMMON_CFG_WRITE: "LEGACY_COMMON_CFG_WRITE",
    admin.LEGACY_COMMON_CFG_READ: "LEGACY_COMMON_CFG_READ",
    admin.LEGACY_DEV_CFG_WRITE: "LEGACY_DEV_CFG_WRITE",
    admin.LEGACY_DEV_CFG_READ: "LEGACY_DEV_CFG_READ",
    admin.LEGACY_NOTIFY_INFO: "LEGACY_NOTIFY_INFO",
    admin.CAP_ID_LIST_QUERY: "CAP_ID_LIST_QUERY",
    admin.DEVICE_CAP_GET: "DEVICE_CAP_GET",
    admin.DRIVER_CAP_SET: "DRIVER_CAP_SET",
    admin.RESOURCE_OBJ_CREATE: "RESOURCE_OBJ_CREATE",
    admin.RESOURCE_OBJ_QUERY: "RESOURCE_OBJ_QUERY",
    admin.RESOURCE_OBJ_MODIFY: "RESOURCE_OBJ_MODIFY",
    admin.RESOURCE_OBJ_DESTROY: "RESOURCE_OBJ_DESTROY",
    admin.DEV_PARTS_METADATA_GET: "DEV_PARTS_METADATA_GET",
    admin.DEV_PARTS_GET: "DEV_PARTS_GET",
    admin.DEV_PARTS_SET: "DEV_PARTS_SET",
    admin.DEV_MODE_SET: "DEV_MODE_SET",
}
_BUSY: Final = "the device is busy: try again"
_BY_QUALIFIER: Final[Mapping[int, str]] = {
    admin.Q_INVALID_OPCODE: "the device does not have this command there (`vfu-owner --pf DIR/pf.sock"
    " commands` lists what it has): the server's --context-opcodes must equal the one given here",
    admin.Q_INVALID_GROUP: "the PF has no VFs now: VF Enable is off",
    admin.Q_INVALID_MEMBER: "there is no such VF: VFs are numbered from 1",
}
_IN_HANDS_OF_CONTEXTS: Final = (
    "the context commands have this VF: `context discard VF` and `mode VF active` end that"
)
_IN_MEMORY: Final = (
    "its disk is in memory, and what is on a disk is no part of a device: give the server a file, or use the"
    " context commands"
)
_BY_STANDARD_COMMAND: Final[Mapping[tuple[int, int], str]] = {
    (admin.RESOURCE_OBJ_CREATE, admin.Q_INVALID_COMMAND): _IN_HANDS_OF_CONTEXTS,
    (admin.DEV_MODE_SET, admin.Q_INVALID_COMMAND): _IN_HANDS_OF_CONTEXTS,
    (admin.DEV_PARTS_METADATA_GET, admin.Q_INVALID_COMMAND): _IN_MEMORY,
    (admin.DEV_PARTS_GET, admin.Q_INVALID_COMMAND): _IN_MEMORY,
    (admin.DEV_PARTS_SET, admin.Q_INVALID_COMMAND): f"the VF was reset, and runs; or {_IN_MEMORY}",
    (admin.DEV_PARTS_SET, admin.Q_INVALID_FIELD): (
        "the device does not take these parts: they come from another kind of device or one with other"
        " features, or are damaged (`show FILE` decodes them)"
    ),
}
_IN_HANDS_OF_PARTS: Final = "device parts have this VF: `parts resume VF` ends that"
_BY_CONTEXT_COMMAND: Final[Mapping[tuple[int, int], str]] = {
    (context.MODE_SET, admin.Q_INVALID_COMMAND): (
        "the VF has a partly written context: write the rest of it, or discard it; or device parts have it:"
        " `parts resume VF` ends that"
    ),
    (context.CTX_READ, admin.Q_INVALID_COMMAND): _IN_HANDS_OF_PARTS,
    (context.CTX_DISCARD, admin.Q_INVALID_COMMAND): _IN_HANDS_OF_PARTS,
    (context.CTX_WRITE, admin.Q_INVALID_COMMAND): (
        "a context can only be written in Freeze: set the mode to freeze first"
    ),
    (context.CTX_WRITE, admin.Q_INVALID_FIELD): (
        "the device does not take this context: it comes from another kind of device, or is damaged (`show"
        " FILE` decodes it, `fields VF` says what the device takes)"
    ),
}


def command_name(opcode: int, base: int) -> str | None:
    """The name of a command: the standard's, or one of the context commands, which begin at `base`."""
    return STANDARD_NAMES.get(opcode) or CONTEXT_NAMES.get(opcode - base)


def explain(error: AdminError, base: int) -> str:
    """An admin command's refusal in words, with what to do next."""
    name = command_name(error.opcode, base) or f"command {error.opcode:#x}"
    refusal = f"{name} refused: {error.status_name}, {error.qualifier_name}"
    advice = (
        _BY_STANDARD_COMMAND.get((error.opcode, error.qualifier))
        or _BY_CONTEXT_COMMAND.get((error.opcode - base, error.qualifier))
        or _BY_QUALIFIER.get(error.qualifier)
        or (_BUSY if error.status == admin.STATUS_EAGAIN else "")
    )
    return f"{refusal} ({advice})" if advice else refusal
