"""Messages of the vfio-user protocol: commands, flags, structures.

Sources: libvfio-user's include/vfio-user.h; <linux/vfio.h> for what VFIO itself defines.
All structures are little-endian and packed.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct


class Command(IntEnum):
    """`enum vfio_user_command`."""

    VERSION = 1
    DMA_MAP = 2
    DMA_UNMAP = 3
    DEVICE_GET_INFO = 4
    DEVICE_GET_REGION_INFO = 5
    DEVICE_GET_REGION_IO_FDS = 6
    DEVICE_GET_IRQ_INFO = 7
    DEVICE_SET_IRQS = 8
    REGION_READ = 9
    REGION_WRITE = 10
    DMA_READ = 11
    DMA_WRITE = 12
    DEVICE_RESET = 13


# msg_id, cmd, msg_size (header included), flags, error_no
HEADER = Struct("<HHIII")
TYPE_MASK = 0xF
TYPE_COMMAND = 0
TYPE_REPLY = 1
FLAG_NO_REPLY = 0x10
FLAG_ERROR = 0x20

# major, minor; then JSON text with its terminating NUL
VERSION = Struct("<HH")
MAJOR = 0
MINOR = 0
DEFAULT_MAX_DATA = 1 << 20
DEFAULT_MAX_FDS = 1

# argsz, flags, num_regions, num_irqs
DEVICE_INFO = Struct("<IIII")

# argsz, flags, index, cap_offset, size, offset
REGION_INFO = Struct("<IIIIQQ")
REGION_INFO_READ = 1
REGION_INFO_WRITE = 2
REGION_INFO_MMAP = 4

# argsz, flags, index, count
IRQ_INFO = Struct("<IIII")

# argsz, flags, index, start, count
IRQ_SET = Struct("<IIIII")
IRQ_SET_DATA_NONE = 1
IRQ_SET_DATA_BOOL = 2
IRQ_SET_DATA_EVENTFD = 4
IRQ_SET_ACTION_MASK = 8
IRQ_SET_ACTION_UNMASK = 16
IRQ_SET_ACTION_TRIGGER = 32

# argsz, flags, offset, address, size
DMA_MAP = Struct("<IIQQQ")
DMA_MAP_READ = 1
DMA_MAP_WRITE = 2

# argsz, flags, address, size
DMA_UNMAP = Struct("<IIQQ")
DMA_UNMAP_ALL = 2

# offset, region, count; then data
REGION_ACCESS = Struct("<QII")

# VFIO_PCI_*_REGION_INDEX
REGION_BAR0 = 0
REGION_ROM = 6
REGION_CONFIG = 7

# VFIO_PCI_*_IRQ_INDEX
IRQ_INTX = 0
IRQ_MSIX = 2
