"""Virtio over PCI."""

from __future__ import annotations

from typing import Final

from tests.driver_statements.statement import (
    HINTED,
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

PCI: Final[Sections] = {
    "PCI Device Discovery": (
        unseen(MUST, "match device IDs from 0x1040 on", ITSELF),
        unseen(MUST, "match transitional device IDs", ITSELF),
        unseen(MUST, "match any revision", TOLERATES),
    ),
    "PCI Device Layout": (seen(MUST, "access each field in its own width", "PCI-01"),),
    "Virtio Structure PCI Capabilities": (
        unseen(MUST, "ignore capabilities of a reserved type", TOLERATES),
        unseen(SHOULD, "take the first of a type", OTHERWISE),
        unseen(MUST, "accept a longer capability", TOLERATES),
        unseen(MUST, "ignore capabilities with a reserved BAR", TOLERATES),
        unseen(SHOULD, "map only as much as it needs", ITSELF),
        unseen(MUST, "put up with a large length", TOLERATES),
        seen(MUST_NOT, "write a capability, but for the window", "PCI-02"),
    ),
    "PCI Device Layout / Common configuration structure layout": (
        seen(MUST_NOT, "write what is not a driver's", "CFG-01"),
        seen(MUST_NOT, "have packed queues of 0 descriptors", "CFG-03"),
        seen(MUST_NOT, "have split queues whose size is no power of 2", "CFG-02"),
        seen(MUST, "configure a queue before it enables it", "CFG-05", "CFG-06"),
        seen(MUST, "wait for the end of a reset", "RESET-01"),
        seen(MUST_NOT, "write 0 to queue_enable", "CFG-07"),
        seen(MUST_NOT, "take a queue reset for complete before queue_reset reads 0", "CFG-08"),
        unseen(MUST, "have admin queues where the device has them", HINTED),
    ),
    "PCI Device Layout / ISR status capability": (
        seen(SHOULD_NOT, "access ISR status upon a queue's interrupt with MSI-X", "ISR-01"),
    ),
    "PCI Device Layout / Vendor data capability": (
        unseen(SHOULD_NOT, "use vendor data but for debugging", NOT_OFFERED),
        unseen(MUST, "know whose data they are", NOT_OFFERED),
    ),
    "PCI Device Layout / PCI configuration access capability": (
        seen(MUST_NOT, "write an offset that is no multiple of the length", "PCI-03"),
        seen(MUST, "align what it accesses through the window", "PCI-03"),
        seen(MUST_NOT, "use the window outside of structures", "PCI-04"),
    ),
    "PCI-specific Initialization And Device Operation / Device Initialization / MSI-X Vector Configuration": (
        unseen(MUST, "take an MSI-X table of any size", TOLERATES),
        seen(MUST_NOT, "map an event to a vector outside of the table", "MSIX-01"),
        seen(MUST, "read back what it mapped", "MSIX-02"),
    ),
    "PCI-specific Initialization And Device Operation / Available Buffer Notifications": (
        seen(MUST, "notify with 16 bits without NOTIFICATION_DATA", "KICK-01"),
        seen(MUST, "notify with 32 bits with NOTIFICATION_DATA", "KICK-02"),
        seen(MUST, "notify with the queue's index", "KICK-03"),
        seen(MUST, "have the queue's index in the lower half with NOTIFICATION_DATA", "KICK-03"),
        seen(MUST, "notify with queue_notif_config_data with NOTIF_CONFIG_DATA", "KICK-04"),
        seen(MUST, "have that in the lower half with both", "KICK-04"),
    ),
    "PCI-specific Initialization And Device Operation / Notification of Device Configuration Changes": (
        unseen(MUST, "take one interrupt for a change and for used buffers", TOLERATES),
    ),
}
