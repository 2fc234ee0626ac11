"""ACPI tables in a guest's memory, as far as it takes to find MCFG.

The pointer to them, and their header, are in ACPI 6.5, 5.2.5 to 5.2.8; the table MCFG is "PCI Express
Memory-mapped Configuration Space base address description table" of the PCI Firmware Specification.
"""

from __future__ import annotations

import struct

BIOS_START = 0xE0000
"""Where the RSDP of a machine without UEFI is looked for, at multiples of 16."""
BIOS_END = 0x100000

RSDP_SIGNATURE = b"RSD PTR "
RSDP = struct.Struct("<8sB6sBIIQ")
"""Signature, checksum, OEM, revision, RSDT, length, XSDT."""
RSDP_SUMMED = 20

HEADER = struct.Struct("<4sIB")
"""The beginning of a table's header: signature, length, revision."""
HEADER_SIZE = 36

MCFG_SIGNATURE = b"MCFG"
MCFG_SIZE = 44
"""Before its entries."""
MCFG_ENTRY = struct.Struct("<QHBBI")
"""Address for bus 0, PCI segment, first and last bus, reserved."""
