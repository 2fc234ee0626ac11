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
CAP_ID_LIST_QUERY = 0x0007
DEVICE_CAP_GET = 0x0008
DRIVER_CAP_SET = 0x0009

# Data of the capability commands begins with this.
CAP = np.dtype([("id", "<u2"), ("reserved", "u1", (6,))])

# Bit n of a list of commands is opcode n.
LIST_WORD = np.dtype("<u8")
