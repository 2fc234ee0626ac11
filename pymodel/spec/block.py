"""Block device: features, configuration, requests. virtio 1.4, "Block Device"."""

from __future__ import annotations

import numpy as np

F_SIZE_MAX = 1
F_SEG_MAX = 2
F_RO = 5
F_BLK_SIZE = 6
F_FLUSH = 9
F_TOPOLOGY = 10
F_CONFIG_WCE = 11
F_MQ = 12
F_DISCARD = 13
F_WRITE_ZEROES = 14

SECTOR = 512

CONFIG = np.dtype(
    [
        ("capacity", "<u8"),
        ("size_max", "<u4"),
        ("seg_max", "<u4"),
        ("geometry", [("cylinders", "<u2"), ("heads", "u1"), ("sectors", "u1")]),
        ("blk_size", "<u4"),
        (
            "topology",
            [
                ("physical_block_exp", "u1"),
                ("alignment_offset", "u1"),
                ("min_io_size", "<u2"),
                ("opt_io_size", "<u4"),
            ],
        ),
        ("writeback", "u1"),
        ("unused0", "u1"),
        ("num_queues", "<u2"),
        ("max_discard_sectors", "<u4"),
        ("max_discard_seg", "<u4"),
        ("discard_sector_alignment", "<u4"),
        ("max_write_zeroes_sectors", "<u4"),
        ("max_write_zeroes_seg", "<u4"),
        ("write_zeroes_may_unmap", "u1"),
        ("unused1", "u1", (3,)),
    ]
)

REQUEST = np.dtype([("type", "<u4"), ("reserved", "<u4"), ("sector", "<u8")])
T_IN = 0
T_OUT = 1
T_FLUSH = 4
T_GET_ID = 8
T_DISCARD = 11
T_WRITE_ZEROES = 13
ID_BYTES = 20

# A segment of T_DISCARD and T_WRITE_ZEROES: "struct virtio_blk_discard_write_zeroes".
RANGE = np.dtype([("sector", "<u8"), ("num_sectors", "<u4"), ("flags", "<u4")])
RANGE_UNMAP = 1

WRITETHROUGH = 0
WRITEBACK = 1

S_OK = 0
S_IOERR = 1
S_UNSUPP = 2
