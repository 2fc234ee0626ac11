"""The rules of virtio 1.4 for drivers that stand in for a legacy driver."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.admin.legacy_commands import COMMON, READS, legacy_access
from pymodel.admin.rule import Rule, Sent
from pymodel.errors import GuestError
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


LEGACY_RULES: Final[Mapping[str, Rule]] = {
    "P-DRV-20": Rule(
        "SHOULD", "access one field of a legacy driver's, and notify where NOTIFY_INFO says", _departs
    ),
}
