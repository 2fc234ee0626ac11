"""Device parts: types, selectors and values.

virtio 1.4, "Device parts" and, of the network device, "Device Parts". The last type is ours (docs/wire.md).
"""

from __future__ import annotations

import numpy as np

PART = np.dtype(
    [
        ("type", "<u2"),
        ("flags", "u1"),
        ("reserved", "u1"),
        ("selector", "u1", (8,)),
        ("length", "<u4"),
    ]
)
F_OPTIONAL = 1

DEV_FEATURES = 0x0100
DRV_FEATURES = 0x0101
PCI_COMMON_CFG = 0x0102
DEVICE_STATUS = 0x0103
VQ_CFG = 0x0104
VQ_NOTIFY_CFG = 0x0105
NET_CVQ_CFG = 0x0200
CONTEXT_FIELD = 0x05F0

OFFSET_SELECTOR = np.dtype([("offset", "<u4"), ("reserved", "<u4")])
VQ_SELECTOR = np.dtype([("index", "<u2"), ("reserved", "u1", (6,))])
NET_CVQ_SELECTOR = np.dtype([("class", "u1"), ("command", "u1"), ("reserved", "u1", (6,))])
CONTEXT_FIELD_SELECTOR = np.dtype([("field", "<u2"), ("queue", "<u2"), ("reserved", "<u4")])

FEATURES_VALUE = np.dtype([("words", "<u8", (2,))])
DEVICE_STATUS_VALUE = np.dtype([("device_status", "u1")])
VQ_CFG_VALUE = np.dtype(
    [
        ("queue_size", "<u2"),
        ("vector", "<u2"),
        ("enabled", "<u2"),
        ("reserved", "<u2"),
        ("queue_desc", "<u8"),
        ("queue_driver", "<u8"),
        ("queue_device", "<u8"),
    ]
)
VQ_NOTIFY_CFG_VALUE = np.dtype(
    [("queue_notify_off", "<u2"), ("queue_notif_config_data", "<u2"), ("reserved", "u1", (4,))]
)
