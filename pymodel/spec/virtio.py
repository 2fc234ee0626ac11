"""Device status and feature bits that belong to no device type.

virtio 1.4, "Device Status Field", "Reserved Feature Bits".
"""

from __future__ import annotations

STATUS_ACKNOWLEDGE = 1
STATUS_DRIVER = 2
STATUS_DRIVER_OK = 4
STATUS_FEATURES_OK = 8
STATUS_DEVICE_NEEDS_RESET = 64
STATUS_FAILED = 128

# Only legacy drivers know this one ("Legacy Interface: Reserved Feature Bits").
F_ANY_LAYOUT = 27
F_INDIRECT_DESC = 28
F_EVENT_IDX = 29
F_VERSION_1 = 32
F_ACCESS_PLATFORM = 33
F_RING_PACKED = 34
F_IN_ORDER = 35
F_ORDER_PLATFORM = 36
F_SR_IOV = 37
F_NOTIFICATION_DATA = 38
F_NOTIF_CONFIG_DATA = 39
F_RING_RESET = 40
F_ADMIN_VQ = 41

LEGACY_FEATURES = 0xFFFFFFFF
"""Those that a legacy driver can see and take."""

ID_NET = 1
ID_BLOCK = 2
