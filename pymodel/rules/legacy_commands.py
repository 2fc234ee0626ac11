"""The rules of virtio 1.4 for drivers that stand in for a legacy driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.admin.legacy_commands import COMMON, READS, legacy_access
from pymodel.admin.sent import Sent
from pymodel.errors import GuestError
from pymodel.rules.rule import SHOULD, CommandRule
from pymodel.spec import admin, virtio_pci

ACCESSES: Final = READS | COMMON | {admin.LEGACY_DEV_CFG_WRITE}
"""Commands that are one access, and so as long as what is accessed."""


def _departs(sent: Sent) -> str:
    if sent.member is None or sent.call.opcode not in ACCESSES:
        return ""
    try:
        legacy_access(sent.member, sent.call)
    except GuestError as refused:
        return str(refused)
    assert virtio_pci.LEGACY_CFG.fields is not None
    notify = virtio_pci.LEGACY_CFG.fields["queue_notify"][1]
    if sent.call.opcode == admin.LEGACY_COMMON_CFG_WRITE and sent.call.first == notify:
        return "a notification by a command"
    return ""


LEGACY_RULES: Final[Mapping[str, CommandRule]] = {
    "P-DRV-20": CommandRule(
        SHOULD,
        "Group administration commands / Legacy Interface",
        "access one field of a legacy driver's, and notify where NOTIFY_INFO says",
        "an access that is not inside of one field, or a notification by a command",
        "refuses the access, or takes the notification",
        _departs,
    ),
}
