"""A raw disk image, or a block device, that is open: what can be done with it, waiting or not."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import stat
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pymodel.devices.block.disk import Job, Kind, Shape
from pymodel.memory import Bytes
from vfu_server.datapath import COMPILED, FileStore
from vfu_server.disks import lock
from vfu_server.disks.formats import recognized

SECTOR: Final = 512

SLOW_SECONDS: Final = 0.1
"""A small job that took longer shows that the disk is slow (less may be a busy processor)."""

IOV_MAX: Final = os.sysconf("SC_IOV_MAX")
# Aligned, as O_DIRECT wants it, and never written.
_ZEROES: Final = memoryview(mmap.mmap(-1, 1 << 20))

_KINDS: Final = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a character device",
    stat.S_IFDIR: "a directory",
    stat.S_IFSOCK: "a socket",
}

# linux/falloc.h
KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 0x01, 0x02, 0x10
# linux/fs.h
BLKPBSZGET = 0x127B
PHYSICAL_MAX: Final = 4096
# As many writes as there can't be.
_NEVER: Final = (1 << 64) - 1
_UNSUPPORTED: Final = (errno.EOPNOTSUPP, errno.ENOSYS)
# The second is what a block device says of a range that is not in whole blocks of its own.
_NOT_THIS: Final = (*_UNSUPPORTED, errno.EINVAL)

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)


class Image:
    """An open image. `attempt` never waits; `perform` and `close` may.

    Raises OSError where the file can't be opened, ValueError where it is no disk image or O_DIRECT (`direct`)
    is not to be had.
    """

    def __init__(self, path: Path, *, read_only: bool, direct: bool) -> None:
        self._path = path
        self._direct = direct
        self._read_only = read_only
        self.fd = _open(path, os.O_RDONLY if read_only else os.O_RDWR, direct=direct)
        try:
            check_kind(path, os.fstat(self.fd))
            os.set_blocking(self.fd, True)
            # Not the size of fstat: that of a block device is 0.
            self.size = os.lseek(self.fd, 0, os.SEEK_END)
            # What it must have, and what it never had less than: only that is not lost.
            self._least = self._kept = self.size
            self._reads_now = self._writes_now = not direct and _tells_waiting(self.fd)
            self._may_zero_range = True
            # Writes that have ended, and how many of them are known to be durable.
            self._written = 0
            self._durable = 0
            self._counting = threading.Lock()
            self._flushing = threading.Lock()
            self._lost: OSError | None = None
            self._lock: tuple[int, int] | None = None
            self._store: FileStore | None = None
        except BaseException:
            os.close(self.fd)
            raise

    def check_raw(self) -> None:
        """Raise ValueError for an image of another format: a driver would see that format's structures."""
        found = recognized(self._start_of, self.size)
        if found is not None:
            raise ValueError(
                f"{self._path} looks like {found}, and only raw images are served: convert it "
                f"(`qemu-img convert -O raw`), or serve it as it is with `,format=raw`"
            )

    def _start_of(self, offset: int, length: int) -> bytes:
        """Up to so many bytes, in memory that O_DIRECT takes."""
        room = memoryview(mmap.mmap(-1, length))
        return bytes(room[: os.preadv(self.fd, [room], offset)])

    def shape(self) -> Shape:
        """What a driver is told of it. Raises ValueError as the class does."""
        block = self._direct_block() if self._direct else SECTOR
        if self.size == 0 or self.size % block:
            wanted = max(-(-self.size // block), 1) * block
            raise ValueError(
                f"{self._path} has {self.size} bytes, which is no multiple of {block}: "
                f"`truncate -s {wanted} {self._path}` would make it one"
            )
        status = os.fstat(self.fd)
        if stat.S_ISBLK(status.st_mode):
            physical, frees = self._ask(BLKPBSZGET), True
        else:
            physical, frees = status.st_blksize, self._frees()
        return shape_of(block, physical, frees=frees)

    def take(self) -> bool:
        """Lock the file against other programs. False where one has it. Raises OSError."""
        self._lock = lock.take(self.fd)
        return self._lock is not None

    def check_size(self, size: int) -> None:
        """Raise OSError for an image of less than `size` bytes, which it must have from now on."""
        self._least = size
        self._check_whole()
        if COMPILED and not self._direct:
            self._store = FileStore(
                self.fd, size, reads=self._reads_now, writes=self._writes_now, slow_after=SLOW_SECONDS
            )

    @property
    def store(self) -> FileStore | None:
        """What an engine may use, once `check_size` found the image whole; None where all is to be waited
        for.
        """
        return self._store if self._kept >= self._least else None

    @property
    def busy(self) -> bool:
        """Whether an engine is about to write what it has copied: then it is not to be closed."""
        return self._store is not None and self._store.busy

    def _check_whole(self) -> None:
        """Raise OSError for an image that became shorter, and from then on until it is opened anew.

        A write past its end would succeed and fill in zeroes, for what was lost too.
        """
        self._kept = min(self._kept, os.lseek(self.fd, 0, os.SEEK_END))
        if self._kept < self._least:
            raise OSError(
                errno.EIO, f"the disk image is shorter than it was: {self._kept} bytes, not {self._least}"
            )

    def _ask(self, request: int) -> int:
        answer = fcntl.ioctl(self.fd, request, bytes(4))
        return int.from_bytes(answer, "little")

    def _frees(self) -> bool:
        """Whether holes can be punched: tried past the end, where there is nothing to lose."""
        try:
            _fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, self.size, 4096)
        except OSError:
            return False
        return True

    def _direct_block(self) -> int:
        """The least that O_DIRECT reads here. Python 3.11 has no statx(2), so it is tried."""
        room = memoryview(mmap.mmap(-1, PHYSICAL_MAX))
        for block in (SECTOR, 1024, 2048, PHYSICAL_MAX):
            try:
                os.preadv(self.fd, [room[:block]], 0)
                if self.size > block:
                    os.preadv(self.fd, [room[:block]], block)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
            else:
                return block
        raise ValueError(f"{self._path}: no O_DIRECT in blocks of up to 4096 bytes")

    # -- work ----------------------------------------------------------------------------------------------

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """Read from or write to the page cache, if that needs no waiting. What failed is left to `perform`.

        A write is tried too: XFS and Btrfs can tell, ext4 never does it.
        """
        if self._kept < self._least:
            return False
        if job.kind is Kind.READ and self._reads_now:
            call: Callable[..., int] = os.preadv
        elif job.kind is Kind.WRITE and self._writes_now and not job.durable:
            call = os.pwritev
        else:
            return False
        try:
            if job.kind is Kind.WRITE:
                self._check_whole()
            count = call(self.fd, views[:IOV_MAX], job.offset, os.RWF_NOWAIT)
        except OSError as error:
            if error.errno in _UNSUPPORTED:
                self._reads_now = self._reads_now and job.kind is not Kind.READ
                self._writes_now = self._writes_now and job.kind is not Kind.WRITE
            return False
        if job.kind is Kind.WRITE:
            self._count_write()
        return count == job.length

    def cached(self, kind: Kind) -> bool:
        """Whether a job is one for the page cache, but the kernel can't tell if it has to wait there."""
        if kind is Kind.READ:
            return not self._direct and not self._reads_now
        return kind is Kind.WRITE and not self._direct and not self._writes_now

    def perform(self, job: Job) -> None:
        """Do a job with memory of its own. Raises OSError, the range then holding anything."""
        if job.kind is not Kind.READ or job.offset + job.length > self._kept:
            self._check_whole()
        match job.kind:
            case Kind.READ if job.data is not None:
                if not _transfer(os.preadv, self.fd, job.offset, job.data):
                    self._check_whole()
                    raise OSError(errno.EIO, "the disk image ends early")
                return
            case Kind.FLUSH:
                self.flush()
                return
        try:
            match job.kind:
                case Kind.WRITE if job.data is not None:
                    _transfer(os.pwritev, self.fd, job.offset, job.data)
                case Kind.ZERO:
                    self._zero(job)
                case Kind.DISCARD:
                    self._discard(job)
        finally:
            self._count_write()
        if job.durable:
            self.flush()

    def flush(self) -> None:
        """Make what was written durable, or raise OSError; from then on it always does, until reopened.

        The kernel tells of an error once and takes the pages that it could not write for clean, so a
        second fdatasync that succeeds says nothing.
        """
        # One at a time: the other would be told of no error that the first one was told of.
        with self._flushing:
            if not self._read_only:
                self._check_whole()
            if self._lost is not None:
                raise OSError(self._lost.errno, f"data was lost before: {self._lost.strerror}")
            store = self._store
            written = self._written + (store.written if store is not None else 0)
            if self._durable == written:
                return
            try:
                os.fdatasync(self.fd)
            except OSError as error:
                self._lost = error
                if store is not None:
                    store.durable = _NEVER
                raise
            self._durable = written
            if store is not None:
                store.durable = written

    def _count_write(self) -> None:
        """A write has ended, in whatever way: from now on a flush covers it."""
        with self._counting:
            # Never behind what a flush counts: what is written after that one would seem durable.
            if self._store is not None:
                self._store.others = self._written + 1
            self._written += 1

    def give_up(self) -> None:
        """What the kernel waits for comes, or a thread waits for good."""

    def close(self) -> None:
        """Close and unlock the file, after a flush that is under way; those that follow fail.

        Raises OSError where that tells of one.
        """
        with self._flushing:
            fd, self.fd = self.fd, -1
        try:
            os.close(fd)
        finally:
            if self._lock is not None:
                lock.release(self._lock)

    def _discard(self, job: Job) -> None:
        try:
            _fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, job.offset, job.length)
        except OSError as error:
            # A block device may have nothing to give back, or not there; then nothing is to be done.
            if error.errno not in _NOT_THIS:
                raise

    def _zero(self, job: Job) -> None:
        try:
            if job.unmap:
                _fallocate(self.fd, PUNCH_HOLE | KEEP_SIZE, job.offset, job.length)
                return
            if self._may_zero_range:
                _fallocate(self.fd, ZERO_RANGE | KEEP_SIZE, job.offset, job.length)
                return
        except OSError as error:
            if error.errno not in _NOT_THIS:
                raise
            if error.errno in _UNSUPPORTED and not job.unmap:
                self._may_zero_range = False
        end = job.offset + job.length
        for offset in range(job.offset, end, len(_ZEROES)):
            _transfer(os.pwritev, self.fd, offset, _ZEROES[: min(end - offset, len(_ZEROES))])


