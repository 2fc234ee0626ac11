"""Disks of virtio-blk functions that are kept in a file."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from pymodel.memory import Bytes

SECTOR: Final = 512

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")


class FileDisk:
    """A raw disk image. Reads and writes go between the file and the guest's memory without a copy of ours.

    Raises OSError where the file can't be opened, ValueError where it is no disk image. Where the file may
    not be written, the disk is read-only.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
            self.read_only = False
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.read_only = True
        # Not the size of fstat: that of a block device is 0.
        self.size = os.lseek(self._fd, 0, os.SEEK_END)
        if self.size == 0 or self.size % SECTOR:
            self.close()
            wanted = max((self.size + SECTOR - 1) // SECTOR, 1) * SECTOR
            raise ValueError(
                f"{path} has {self.size} bytes, which is no multiple of {SECTOR}: "
                f"`truncate -s {wanted} {path}` would make it one"
            )

    def read(self, offset: int, views: list[Bytes]) -> None:
        """Fill `views` from `offset` on. Raises OSError, the views filled in part."""
        _transfer(os.preadv, self._fd, offset, views)

    def write(self, offset: int, views: list[Bytes]) -> None:
        """Write `views` at `offset` and on. Raises OSError, the file written in part."""
        _transfer(os.pwritev, self._fd, offset, views)

    def flush(self) -> None:
        """Make what was written durable. Raises OSError."""
        os.fdatasync(self._fd)

    def close(self) -> None:
        """Close the file; the disk is not to be used afterwards."""
        os.close(self._fd)


def _transfer(call: Callable[..., int], fd: int, offset: int, views: Sequence[Bytes]) -> None:
    pending = [view for view in views if len(view)]
    pending.reverse()
    while pending:
        # At most IOV_MAX, or the kernel refuses the call; the next ones are at the end of the list.
        count = call(fd, pending[: -IOV_MAX - 1 : -1], offset)
        if count == 0:
            raise OSError(errno.EIO, "the disk image is shorter than it was")
        offset += count
        while count:
            view = pending.pop()
            if count < len(view):
                pending.append(view[count:])
                break
            count -= len(view)
