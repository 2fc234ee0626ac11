"""Group administration commands, the queues that carry them, capabilities, objects and device parts."""

from __future__ import annotations

from typing import Final

from tests.driver_statements.statement import (
    ITSELF,
    MUST,
    MUST_NOT,
    OTHERWISE,
    SHOULD,
    SHOULD_NOT,
    Sections,
    seen,
    unseen,
)

ADMIN: Final[Sections] = {
    "Device groups / Group administration commands": (
        seen(MUST, "have LIST_USE succeed first", "P-DRV-01"),
        seen(MUST_NOT, "send LIST_USE while a command is outstanding", "P-DRV-02"),
        unseen(SHOULD_NOT, "name commands in LIST_USE that it does not know", ITSELF),
        seen(MUST_NOT, "name commands that LIST_QUERY did not report", "P-DRV-03"),
        seen(MUST_NOT, "use commands that LIST_USE did not name", "P-DRV-01"),
        unseen(MUST, "take a reserved status as EINVAL", ITSELF),
        unseen(MUST, "take a reserved qualifier as INVALID_COMMAND", ITSELF),
        seen(MUST, "keep VF Enable while a command is outstanding", "P-DRV-06"),
    ),
    "Administration virtqueues": (
        seen(SHOULD, "have a readable part of the whole command", "P-DRV-08"),
        seen(MUST, "have parts of multiples of 8 bytes", "P-DRV-07"),
        seen(MUST, "have no part of a command empty (the standard has the device do that)", "P-DEV-22"),
        unseen(MUST_NOT, "count on the device to write the whole result", ITSELF),
        unseen(MUST, "take what was not written as 0", ITSELF),
        seen(MUST, "order commands across queues", "P-DRV-10"),
        unseen(SHOULD, "try again after EAGAIN", OTHERWISE),
    ),
    "Device groups / Group administration commands / Legacy Interface": (
        unseen(MUST, "have data in little-endian", ITSELF),
        seen(SHOULD, "access one field of the common configuration", "P-DRV-20"),
        seen(SHOULD, "access one field of device configuration", "P-DRV-20"),
        seen(SHOULD, "notify where NOTIFY_INFO says", "P-DRV-20"),
        unseen(MUST, "ignore what comes after the last entry", ITSELF),
        unseen(MUST, "check the other entries", ITSELF),
        unseen(MUST, "ignore entries that are wrong", ITSELF),
    ),
    "Device groups / Group administration commands / Device and driver capabilities": (
        seen(MUST, "set a capability before it uses objects of it", "P-DRV-12"),
        seen(MUST_NOT, "set more than the device has", "P-DRV-13"),
        seen(MUST_NOT, "take back what has objects", "P-DRV-13"),
    ),
    "Device groups / Group administration commands / Device resource objects": (
        seen(MUST_NOT, "create an id twice", "P-DRV-14"),
        seen(MUST_NOT, "create more objects than its limit", "P-DRV-14"),
        seen(SHOULD_NOT, "name an object that was destroyed", "P-DRV-15"),
        unseen(SHOULD_NOT, "destroy what another object depends on", OTHERWISE),
        unseen(SHOULD, "destroy what depends on nothing", OTHERWISE),
        seen(MUST_NOT, "set a capability that has objects", "P-DRV-13"),
        seen(MUST, "set a capability before it uses objects of it", "P-DRV-12"),
    ),
    "Device groups / Group administration commands / Device parts": (
        seen(MUST, "stop a member before PARTS_SET", "P-DRV-16"),
        seen(MUST, "set parts in their order", "P-DRV-17"),
        seen(SHOULD_NOT, "access device configuration of a stopped member", "P-DRV-18"),
        seen(SHOULD, "have room for all metadata", "P-DRV-19"),
        seen(SHOULD, "have room for all parts", "P-DRV-19"),
    ),
}
