"""Group administration commands: frame, statuses, opcodes.

virtio 1.4, "Group administration commands"; the admin virtqueue carries them ("Administration Virtqueues").
"""

from __future__ import annotations

import numpy as np

# Device-readable header, then command_specific_data.
COMMAND = np.dtype(
    [
        ("opcode", "<u2"),
        ("group_type", "<u2"),
        ("reserved1", "u1", (12,)),
        ("group_member_id", "<u8"),
    ]
)
# Device-writable header, then command_specific_result.
RESULT = np.dtype([("status", "<u2"), ("status_qualifier", "<u2"), ("reserved2", "u1", (4,))])

GROUP_SELF = 0
GROUP_SRIOV = 1

STATUS_OK = 0
STATUS_ENXIO = 6
STATUS_EAGAIN = 11
STATUS_ENOMEM = 12
STATUS_EBUSY = 16
STATUS_EEXIST = 17
STATUS_EINVAL = 22
STATUS_ENOSPC = 28

Q_OK = 0
Q_INVALID_COMMAND = 1
Q_INVALID_OPCODE = 2
Q_INVALID_FIELD = 3
Q_INVALID_GROUP = 4
Q_INVALID_MEMBER = 5
Q_NORESOURCE = 6
Q_TRYAGAIN = 7

LIST_QUERY = 0x0000
LIST_USE = 0x0001
LEGACY_COMMON_CFG_WRITE = 0x0002
LEGACY_COMMON_CFG_READ = 0x0003
LEGACY_DEV_CFG_WRITE = 0x0004
LEGACY_DEV_CFG_READ = 0x0005
LEGACY_NOTIFY_INFO = 0x0006
CAP_ID_LIST_QUERY = 0x0007
DEVICE_CAP_GET = 0x0008
DRIVER_CAP_SET = 0x0009
RESOURCE_OBJ_CREATE = 0x000A
# The text of these two commands has them the other way round; this is the table of opcodes.
RESOURCE_OBJ_QUERY = 0x000B
RESOURCE_OBJ_MODIFY = 0x000C
RESOURCE_OBJ_DESTROY = 0x000D
DEV_PARTS_METADATA_GET = 0x000E
DEV_PARTS_GET = 0x000F
DEV_PARTS_SET = 0x0010
DEV_MODE_SET = 0x0011

# Data of the commands that access a legacy driver's registers; what is to be written follows.
LEGACY_ACCESS = np.dtype([("offset", "u1"), ("reserved", "u1", (7,))])
LEGACY_NOTIFY_ENTRY = np.dtype([("flags", "u1"), ("bar", "u1"), ("padding", "u1", (6,)), ("offset", "<u8")])
LEGACY_NOTIFY_ENTRIES = 4
LEGACY_NOTIFY_OWNER = 1
LEGACY_NOTIFY_MEMBER = 2

# Data of the capability commands begins with this.
CAP = np.dtype([("id", "<u2"), ("reserved", "u1", (6,))])

CAP_DEV_PARTS = 0x0000
DEV_PARTS_CAP = np.dtype([("get_limit", "u1"), ("set_limit", "u1")])
DRIVER_CAP_SET_DATA = np.dtype([*CAP.descr, *DEV_PARTS_CAP.descr])

RESOURCE_OBJ_DEV_PARTS = 0x0000
# Data of all commands about a resource object begins with this.
RESOURCE_OBJ = np.dtype([("type", "<u2"), ("reserved", "u1", (2,)), ("id", "<u4")])
RESOURCE_OBJ_QUERY_DATA = np.dtype([*RESOURCE_OBJ.descr, ("flags", "<u8")])
DEV_PARTS_OBJ = np.dtype([("operation", "u1"), ("unused", "u1", (7,))])
# Of CREATE and MODIFY.
RESOURCE_OBJ_DATA = np.dtype([*RESOURCE_OBJ_QUERY_DATA.descr, *DEV_PARTS_OBJ.descr])
DEV_PARTS_OBJ_GET = 0
DEV_PARTS_OBJ_SET = 1

# Of METADATA_GET and PARTS_GET; headers of parts follow in the latter.
DEV_PARTS_GET_DATA = np.dtype([*RESOURCE_OBJ.descr, ("kind", "u1"), ("unused", "u1", (7,))])
METADATA_SIZE = 0
METADATA_COUNT = 1
METADATA_LIST = 2
METADATA_RESULT = np.dtype([("number", "<u4"), ("reserved", "<u4")])
PARTS_SELECTED = 0
PARTS_ALL = 1

DEV_MODE_STOPPED = 1

# Bit n of a list of commands is opcode n.
LIST_WORD = np.dtype("<u8")
