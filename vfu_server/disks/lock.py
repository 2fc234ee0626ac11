"""A lock on a disk image against other processes, shared by all functions of this one.

Two servers that write to one image would each destroy what the other's guest believes in. The lock is an open
file description lock on the whole file (fcntl(2)): it conflicts with those that QEMU takes, and ends with the
process.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
import threading
from dataclasses import dataclass
from typing import Final

# struct flock: l_type, l_whence, l_start, l_len (0: to the end of the file), l_pid (must be 0).
_FLOCK: Final = struct.Struct("@hhqqi4x")

log: Final = logging.getLogger("virtio.disk")


@dataclass(slots=True)
class _Held:
    """The lock on one file: a descriptor of the open file that has it, once it is taken, and its users."""

    fd: int = -1
    users: int = 1


_guard: Final = threading.Lock()
_held: Final[dict[tuple[int, int], _Held]] = {}


def take(fd: int) -> tuple[int, int] | None:
    """Lock the file that is open as `fd`, or share this process's lock. A key for `release`.

    None where another process has it, or another thread is about to take it: try again. On a file system
    without locks the file counts as locked. Raises OSError.
    """
    status = os.fstat(fd)
    key = (status.st_dev, status.st_ino)
    with _guard:
        held = _held.get(key)
        if held is not None:
            if held.fd == -1:
                return None
            held.users += 1
            return key
        held = _held[key] = _Held()
    # Not under the guard: a file system may take its time, and other disks need not wait for it.
    copy = -1
    try:
        # A lock stays as long as any descriptor of the open file; this one outlives its first user's.
        copy = os.dup(fd)
        locked = _lock(fd)
    except BaseException:
        locked = False
        raise
    finally:
        with _guard:
            if locked:
                held.fd = copy
            else:
                del _held[key]
        if not locked and copy != -1:
            os.close(copy)
    return key if locked else None


def release(key: tuple[int, int]) -> None:
    """Give back what `take` returned; the last one unlocks the file."""
    with _guard:
        held = _held[key]
        held.users -= 1
        if held.users:
            return
        del _held[key]
    os.close(held.fd)


def _lock(fd: int) -> bool:
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0))
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno not in (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL):
            raise
        log.warning("no lock on the disk image: %s", error)
    return True
