"""Feature bits that belong to no device type but to rings. virtio 1.4, "Reserved Feature Bits"."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pymodel.spec import virtio

ALWAYS = 1 << virtio.F_VERSION_1 | 1 << virtio.F_ACCESS_PLATFORM

# Offered unless somebody does without, by the names that they are then called by.
OPTIONAL: Mapping[str, int] = {
    "packed": virtio.F_RING_PACKED,
    "in-order": virtio.F_IN_ORDER,
    "notification-data": virtio.F_NOTIFICATION_DATA,
    "notif-config-data": virtio.F_NOTIF_CONFIG_DATA,
    "ring-reset": virtio.F_RING_RESET,
    "event-idx": virtio.F_EVENT_IDX,
    "indirect": virtio.F_INDIRECT_DESC,
}


def legacy_features(offered: int) -> int:
    """What a legacy driver is offered by a device that offers others this."""
    return (offered | 1 << virtio.F_ANY_LAYOUT) & virtio.LEGACY_FEATURES


def ring_features(without: Iterable[str] = (), *, in_order: bool = True) -> int:
    """What is offered, but for the names in `without`. `in_order`: whether requests finish in their order.

    Raises ValueError for a name that there is not.
    """
    left_out = frozenset(without)
    unknown = left_out - OPTIONAL.keys()
    if unknown:
        raise ValueError(f"feature {min(unknown)!r}; there are: {', '.join(OPTIONAL)}")
    if not in_order:
        left_out |= {"in-order"}
    return ALWAYS | sum(1 << bit for name, bit in OPTIONAL.items() if name not in left_out)