def shape_of(block: int, preferred: int, *, frees: bool) -> Shape:
    """What a driver is told where `block` bytes are the least and `preferred` is what the storage likes."""
    if preferred & (preferred - 1):
        preferred = PHYSICAL_MAX
    # The block of a network's storage is what it transfers, not what it can write alone.
    optimal = preferred if preferred > PHYSICAL_MAX else 0
    return Shape(block, max(min(preferred, PHYSICAL_MAX), block), optimal, frees)


def check_kind(path: Path, status: os.stat_result) -> None:
    """Raise ValueError for what is neither a file nor a block device."""
    kind = _KINDS.get(stat.S_IFMT(status.st_mode))
    if kind is not None:
        raise ValueError(f"{path} is {kind}, which is no disk: give a file or a block device")


def _open(path: Path, flags: int, *, direct: bool) -> int:
    # A FIFO would wait for its other end.
    flags |= os.O_CLOEXEC | os.O_NONBLOCK | (os.O_DIRECT if direct else 0)
    try:
        return os.open(path, flags)
    except OSError as error:
        if direct and error.errno == errno.EINVAL:
            raise ValueError(f"{path}: the file system has no O_DIRECT; leave out `direct`") from None
        raise


def _fallocate(fd: int, mode: int, offset: int, length: int) -> None:
    while _libc.fallocate(fd, mode, offset, length):
        number = ctypes.get_errno()
        if number != errno.EINTR:
            raise OSError(number, os.strerror(number))


def _transfer(call: Callable[..., int], fd: int, offset: int, data: Bytes | memoryview) -> bool:
    """Read or write all of `data`. Whether that was there. Raises OSError."""
    while len(data):
        count = call(fd, [data], offset)
        if count == 0:
            return False
        offset += count
        data = data[count:]
    return True


def _tells_waiting(fd: int) -> bool:
    """Whether the file system can tell that a call would wait; if not, asking for its size may wait too."""
    try:
        os.preadv(fd, [bytearray(1)], 0, os.RWF_NOWAIT)
    except OSError as error:
        return error.errno not in _UNSUPPORTED
    return True
