"""The device-context commands of the 2023 draft, and the stream of fields that a context is.

Draft: virtio-comment, "[PATCH v4 5/8] admin: Add requirements of device migration commands". It gives
rules and the READ result; the numbers it leaves open are fixed in docs/wire.md.
"""

from __future__ import annotations

import numpy as np

# Opcodes, counted from the base that `--context-opcodes` gives.
MODE_GET = 0
MODE_SET = 1
CTX_SIZE_GET = 2
CTX_READ = 3
CTX_WRITE = 4
CTX_FIELDS_QUERY = 5
CTX_DISCARD = 6
# Commands of ours, after the draft's: which guest memory a member wrote (docs/wire.md, "Write records").
WRITE_RECORD_START = 7
WRITE_RECORD_READ = 8
WRITE_RECORD_STOP = 9

MODE_ACTIVE = 0
MODE_STOP = 1
MODE_FREEZE = 2

MODE = np.dtype([("mode", "u1"), ("reserved", "u1", (7,))])
SIZE_GET_DATA = np.dtype([("freeze_mode", "u1"), ("reserved", "u1", (7,))])
SIZE_GET_RESULT = np.dtype([("size", "<u8")])
READ_RESULT = np.dtype([("remaining_ctx_size", "<u4"), ("size", "<u4")])
FIELD_SUPPORT = np.dtype([("type", "<u2"), ("reserved", "u1", (2,)), ("length", "<u4")])
LENGTH_VARIES = 0xFFFFFFFF

WRITE_RECORD_RESULT = np.dtype([("remaining", "<u4"), ("count", "<u4")])
WRITE_RECORD = np.dtype([("address", "<u8"), ("length", "<u8")])

FIELD = np.dtype([("type", "<u4"), ("reserved", "<u4"), ("length", "<u8")])
MAX_FIELD_LENGTH = 16 << 20

START_MARKER = 0x0000
END_MARKER = 0x0001
DISCARD = 0x0002
DEVICE_ID = 0x000F
DEVICE_FEATURES = 0x0010
DRIVER_FEATURES = 0x0011
COMMON_CFG = 0x0012
DEVICE_CFG = 0x0013
VQ_CFG = 0x0014
VQ_SPLIT_STATE = 0x0015
VQ_PACKED_STATE = 0x0016
ISR_STATUS = 0x0017
PENDING = 0x0018
NET_RX_MODE = 0x0100
NET_MAC_TABLE = 0x0101
NET_VLAN_TABLE = 0x0102
NET_QUEUE_PAIRS = 0x0103
NET_HASH = 0x0104
NET_RSS = 0x0105
NET_OFFLOADS = 0x0106
BLK_EXTENT = 0x0200
BLK_CHANGE = 0x0201
BLK_BASE = 0x0202
BLK_CONTENT = 0x0203
# Of a device type that is none of the standard's, or of one's own (pymodel.devices.own).
OWN_STATE = 0x0300

DEVICE_ID_VALUE = np.dtype([("virtio_id", "<u2"), ("reserved", "<u2", (3,))])
FEATURES_VALUE = np.dtype([("words", "<u8", (2,))])
COMMON_CFG_VALUE = np.dtype(
    [
        ("device_feature_select", "<u4"),
        ("driver_feature_select", "<u4"),
        ("config_msix_vector", "<u2"),
        ("num_queues", "<u2"),
        ("queue_select", "<u2"),
        ("device_status", "u1"),
        ("config_generation", "u1"),
    ]
)
VQ_CFG_VALUE = np.dtype(
    [
        ("index", "<u2"),
        ("size", "<u2"),
        ("msix_vector", "<u2"),
        ("enable", "<u2"),
        ("notify_off", "<u2"),
        ("notif_config_data", "<u2"),
        ("reset", "<u2"),
        ("reserved", "<u2"),
        ("desc", "<u8"),
        ("driver", "<u8"),
        ("device", "<u8"),
    ]
)
VQ_SPLIT_STATE_VALUE = np.dtype(
    [("index", "<u2"), ("last_avail_idx", "<u2"), ("used_idx", "<u2"), ("flags", "<u2")]
)
# Positions with the wrap counter in bit 15.
VQ_PACKED_STATE_VALUE = np.dtype(
    [("index", "<u2"), ("last_avail", "<u2"), ("last_used", "<u2"), ("flags", "<u2")]
)
VQ_STATE_F_INTERRUPT_OWED = 1
ISR_STATUS_VALUE = np.dtype([("isr", "u1"), ("reserved", "u1", (7,))])
PENDING_VALUE = np.dtype([("config_changed", "u1"), ("reserved", "u1", (7,))])
BLK_EXTENT_HEADER = np.dtype([("offset", "<u8")])
# Of BLK_BASE and BLK_CONTENT.
BLK_NAME_VALUE = np.dtype([("name", "u1", (16,))])

NET_RX_MODE_VALUE = np.dtype(
    [
        ("promisc", "u1"),
        ("allmulti", "u1"),
        ("alluni", "u1"),
        ("nomulti", "u1"),
        ("nouni", "u1"),
        ("nobcast", "u1"),
        ("reserved", "u1", (2,)),
    ]
)
# Then the addresses, of 6 bytes each.
NET_MAC_TABLE_HEADER = np.dtype(
    [("unicast", "<u2"), ("multicast", "<u2"), ("flags", "u1"), ("reserved", "u1", (3,))]
)
NET_MAC_TABLE_F_ALL_UNICAST = 1
NET_MAC_TABLE_F_ALL_MULTICAST = 2
NET_VLAN_TABLE_VALUE = np.dtype([("bitmap", "u1", (512,))])
NET_QUEUE_PAIRS_VALUE = np.dtype([("pairs", "<u2"), ("reserved", "u1", (6,))])
NET_HASH_VALUE = np.dtype(
    [("types", "<u4"), ("key_length", "u1"), ("reserved", "u1", (3,)), ("key", "u1", (40,))]
)
# Then the table's entries, of 2 bytes each.
NET_RSS_HEADER = np.dtype([("count", "<u2"), ("unclassified", "<u2"), ("reserved", "u1", (4,))])
NET_OFFLOADS_VALUE = np.dtype([("off", "<u8")])
