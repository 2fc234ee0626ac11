"""What a client's snapshot of configuration space may see: QEMU hides what it knows of from its guest."""

from __future__ import annotations

from pymodel.spec import pci


def as_snapshot(offset: int, data: bytes) -> bytes:
    """What a read shows: one that reaches from below 100h past it sees zeros from there on.

    QEMU (hw/vfio/pci.c) reads all of configuration space once, in one access, and takes SR-IOV and ARI from
    the list of extended capabilities that it finds. Where it finds none, the guest's own accesses from 100h
    on come to the device as they are.
    """
    shown = pci.EXTENDED_START - offset
    if not 0 < shown < len(data):
        return data
    return data[:shown] + bytes(len(data) - shown)
