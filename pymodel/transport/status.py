"""The device status machine. virtio 1.4, "Device Status Field", "Device Initialization"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from pymodel.spec.virtio import (
    STATUS_ACKNOWLEDGE,
    STATUS_DRIVER,
    STATUS_DRIVER_OK,
    STATUS_FAILED,
    STATUS_FEATURES_OK,
)

# What must be set already, or be set by the same write, before a driver may set a bit. A bit that is not
# listed is not the driver's to set. To the letter:
STRICT: Final[Mapping[int, int]] = {
    STATUS_ACKNOWLEDGE: 0,
    STATUS_DRIVER: STATUS_ACKNOWLEDGE,
    STATUS_FEATURES_OK: STATUS_ACKNOWLEDGE | STATUS_DRIVER,
    STATUS_DRIVER_OK: STATUS_ACKNOWLEDGE | STATUS_DRIVER | STATUS_FEATURES_OK,
    STATUS_FAILED: 0,
}

# What is taken by default, as QEMU's devices do: iPXE writes FEATURES_OK alone after a reset, U-Boot DRIVER.
# A device cannot run before features were agreed: what its rings are depends on those.
LENIENT: Final[Mapping[int, int]] = {
    STATUS_ACKNOWLEDGE: 0,
    STATUS_DRIVER: 0,
    STATUS_FEATURES_OK: 0,
    STATUS_DRIVER_OK: STATUS_FEATURES_OK,
    STATUS_FAILED: 0,
}

# What a legacy driver may set: it knows no FEATURES_OK ("Legacy Interface: Device Initialization").
LEGACY: Final[Mapping[int, int]] = {
    STATUS_ACKNOWLEDGE: 0,
    STATUS_DRIVER: 0,
    STATUS_DRIVER_OK: 0,
    STATUS_FAILED: 0,
}

NAMES = {
    STATUS_ACKNOWLEDGE: "ACKNOWLEDGE",
    STATUS_DRIVER: "DRIVER",
    STATUS_FEATURES_OK: "FEATURES_OK",
    STATUS_DRIVER_OK: "DRIVER_OK",
    64: "DEVICE_NEEDS_RESET",
    STATUS_FAILED: "FAILED",
}


def settable(status: int, written: int, prerequisites: Mapping[int, int]) -> int:
    """The bits that a write of `written` (not 0) newly sets when the status is `status`, by a table.

    A driver must not clear bits; those that it leaves out stay set.
    """
    added = 0
    for bit, needed in prerequisites.items():
        if written & ~status & bit and (status | added) & needed == needed:
            added |= bit
    return added


def legal(status: int, prerequisites: Mapping[int, int]) -> bool:
    """Whether a driver can have brought a device to `status`, DEVICE_NEEDS_RESET aside."""
    return settable(0, status, prerequisites) | STATUS_FAILED | 64 == status | STATUS_FAILED | 64


def describe(status: int) -> str:
    """The bits by name."""
    return "|".join(name for bit, name in NAMES.items() if status & bit) or "0"
