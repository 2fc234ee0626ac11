"""Virtio over PCI: identity, capabilities, common configuration.

virtio 1.4, "Virtio Over PCI Bus".
"""

from __future__ import annotations

import numpy as np

VENDOR_ID = 0x1AF4
DEVICE_ID_BASE = 0x1040

CAP_COMMON_CFG = 1
CAP_NOTIFY_CFG = 2
CAP_ISR_CFG = 3
CAP_DEVICE_CFG = 4
CAP_PCI_CFG = 5

# Offsets from the start of a vendor capability.
CAP_LEN = 2
CAP_CFG_TYPE = 3
CAP_BAR = 4
CAP_ID = 5
CAP_OFFSET = 8
CAP_LENGTH = 12
CAP_SIZE = 16
CAP_NOTIFY_MULTIPLIER = 16
CAP_NOTIFY_SIZE = 20
CAP_PCI_CFG_DATA = 16
CAP_PCI_CFG_SIZE = 20

COMMON_CFG = np.dtype(
    [
        ("device_feature_select", "<u4"),
        ("device_feature", "<u4"),
        ("driver_feature_select", "<u4"),
        ("driver_feature", "<u4"),
        ("config_msix_vector", "<u2"),
        ("num_queues", "<u2"),
        ("device_status", "u1"),
        ("config_generation", "u1"),
        ("queue_select", "<u2"),
        ("queue_size", "<u2"),
        ("queue_msix_vector", "<u2"),
        ("queue_enable", "<u2"),
        ("queue_notify_off", "<u2"),
        ("queue_desc", "<u8"),
        ("queue_driver", "<u8"),
        ("queue_device", "<u8"),
        ("queue_notif_config_data", "<u2"),
        ("queue_reset", "<u2"),
        ("admin_queue_index", "<u2"),
        ("admin_queue_num", "<u2"),
    ]
)

# "Legacy Interfaces: A Note on PCI Device Layout"; the two vectors are there while MSI-X is enabled.
LEGACY_CFG = np.dtype(
    [
        ("device_features", "<u4"),
        ("driver_features", "<u4"),
        ("queue_address", "<u4"),
        ("queue_size", "<u2"),
        ("queue_select", "<u2"),
        ("queue_notify", "<u2"),
        ("device_status", "u1"),
        ("isr_status", "u1"),
        ("config_msix_vector", "<u2"),
        ("queue_msix_vector", "<u2"),
    ]
)
LEGACY_CFG_SIZE = 20
"""Without those vectors."""

NO_VECTOR = 0xFFFF

ISR_QUEUE = 1
ISR_CONFIG = 2
