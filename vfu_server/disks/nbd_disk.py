"""A disk behind an NBD server, which may have anything there: qcow2, Ceph, a part of another disk."""

from __future__ import annotations

import os
from functools import partial
from typing import Final

from pymodel.devices.block.disk import Shape
from vfu_server.disks.formats import recognized
from vfu_server.disks.image import PHYSICAL_MAX, SECTOR, shape_of
from vfu_server.disks.nbd_connection import Connection, Export
from vfu_server.disks.nbd_export import NbdExport
from vfu_server.disks.shared_disk import SharedDisk

WORKERS: Final = 16
"""Requests under way at a time."""


class NbdDisk(SharedDisk):
    """A `pymodel.devices.block.disk.Disk` on an export; its server must be there.

    `uri` is one of NBD: nbd+unix:///EXPORT?socket=PATH, nbd://HOST:PORT/EXPORT, nbds: for TLS. `patience` is
    that of `NbdExport`. Raises OSError where it can't be reached, ValueError where it can't be a disk as
    asked, and, of these, MissingError without libnbd.
    """

    def __init__(
        self, uri: str, *, read_only: bool = False, any_content: bool = False, patience: float = 0
    ) -> None:
        wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        try:
            connection = Connection(uri, wake, lambda: False)
            try:
                export = connection.export
                shape = _shape(uri, export)
                found = None if any_content else recognized(connection.read, export.size)
            finally:
                connection.close()
        finally:
            os.close(wake)
        if found is not None:
            raise ValueError(
                f"{uri} looks like {found}: have the server open it as that (`qemu-storage-daemon --blockdev "
                f"driver={found},...`), or serve it as it is with `,format=raw`"
            )
        read_only = read_only or export.read_only
        super().__init__(
            uri,
            partial(NbdExport, uri, export, read_only=read_only, patience=patience),
            size=export.size,
            shape=shape,
            read_only=read_only,
            workers=WORKERS,
        )


def _shape(uri: str, export: Export) -> Shape:
    """What a driver is told. Raises ValueError for what is no disk."""
    block = max(export.minimum, SECTOR)
    if block > PHYSICAL_MAX or block & (block - 1):
        raise ValueError(
            f"{uri} has blocks of {block} bytes; up to {PHYSICAL_MAX}, by powers of two, can be served"
        )
    if not export.payload:
        raise ValueError(f"{uri} takes less than a block of {block} bytes at a time")
    if export.size == 0 or export.size % block:
        raise ValueError(f"{uri} has {export.size} bytes, which is no multiple of {block} above 0")
    return shape_of(block, export.preferred or PHYSICAL_MAX, frees=export.trims)
