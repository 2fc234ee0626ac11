"""Status, features, configuration, reset, initialization: what the standard asks of any driver."""

from __future__ import annotations

from typing import Final

from tests.driver_statements.statement import (
    BARRIER,
    ITSELF,
    MUST,
    MUST_NOT,
    NOT_OFFERED,
    OTHERWISE,
    SHOULD,
    SHOULD_NOT,
    TOLERATES,
    Sections,
    seen,
    unseen,
)

BASIC: Final[Sections] = {
    "Device Status Field": (
        seen(MUST, "show its steps in device_status", "INIT-02", "INIT-03", "INIT-04"),
        seen(MUST_NOT, "clear a bit", "STAT-01"),
        seen(MUST, "reset the device after FAILED", "STAT-02"),
        seen(SHOULD_NOT, "count on a device that needs a reset", "STAT-03"),
    ),
    "Feature Bits": (
        seen(MUST_NOT, "accept what is not offered", "FEAT-01"),
        seen(MUST_NOT, "accept a feature without those that it requires", "FEAT-02"),
        seen(MUST, "look at what is offered", "FEAT-08"),
        unseen(MUST, "ignore bits that mean nothing here", TOLERATES),
        seen(MUST_NOT, "accept bits that mean nothing here", "FEAT-01"),
        unseen(SHOULD, "do without what is not offered", ITSELF),
        unseen(MUST, "else set FAILED and stop", ITSELF),
        unseen(MUST_NOT, "fail over an offer that it does not know", TOLERATES),
    ),
    "Device Reset": (seen(SHOULD, "take a reset for complete when device_status reads 0", "RESET-01"),),
    "Device Configuration Space": (
        unseen(
            MUST_NOT, "count on reads of more than 32 bits, or of several fields, to be of one time", ITSELF
        ),
        seen(SHOULD, "read between two equal generations", "CONF-01"),
        seen(MUST, "look for the feature of an optional field", "CONF-02"),
        unseen(MUST_NOT, "limit the size of structures", TOLERATES),
        unseen(SHOULD, "check no more than that they are large enough", ITSELF),
    ),
    "Virtqueues / Virtqueue Reset / Virtqueue Reset": (seen(MUST, "see that the queue was reset", "CFG-08"),),
    "Virtqueues / Virtqueue Reset / Virtqueue Re-enable": (
        seen(MUST, "configure the queue as at first", "CFG-05"),
    ),
    "Device Initialization": (
        seen(
            MUST,
            "go the steps in their order",
            *("INIT-01", "INIT-02", "INIT-03", "INIT-04", "INIT-05", "INIT-08", "INIT-11"),
        ),
        seen(MUST_NOT, "write device configuration while it chooses features", "INIT-06"),
        seen(MUST_NOT, "accept more after FEATURES_OK", "INIT-07"),
        unseen(SHOULD, "set FAILED when it gives up", ITSELF),
        seen(MUST_NOT, "go on after a step that failed", "INIT-09"),
        seen(MUST_NOT, "notify before DRIVER_OK", "INIT-10"),
    ),
    "Device Cleanup": (
        seen(MUST_NOT, "alter what the device has", "RING-06", "RING-07"),
        seen(MUST, "reset the device before it takes buffers back", "RING-06"),
    ),
    "Device Suspend": (
        seen(SHOULD_NOT, "set SUSPEND unless DRIVER_OK is set and SUSPEND negotiated", "STAT-04"),
        unseen(MUST, "see that the device is suspended", NOT_OFFERED),
        unseen(MUST_NOT, "make buffers available then", NOT_OFFERED),
        unseen(MUST_NOT, "notify then", NOT_OFFERED),
        unseen(MUST_NOT, "change device configuration then", NOT_OFFERED),
        unseen(MUST, "wait until the device runs again", NOT_OFFERED),
    ),
    "Reserved Feature Bits": (
        seen(MUST, "accept VERSION_1", "FEAT-03"),
        seen(SHOULD, "accept ACCESS_PLATFORM", "FEAT-04"),
        seen(MUST, "have an IOMMU translate its addresses, or none", "RING-02"),
        unseen(MUST, "pass physical addresses where ACCESS_PLATFORM is not offered", OTHERWISE),
        seen(SHOULD, "accept RING_PACKED", "FEAT-05"),
        unseen(SHOULD, "accept ORDER_PLATFORM", NOT_OFFERED),
        unseen(MUST, "use barriers for devices with ORDER_PLATFORM", BARRIER),
        seen(MUST_NOT, "accept SR_IOV where there is no such capability", "FEAT-01"),
        seen(MUST, "negotiate SR_IOV before it enables VFs", "FEAT-07"),
        seen(SHOULD, "accept NOTIF_CONFIG_DATA", "FEAT-06"),
    ),
}
