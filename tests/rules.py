"""What the draft and virtio 1.4 ask for, rule by rule, in our words: the rows of docs/requirements.md.

DEV is what the device owes, DRV what a driver owes; with P- a rule is virtio 1.4's ("Group administration
commands", "Administration Virtqueues"), without it the draft's. Each needs a test at the wire, or a reason
why there is none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Requirement(NamedTuple):
    """One rule: its level, what it asks for, and, where no test can show it, why."""

    level: str
    text: str
    untested: str = ""


DRAFT: Final[Mapping[str, Requirement]] = {
    "DEV-01": Requirement("MUST", "offer all of the context commands, or none"),
    "DEV-02": Requirement("MUST", "succeed in setting the mode that is in force"),
    "DEV-03": Requirement("MUST", "refuse a mode that is none of the three"),
    "DEV-04": Requirement("MUST", "keep the mode when a MODE_SET fails"),
    "DEV-05": Requirement("MUST", "refuse to leave Freeze while a written context is partial"),
    "DEV-06": Requirement("MUST", "answer READs after the whole context with two zeros"),
    "DEV-07": Requirement("MUST", "let the context be read in every mode"),
    "DEV-08": Requirement("MUST", "drop a partly read context on DISCARD"),
    "DEV-09": Requirement("MUST", "then answer SIZE_GET and READ as if nothing had been read"),
    "DEV-10": Requirement("MUST", "list START_MARKER, END_MARKER and DISCARD in FIELDS_QUERY"),
    "DEV-11": Requirement("MUST", "take a complete context more than once"),
    "DEV-12": Requirement("MUST", "refuse WRITE outside Freeze"),
    "DEV-13": Requirement("MUST NOT", "start a PCI transaction unless Active"),
    "DEV-14": Requirement("MUST", "end all outstanding PCI transactions before MODE_SET is answered"),
    "DEV-15": Requirement("MUST", "accept driver notifications in Stop"),
    "DEV-16": Requirement("MAY", "change context fields in Stop"),
    "DEV-17": Requirement("MUST", "answer PCI reads in Stop with valid data"),
    "DEV-18": Requirement("MUST", "have PCI's own interfaces work alike in every mode"),
    "DEV-19": Requirement("MUST NOT", "raise PME unless Active"),
    "DEV-20": Requirement("MUST NOT", "change a context field in Freeze"),
    "DEV-21": Requirement("MAY", "change context fields on the way from Stop to Freeze"),
    "DEV-22": Requirement("MUST NOT", "touch rings, or what they point to, unless Active"),
    "DEV-23": Requirement("MUST NOT", "send a configuration change notification unless Active"),
    "DEV-24": Requirement("MUST", "drop a partly written context on DISCARD"),
    "DEV-25": Requirement("MUST NOT", "let writes to virtio registers change anything in Freeze"),
    "DEV-26": Requirement(
        "MAY", "answer reads of virtio registers in Freeze with anything (we tell the truth)"
    ),
    "DEV-27": Requirement("MUST", "ignore writes to the PCI_CFG capability in Freeze"),
    "DEV-28": Requirement("MUST", "answer reads of the PCI_CFG capability alike in every mode"),
    "DEV-29": Requirement("MUST", "answer MODE_SET, WRITE and READ after an FLR that is under way"),
    "DEV-30": Requirement("MUST", "answer them after a device reset that is under way"),
    "DEV-31": Requirement("MUST", "answer them after a power state change that is under way"),
    "DEV-32": Requirement("MUST", "refuse a WRITE whose field has another length than the device's"),
    "DEV-33": Requirement("MUST", "begin a context that is read with START_MARKER"),
    "DEV-34": Requirement("MUST", "end a context that is read with END_MARKER"),
    "DEV-35": Requirement("MAY", "send START_MARKER and END_MARKER in different responses"),
    "DEV-36": Requirement("MAY", "send them in one response"),
    "DEV-37": Requirement("MUST", "apply the contexts of one WRITE in their order"),
    "DEV-38": Requirement("MUST", "apply the occurrences of one field in their order"),
    "DRV-01": Requirement("SHOULD", "read a context to its end"),
    "DRV-02": Requirement("MAY", "write a context before leaving Freeze"),
    "DRV-03": Requirement("MUST", "write complete contexts"),
    "DRV-04": Requirement("MUST NOT", "ask for Stop or Active with a partial context"),
    "DRV-05": Requirement("SHOULD NOT", "access device configuration in Stop or Freeze"),
    "DRV-06": Requirement("MUST NOT", "write the PCI_CFG capability in Freeze"),
    "DRV-07": Requirement("MUST", "begin a written context with START_MARKER"),
    "DRV-08": Requirement("MUST", "end a written context with END_MARKER"),
    "DRV-09": Requirement("MUST", "have END_MARKER end the last WRITE of a context"),
}

_ONE_ADMIN_QUEUE: Final = "the device has one admin queue"

VIRTIO: Final[Mapping[str, Requirement]] = {
    # Frame, groups and lists.
    "P-DEV-01": Requirement(
        "MUST", "check group, opcode and member in this order; the first bad one answers"
    ),
    "P-DEV-02": Requirement("MUST", "answer OK for what was done, and another status for what was not"),
    "P-DEV-03": Requirement("MUST", "have a qualifier of 0 beside OK"),
    "P-DEV-04": Requirement("MUST NOT", "have side effects, or an error state, behind EINVAL"),
    "P-DEV-05": Requirement("SHOULD NOT", "change state in a command that fails"),
    "P-DEV-06": Requirement("MUST NOT", "have side effects behind EAGAIN or ENOMEM"),
    "P-DEV-07": Requirement("MUST", "keep group types apart, lists included"),
    "P-DEV-08": Requirement(
        "MUST",
        "allow LIST_QUERY and LIST_USE alone after a reset, in each group"
        " (0x07-0x09 of Self follow the SR-IOV list too, for Linux)",
    ),
    "P-DEV-09": Requirement("MUST", "allow exactly the last list that LIST_USE was given"),
    "P-DEV-10": Requirement("MUST", "refuse what is not on the list with Q_INVALID_OPCODE"),
    "P-DEV-11": Requirement(
        "MAY", "refuse a LIST_USE that leaves out what its commands need", "no command needs another listed"
    ),
    "P-DEV-12": Requirement("MUST NOT", "take anything away from what LIST_QUERY answered"),
    "P-DEV-13": Requirement("MUST", "take a LIST_USE that was taken before, after a reset too"),
    "P-DEV-14": Requirement(
        "MUST",
        "refuse every command of the SR-IOV group while VF Enable is 0"
        " (but LIST_QUERY and LIST_USE, for Linux; not those with `--strict`)",
    ),
    "P-DEV-15": Requirement("MUST", "refuse a member that is none of 1 to NumVFs, whatever the command"),
    # The admin queue.
    "P-DEV-16": Requirement("MUST", "take what is missing of a command as 0, and ignore what is too much"),
    "P-DEV-17": Requirement("MUST", "cut the answer to the buffer, and tell the length that was written"),
    "P-DEV-18": Requirement("MUST NOT", "fail a command for the lengths of its buffers alone"),
    "P-DEV-19": Requirement("SHOULD", "fill the buffer as far as the answer goes, zeros included"),
    "P-DEV-20": Requirement(
        "MUST", "fill a multiple of 8 bytes (but for the parts of PARTS_GET), status and qualifier always"
    ),
    "P-DEV-21": Requirement("MUST", "carry out the commands of one queue in their order"),
    "P-DEV-22": Requirement("MUST", "have both parts of a command (a driver's duty, said of the device)"),
    # Capabilities.
    "P-DEV-23": Requirement("MUST", "offer all three capability commands, where there are capabilities"),
    "P-DEV-24": Requirement("MUST", "take every driver's limit up to the device's own"),
    "P-DEV-25": Requirement(
        "MAY", "refuse a higher one", "limits are bytes, and the device's are 255: there is none higher"
    ),
    "P-DEV-26": Requirement(
        "MUST",
        "refuse capability commands of other groups than Self"
        " (with `--strict`; SR-IOV's are taken otherwise, for Linux before 6.15)",
    ),
    "P-DEV-27": Requirement("SHOULD", "answer EBUSY where a capability is switched off that has objects"),
    "P-DEV-28": Requirement("SHOULD", "answer ENXIO for a capability that is not on the list"),
    "P-DEV-29": Requirement("MUST", "forget the driver's capabilities at a reset"),
    "P-DEV-30": Requirement("SHOULD", "take limits that the driver did not set as 0"),
    # Resource objects.
    "P-DEV-31": Requirement("SHOULD", "answer EEXIST to CREATE of an id in use"),
    "P-DEV-32": Requirement("SHOULD", "answer ENXIO to MODIFY, QUERY and DESTROY of an id that is not"),
    "P-DEV-33": Requirement("SHOULD", "answer ENOSPC to CREATE of what there is no room for"),
    "P-DEV-34": Requirement(
        "SHOULD",
        "answer EBUSY to MODIFY and DESTROY of what another object needs",
        "no object here needs another",
    ),
    "P-DEV-35": Requirement("MUST", "let an id that was destroyed be created again"),
    "P-DEV-36": Requirement("SHOULD", "take free ids in any order"),
    "P-DEV-37": Requirement("SHOULD", "have room for as many objects as the driver's capability says"),
    "P-DEV-38": Requirement("MUST NOT", "change an object in a MODIFY that fails"),
    "P-DEV-39": Requirement("MUST", "answer QUERY with what CREATE or the last MODIFY said"),
    "P-DEV-40": Requirement("MUST", "destroy all objects at a reset"),
    # Device parts.
    "P-DEV-41": Requirement("MUST", "offer all eight commands of device parts, or none"),
    "P-DEV-42": Requirement("MUST", "let parts be read, and set, more than once"),
    "P-DEV-43": Requirement("MUST", "send parts in the order of the standard's table"),
    "P-DEV-44": Requirement("SHOULD", "refuse PARTS_SET unless the member is stopped"),
    "P-DEV-45": Requirement("MUST", "refuse a part that has another length than the device's"),
    "P-DEV-46": Requirement("MUST NOT", "apply DEV_FEATURES; they are compared"),
    "P-DEV-47": Requirement("MAY", "ignore a part that is OPTIONAL"),
    "P-DEV-48": Requirement("SHOULD", "compare what is invariable, and not apply it"),
    "P-DEV-49": Requirement(
        "MUST NOT", "start a PCI transaction while stopped; those under way end ahead of the answer"
    ),
    "P-DEV-50": Requirement("MUST", "give back all buffers that were seen, before it is stopped"),
    "P-DEV-51": Requirement("MUST", "accept driver notifications while stopped (parts may change by them)"),
    "P-DEV-52": Requirement("MUST", "answer PCI reads while stopped with valid data"),
    "P-DEV-53": Requirement("MUST", "have PCI's own interfaces work alike, stopped or not, and raise no PME"),
    "P-DEV-54": Requirement("MUST NOT", "touch queues or notify the driver of anything while stopped"),
    "P-DEV-55": Requirement("MUST", "answer MODE_SET and PARTS_SET after an FLR that is under way"),
    "P-DEV-56": Requirement("MUST", "answer them after a device reset that is under way"),
    "P-DEV-57": Requirement("MUST", "answer them after a power state change that is under way"),
    "P-DEV-58": Requirement("MUST", "succeed in stopping what is stopped, and resuming what runs"),
    "P-DEV-59": Requirement("MUST", "set all parts to their defaults at a device reset and an FLR"),
    "P-DEV-60": Requirement("MAY", "leave out selected parts that there are not (we do)"),
    "P-DEV-61": Requirement(
        "MUST", "list and send DRV_FEATURES, PCI_COMMON_CFG and DEVICE_STATUS behind what they follow"
    ),
    "P-DEV-62": Requirement(
        "text",
        "ENOMEM for metadata without room; no effects of a SET or MODE_SET that fails;"
        " parts take effect at the resume, and change by the driver alone while stopped",
    ),
    # The legacy interface.
    "P-DEV-63": Requirement(
        "MUST", "offer all four legacy access commands or none, NOTIFY_INFO only with them"
    ),
    "P-DEV-64": Requirement(
        "MUST",
        "take one field of the legacy registers, as BAR 0 would, and refuse all else",
    ),
    "P-DEV-65": Requirement("MUST", "with NOTIFY_INFO: no BAR 0 of VFs, and addresses that notify"),
    # Drivers.
    "P-DRV-01": Requirement("MUST", "have LIST_USE succeed before other commands of its group"),
    "P-DRV-02": Requirement("MUST NOT", "send LIST_USE while a command is outstanding"),
    "P-DRV-03": Requirement("MUST NOT", "use a command that LIST_QUERY did not report"),
    "P-DRV-04": Requirement("MAY", "try a group with LIST_QUERY, and close both list commands"),
    "P-DRV-05": Requirement("MUST", "take unknown statuses as EINVAL, unknown qualifiers as INVALID_COMMAND"),
    "P-DRV-06": Requirement("MUST", "name members 1 to NumVFs, and keep VF Enable while one is outstanding"),
    "P-DRV-07": Requirement("MUST", "make both parts of a command a multiple of 8 bytes long"),
    "P-DRV-08": Requirement("SHOULD", "make the readable part as long as the command at least"),
    "P-DRV-09": Requirement("MUST", "take what lies beyond the used length as 0"),
    "P-DRV-10": Requirement("MUST", "order commands across admin queues", _ONE_ADMIN_QUEUE),
    "P-DRV-11": Requirement("SHOULD", "try again after EAGAIN"),
    "P-DRV-12": Requirement("MUST", "set a capability before it uses objects of it"),
    "P-DRV-13": Requirement(
        "MUST NOT", "set more than the device's limits, nor a capability that has objects"
    ),
    "P-DRV-14": Requirement("MUST NOT", "create an id twice, or more objects than its own limit"),
    "P-DRV-15": Requirement("SHOULD NOT", "name an object that was destroyed"),
    "P-DRV-16": Requirement("MUST", "stop a member before PARTS_SET"),
    "P-DRV-17": Requirement("MUST", "set parts in the order of the standard's table"),
    "P-DRV-18": Requirement("SHOULD NOT", "access device configuration of a member that is stopped"),
    "P-DRV-19": Requirement("SHOULD", "have room for all metadata and all parts"),
    "P-DRV-20": Requirement("SHOULD", "access one field at a time, and notify where NOTIFY_INFO says"),
}

REQUIREMENTS: Final[Mapping[str, Requirement]] = {**DRAFT, **VIRTIO}
