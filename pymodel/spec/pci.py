"""PCI and PCI Express configuration space: header, capabilities, MSI-X, SR-IOV, ARI.

Register numbers as in the PCI specifications and Linux's <linux/pci_regs.h>.
"""

from __future__ import annotations

import numpy as np

CONFIG_SIZE = 4096
EXTENDED_START = 0x100

HEADER = np.dtype(
    [
        ("vendor_id", "<u2"),
        ("device_id", "<u2"),
        ("command", "<u2"),
        ("status", "<u2"),
        ("revision", "u1"),
        ("class_code", "u1", (3,)),
        ("cache_line_size", "u1"),
        ("latency_timer", "u1"),
        ("header_type", "u1"),
        ("bist", "u1"),
        ("bar", "<u4", (6,)),
        ("cardbus_cis", "<u4"),
        ("subsystem_vendor_id", "<u2"),
        ("subsystem_id", "<u2"),
        ("rom_address", "<u4"),
        ("capabilities", "u1"),
        ("reserved", "u1", (7,)),
        ("interrupt_line", "u1"),
        ("interrupt_pin", "u1"),
        ("min_grant", "u1"),
        ("max_latency", "u1"),
    ]
)

COMMAND = 0x04
BAR_FIRST = 0x10
BAR_END = 0x28

COMMAND_IO = 0x0001
COMMAND_MEMORY = 0x0002
COMMAND_MASTER = 0x0004
COMMAND_PARITY = 0x0040
COMMAND_SERR = 0x0100
COMMAND_INTX_DISABLE = 0x0400
STATUS_INTERRUPT = 0x0008
STATUS_CAP_LIST = 0x0010

BAR_MEMORY_64 = 0x4
BAR_PREFETCH = 0x8
BAR_FLAGS = 0xF

CAP_ID_PM = 0x01
CAP_ID_VENDOR = 0x09
CAP_ID_EXPRESS = 0x10
CAP_ID_MSIX = 0x11

# Power management capability, 8 bytes.
PM_SIZE = 8
PM_PMC = 2
PM_PMCSR = 4
PM_PMC_VERSION = 3
PM_STATE_MASK = 0x0003

# PCI Express capability, version 2, 0x3c bytes.
EXPRESS_SIZE = 0x3C
EXPRESS_FLAGS = 0x02
EXPRESS_DEVCAP = 0x04
EXPRESS_DEVCTL = 0x08
EXPRESS_DEVSTA = 0x0A
EXPRESS_LNKCAP = 0x0C
EXPRESS_LNKCTL = 0x10
EXPRESS_LNKSTA = 0x12
EXPRESS_DEVCAP2 = 0x24
EXPRESS_DEVCTL2 = 0x28
EXPRESS_LNKCAP2 = 0x2C
EXPRESS_LNKCTL2 = 0x30
EXPRESS_VERSION = 2
EXPRESS_DEVCAP_ROLE_BASED_ERROR = 1 << 15
EXPRESS_DEVCAP_FLR = 1 << 28
EXPRESS_DEVCTL_FLR = 1 << 15

# MSI-X capability, 12 bytes.
MSIX_SIZE = 12
MSIX_CONTROL = 2
MSIX_TABLE = 4
MSIX_PBA = 8
MSIX_CONTROL_MASK_ALL = 0x4000
MSIX_CONTROL_ENABLE = 0x8000
MSIX_ENTRY = np.dtype([("address", "<u8"), ("data", "<u4"), ("control", "<u4")])
# Offset in it, a bit of that word, and bits of an address that a driver leaves 0.
MSIX_ENTRY_CONTROL = 12
MSIX_ENTRY_MASKED = 1
MSIX_ADDRESS_RESERVED = 0x3
MSIX_MAX_VECTORS = 0x800

# Extended capabilities.
EXT_CAP_ID_VENDOR = 0x000B
EXT_CAP_ID_ARI = 0x000E
EXT_CAP_ID_SRIOV = 0x0010
ARI_SIZE = 8

# Vendor-specific extended capability; id and revision are ours.
VSEC_HEADER_SIZE = 8
VSEC_ID = 0x0001
VSEC_REVISION = 1

SRIOV = np.dtype(
    [
        ("header", "<u4"),
        ("capabilities", "<u4"),
        ("control", "<u2"),
        ("status", "<u2"),
        ("initial_vfs", "<u2"),
        ("total_vfs", "<u2"),
        ("num_vfs", "<u2"),
        ("function_dependency_link", "u1"),
        ("reserved0", "u1"),
        ("first_vf_offset", "<u2"),
        ("vf_stride", "<u2"),
        ("reserved1", "<u2"),
        ("vf_device_id", "<u2"),
        ("supported_page_sizes", "<u4"),
        ("system_page_size", "<u4"),
        ("vf_bar", "<u4", (6,)),
        ("vf_migration_state_array", "<u4"),
    ]
)
SRIOV_CAP_ARI_PRESERVED = 0x2
SRIOV_CONTROL_VF_ENABLE = 0x0001
SRIOV_CONTROL_VF_MSE = 0x0008
SRIOV_CONTROL_ARI = 0x0010
SRIOV_SUPPORTED_PAGE_SIZES = 0x553
SRIOV_PAGE_SHIFT = 12

# ECAM: configuration space in memory, 4 KiB for each function, for the 256 buses of a segment.
ECAM_BUS_SHIFT = 20
ECAM_FUNCTION_SHIFT = 12
ECAM_SIZE = 256 << ECAM_BUS_SHIFT
