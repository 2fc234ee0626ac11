"""A disk in a raw image or on a block device."""

from __future__ import annotations

import contextlib
import errno
import os
from functools import partial
from pathlib import Path
from typing import Final

from vfu_server.disks.image import Image, check_kind
from vfu_server.disks.shared_disk import SharedDisk

WORKERS: Final = 4


class FileDisk(SharedDisk):
    """A `pymodel.devices.block.disk.Disk` on a raw image or a block device.

    Raises OSError where the file can't be opened, ValueError where it is no disk image or `direct` is not to
    be had. Where the file may not be written, the disk is read-only. `size` makes a file that is missing. An
    image of another format is none, unless `any_content` says that it is to be served as it is.
    """

    def __init__(
        self,
        path: Path,
        *,
        size: int | None = None,
        read_only: bool = False,
        direct: bool = False,
        any_content: bool = False,
    ) -> None:
        with contextlib.suppress(FileNotFoundError):
            check_kind(path, path.stat())  # by its name, as some can't even be opened
        if size is not None and not read_only:
            _make(path, size)
        try:
            image = Image(path, read_only=read_only, direct=direct)
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            read_only = True
            image = Image(path, read_only=True, direct=direct)
        try:
            if not any_content:
                image.check_raw()
            shape = image.shape()
        finally:
            image.close()
        if size not in (None, image.size):
            raise ValueError(f"{path} has {image.size} bytes, not {size}")
        super().__init__(
            str(path),
            partial(Image, path, read_only=read_only, direct=direct),
            size=image.size,
            shape=shape,
            read_only=read_only,
            workers=WORKERS,
        )


def _make(path: Path, size: int) -> None:
    """Make a sparse file of that size, if there is none or an empty one."""
    there = path.exists()
    if there and path.stat().st_size:
        return
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        # Empty: another server may be making it.
        if os.lseek(fd, 0, os.SEEK_END) == 0:
            os.ftruncate(fd, size)
    except OSError:
        if not there:
            path.unlink()
        raise
    finally:
        os.close(fd)
