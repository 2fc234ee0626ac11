"""A block device's features and configuration, as its disk has them. virtio 1.4, "Block Device"."""

from __future__ import annotations

from typing import Final

import numpy as np

from pymodel.devices.block.disk import Disk
from pymodel.errors import InvalidField
from pymodel.spec import block

QUEUE_SIZE: Final = 256
SEGMENTS_MAX: Final = QUEUE_SIZE - 2
"""Data descriptors of a request: header and status take one each."""

SEGMENT_BYTES: Final = 4 << 20
"""`size_max`, and the piece in which a request is given to a disk that may have to wait."""

RANGES_MAX: Final = 32
"""Ranges of one DISCARD or WRITE_ZEROES."""

DISCARD_SECTORS: Final = (1 << 30) // block.SECTOR
ZEROES_SECTORS: Final = (32 << 20) // block.SECTOR
"""Of one range. The second is smaller: some files have to be written for it."""

_OFFSETS: Final[dict[str, int]] = {name: at for name, (_, at, *_) in (block.CONFIG.fields or {}).items()}
WRITEBACK_AT: Final = _OFFSETS["writeback"]
# Fields as masks of the structure, which is compared as one little-endian number.
_FIELDS: Final[dict[str, int]] = {
    name: ((1 << 8 * block.CONFIG[name].itemsize) - 1) << 8 * at for name, at in _OFFSETS.items()
}
# Hints, which may be others where the guest goes to, and the byte that the driver may write.
_VARIABLE: Final = _FIELDS["topology"] | _FIELDS["writeback"]


def features(disk: Disk, queues: int) -> int:
    """What is offered."""
    offered = [block.F_SIZE_MAX, block.F_SEG_MAX, block.F_BLK_SIZE, block.F_TOPOLOGY]
    offered += [block.F_FLUSH, block.F_CONFIG_WCE]
    offered += [block.F_MQ] if queues > 1 else []
    if disk.read_only:
        offered += [block.F_RO]
    else:
        offered += [block.F_WRITE_ZEROES, *([block.F_DISCARD] if disk.shape.frees else [])]
    return sum(1 << bit for bit in offered)


def configuration(disk: Disk, queues: int) -> bytes:
    """The configuration structure, in writeback mode."""
    shape = disk.shape
    config = np.zeros((), block.CONFIG)
    config["capacity"] = disk.size // block.SECTOR
    config["size_max"] = SEGMENT_BYTES
    config["seg_max"] = SEGMENTS_MAX
    config["blk_size"] = shape.block
    blocks = max(shape.physical // shape.block, 1)
    config["topology"]["physical_block_exp"] = blocks.bit_length() - 1
    config["topology"]["min_io_size"] = blocks
    config["topology"]["opt_io_size"] = shape.optimal // shape.block
    config["writeback"] = block.WRITEBACK
    config["num_queues"] = queues
    if not disk.read_only:
        config["max_write_zeroes_sectors"] = ZEROES_SECTORS
        config["max_write_zeroes_seg"] = RANGES_MAX
        config["write_zeroes_may_unmap"] = int(shape.frees)
        if shape.frees:
            config["max_discard_sectors"] = DISCARD_SECTORS
            config["max_discard_seg"] = RANGES_MAX
            config["discard_sector_alignment"] = max(shape.physical, shape.block) // block.SECTOR
    return config.tobytes()


def check(config: bytes, own: bytes) -> None:
    """Raise `InvalidField` where a driver that runs with `config` could not go on with `own`.

    Capacity, block size, queues and limits must be the same, topology need not.
    """
    if len(config) != len(own) or config[WRITEBACK_AT] not in (block.WRITETHROUGH, block.WRITEBACK):
        raise InvalidField(f"writeback {config[WRITEBACK_AT : WRITEBACK_AT + 1].hex()}")
    there, here = int.from_bytes(config, "little"), int.from_bytes(own, "little")
    different = (there ^ here) & ~_VARIABLE
    if different:
        name, mask = next((name, mask) for name, mask in _FIELDS.items() if different & mask)
        lowest = mask & -mask
        raise InvalidField(
            f"the configuration differs: {name} {(there & mask) // lowest}, here {(here & mask) // lowest}"
        )
