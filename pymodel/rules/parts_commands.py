"""The rules of virtio 1.4 for drivers of capabilities, resource objects and device parts."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Final

from pymodel.admin.parts_commands import brought_parts, metadata, named_object, selected_parts
from pymodel.admin.resources import LIMIT
from pymodel.admin.sent import Sent
from pymodel.errors import GuestError, NoSuchResource
from pymodel.migration import parts
from pymodel.rules.rule import MUST, MUST_NOT, SHOULD, SHOULD_NOT, CommandRule
from pymodel.spec import admin, context
from pymodel.spec import parts as spec

_ORDERED: Final = range(spec.DEV_FEATURES, spec.VQ_NOTIFY_CFG + 1)
"""Types of parts whose order is in the standard: that of their numbers."""

_OF_AN_OBJECT: Final = range(admin.RESOURCE_OBJ_QUERY, admin.DEV_PARTS_SET + 1)
"""Commands about an object that is there."""


def _limits(sent: Sent) -> list[int] | None:
    """What a DRIVER_CAP_SET asks for; None of any other command."""
    data = sent.call.fields(admin.DRIVER_CAP_SET_DATA)
    if sent.command is None or sent.call.opcode != admin.DRIVER_CAP_SET or data["id"] != admin.CAP_DEV_PARTS:
        return None
    return [int(data["get_limit"]), int(data["set_limit"])]


def _created(sent: Sent) -> tuple[int, int] | None:
    """The id that a CREATE asks for, and the limit of its operation; None of any other command."""
    if sent.member is None or sent.call.opcode != admin.RESOURCE_OBJ_CREATE:
        return None
    operation = int(sent.call.fields(admin.RESOURCE_OBJ_DATA)["operation"])
    try:
        return named_object(sent.call), sent.resources.limits[operation]
    except (NoSuchResource, IndexError):
        return None


def _without_capability(sent: Sent) -> str:
    return "no limit was set" if _created(sent) and not any(sent.resources.limits) else ""


def _beyond_device(sent: Sent) -> str:
    limits = _limits(sent)
    if limits is None:
        return ""
    if max(limits) > LIMIT:
        return f"limits of {limits[0]} and {limits[1]}"
    return f"{len(sent.resources)} objects are there" if len(sent.resources) else ""


def _beyond_own_limit(sent: Sent) -> str:
    created = _created(sent)
    if created is None or not any(sent.resources.limits):
        return ""
    id_, limit = created
    if id_ in sent.resources:
        return f"object {id_} is there"
    return f"object {id_} with a limit of {limit}" if id_ >= limit else ""


def _no_object(sent: Sent) -> str:
    if sent.member is None or sent.call.opcode not in _OF_AN_OBJECT:
        return ""
    try:
        sent.resources.find(named_object(sent.call), sent.member)
    except NoSuchResource as missing:
        return f"{missing} is not there"
    return ""


def _not_stopped(sent: Sent) -> str:
    if sent.member is None or sent.call.opcode != admin.DEV_PARTS_SET:
        return ""
    return "the member runs" if sent.member.mode == context.MODE_ACTIVE else ""


def _out_of_order(sent: Sent) -> str:
    if sent.member is None or sent.call.opcode != admin.DEV_PARTS_SET:
        return ""
    try:
        types = [part.type for part in parts.parse(brought_parts(sent.call)) if part.type in _ORDERED]
    except GuestError:
        return ""
    for ahead, behind in pairwise(types):
        if ahead > behind:
            return f"part {behind:#06x} behind {ahead:#06x}"
    return ""


def _needed(sent: Sent) -> int:
    """Bytes that the result of a METADATA_GET or PARTS_GET has; 0 of what is refused, or another command."""
    member = sent.member
    try:
        if member is not None and sent.call.opcode == admin.DEV_PARTS_METADATA_GET:
            return len(metadata(sent.resources, member, sent.call))
        if member is not None and sent.call.opcode == admin.DEV_PARTS_GET:
            return sum(part.size for part in selected_parts(sent.resources, member, sent.call))
    except GuestError:
        pass
    return 0


def _without_room(sent: Sent) -> str:
    needed, room = _needed(sent), max(sent.call.writable.length - admin.RESULT.itemsize, 0)
    return f"{needed} bytes, and room for {room}" if needed > room else ""


_CAPABILITIES: Final = "Device and driver capabilities"
_OBJECTS: Final = "Device resource objects"
_PARTS: Final = "Device parts"
_REFUSES: Final = "refuses the command and changes nothing"

PARTS_RULES: Final[Mapping[str, CommandRule]] = {
    "P-DRV-12": CommandRule(
        MUST,
        _CAPABILITIES,
        "set a capability before it uses objects of it",
        "RESOURCE_OBJ_CREATE without limits",
        _REFUSES,
        _without_capability,
    ),
    "P-DRV-13": CommandRule(
        MUST_NOT,
        _CAPABILITIES,
        "exceed the device's capability, or set one that has objects",
        "DRIVER_CAP_SET with more than DEVICE_CAP_GET said, or while objects are there",
        _REFUSES,
        _beyond_device,
    ),
    "P-DRV-14": CommandRule(
        MUST_NOT,
        _OBJECTS,
        "create an id twice, or beyond its own limit",
        "RESOURCE_OBJ_CREATE of such an id",
        _REFUSES,
        _beyond_own_limit,
    ),
    "P-DRV-15": CommandRule(
        SHOULD_NOT,
        _OBJECTS,
        "name an object that was destroyed",
        "a command about an object that is not there",
        _REFUSES,
        _no_object,
    ),
    "P-DRV-16": CommandRule(
        MUST,
        _PARTS,
        "stop a member before PARTS_SET",
        "PARTS_SET of a member that runs",
        _REFUSES,
        _not_stopped,
    ),
    "P-DRV-17": CommandRule(
        MUST,
        _PARTS,
        "set parts in the standard's order",
        "PARTS_SET with a part behind a later one",
        "takes them all the same",
        _out_of_order,
    ),
    "P-DRV-19": CommandRule(
        SHOULD,
        _PARTS,
        "have room for all that is got",
        "a result that is longer than its buffer",
        "cuts the result",
        _without_room,
    ),
}
