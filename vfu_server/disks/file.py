"""A disk in a file: opened when a driver needs it, worked on by threads, let go when nobody does.

    CLOSED ──ready──> OPENING ──> OPEN ──release, abandon──> RELEASING ──> CLOSED

The file is open, and locked if it can be written, only while a driver that runs uses it. So a VF that was
stopped on one host leaves the file to the VF that goes on elsewhere, and two servers never write at once.
"""

from __future__ import annotations

import collections
import contextlib
import enum
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from pymodel.devices.block.disk import Job
from pymodel.devices.block.store import Store
from pymodel.memory import Bytes
from vfu_server.disks import lock as disk_lock
from vfu_server.disks.ahead import FlushAhead
from vfu_server.disks.image import SLOW_SECONDS, Image, check_kind
from vfu_server.disks.pool import Pool

LOCK_FIRST_SECONDS: Final = 0.02
LOCK_MOST_SECONDS: Final = 0.5
"""How long to wait before a lock that another server has is tried again: more each time."""


SMALL_BYTES: Final = 64 << 10
"""The page cache takes as much in less time than it takes to hand it to another thread."""

PENALTY_FIRST_SECONDS: Final = 1.0
PENALTY_MOST_SECONDS: Final = 60.0
"""For how long all jobs of a disk that turned out slow go to the pool: longer each time."""


class _State(enum.Enum):
    CLOSED = enum.auto()
    OPENING = enum.auto()
    OPEN = enum.auto()
    RELEASING = enum.auto()


class FileDisk:
    """A `pymodel.devices.block.disk.Disk` on a raw image or a block device.

    Raises OSError where the file can't be opened, ValueError where it is no disk image or `direct` is not to
    be had. Where the file may not be written, the disk is read-only. `size` makes a file that is missing. An
    image of another format is none, unless `any_content` says that it is to be served as it is.
    """

    in_order = False

    def __init__(
        self,
        path: Path,
        *,
        size: int | None = None,
        read_only: bool = False,
        direct: bool = False,
        any_content: bool = False,
    ) -> None:
        self.read_only = read_only
        self._path = path
        self._direct = direct
        with contextlib.suppress(FileNotFoundError):
            check_kind(path, path.stat())  # by its name, as some can't even be opened
        if size is not None and not read_only:
            _make(path, size)
        try:
            image = self._image()
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            self.read_only = True
            image = self._image()
        try:
            self.size = image.size
            if not any_content:
                image.check_raw()
            self.shape = image.shape()
        finally:
            image.close()
        if size not in (None, self.size):
            raise ValueError(f"{path} has {self.size} bytes, not {size}")
        self._log = logging.getLogger("virtio.disk")
        self._pool = Pool(path.name)
        self._guard = threading.Lock()
        self._wake: Callable[[], None] = _nobody
        self._state = _State.CLOSED
        self._opened: Image | None = None
        self._broken: OSError | None = None  # why there is none though the state is OPEN
        self._key: tuple[int, int] | None = None
        # Counts drivers. What was begun for an earlier one is forgotten.
        self._session = 0
        self._under_way = 0
        # Small jobs for the function's own thread, and from when on there may be any.
        self._small: collections.deque[Job] = collections.deque()
        self._small_from = 0.0
        self._penalty = PENALTY_FIRST_SECONDS
        self._done: list[Job] = []
        self._cancel = threading.Event()
        self._forced = False
        self._refused: OSError | None = None
        # The driver went while an engine was about to write.
        self._left_busy = False
        self._release_expected = False
        self._ahead: FlushAhead | None = None

    def _image(self) -> Image:
        return Image(self._path, read_only=self.read_only, direct=self._direct)

    # -- what a device calls; nothing here waits -------------------------------------------------------------

    def connect(self, wake: Callable[[], None]) -> None:
        """See `Disk`."""
        self._wake = wake
        self.expect_release(soon=False)

    def ready(self) -> bool:
        """See `Disk`. Opens the file, and waits for its lock, elsewhere."""
        if self._state is _State.OPEN:
            return True
        with self._guard:
            if self._state is _State.CLOSED:
                self._cancel.clear()
                try:
                    self._pool.submit(self._take_up)
                except OSError as error:
                    # As a file that can't be opened: every request fails until the next driver.
                    self._log.error("%s: %s", self._path, error)
                    self._broken = error
                    self._state = _State.OPEN
                    return True
                self._state = _State.OPENING
        return False

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """See `Disk`: what the page cache can do at once."""
        image = self._opened if self._state is _State.OPEN else None
        return image is not None and image.attempt(job, views)

    def at_once(self) -> Store | None:
        """See `Disk`. A store that turns out slow is left with what needs no waiting for a while."""
        image = self._opened if self._state is _State.OPEN else None
        store = image.store if image is not None else None
        if store is not None:
            if store.slow:
                self._punish()
            store.may_copy(time.monotonic() >= self._small_from)
        return store

    def start(self, job: Job) -> None:
        """See `Disk`."""
        small = self._is_small(job) and time.monotonic() >= self._small_from
        with self._guard:
            self._under_way += 1
            if small:
                self._small.append(job)
            else:
                self._pool.submit(partial(self._run, job, self._session))

    def _is_small(self, job: Job) -> bool:
        """Whether a job only copies from or to the page cache, as far as one can tell."""
        return (
            self._opened is not None
            and job.length <= SMALL_BYTES
            and not job.durable
            and self._opened.cached(job.kind)
        )

    def work_unlocked(self) -> bool:
        """See `Disk`. A disk that turns out slow holds up its own function once, and then uses the pool."""
        if self._left_busy and not self._busy:
            with self._guard:
                self._left_busy = False
                if not self._under_way:
                    self._pool.submit(self._let_go)
        if not self._small:
            return False
        while self._small:
            with self._guard:
                # An `abandon` on another thread may have come first.
                job, session = (self._small.popleft() if self._small else None), self._session
            if job is None:
                break
            start = time.monotonic()
            self._run(job, session, wake=False)
            if time.monotonic() - start > SLOW_SECONDS:
                self._punish()
                self._hand_over()
        return True

    def _punish(self) -> None:
        """The disk is slow: have the pool do all for a while."""
        self._small_from = time.monotonic() + self._penalty
        self._penalty = min(2 * self._penalty, PENALTY_MOST_SECONDS)

    @property
    def _busy(self) -> bool:
        """Whether an engine is about to write what it has copied."""
        image = self._opened
        return image is not None and image.busy

    def _hand_over(self) -> None:
        """Give the small jobs that are left to the pool."""
        with self._guard:
            while self._small:
                self._pool.submit(partial(self._run, self._small.popleft(), self._session))

    def finished(self) -> list[Job]:
        """See `Disk`."""
        if not self._done:
            return []
        with self._guard:
            done, self._done = self._done, []
        return done

    def abandon(self) -> None:
        """See `Disk`."""
        with self._guard:
            self._session += 1
            self._done = []
            self._under_way -= len(self._small)
            self._small.clear()
            self._refused = None
            self._forced = True
            if self._state is _State.OPENING:
                self._cancel.set()
            elif self._state is _State.OPEN:
                self._state = _State.RELEASING
                self._see_to_ahead()
                self._left_busy = self._busy
                if not self._under_way and not self._left_busy:
                    self._pool.submit(self._let_go)

    def expect_release(self, *, soon: bool) -> None:
        """See `Disk`. Whenever the file is open meanwhile, it is flushed again and again."""
        with self._guard:
            self._release_expected = soon
            self._see_to_ahead()

    def _see_to_ahead(self) -> None:
        """Begin to flush ahead, or end that. To be called with the guard."""
        image = self._opened if self._release_expected and self._state is _State.OPEN else None
        if image is None:
            if self._ahead is not None:
                self._ahead.end()
            self._ahead = None
        elif self._ahead is None and not self.read_only:
            try:
                self._ahead = FlushAhead(image, str(self._path))
            except (RuntimeError, MemoryError) as error:
                self._log.warning("%s is not flushed ahead: %s", self._path, str(error) or "no memory")

    def release(self) -> bool:
        """See `Disk`."""
        with self._guard:
            refused, self._refused = self._refused, None
            if refused is not None:
                raise refused
            if self._state is _State.OPENING:
                self._cancel.set()
            elif self._state is _State.OPEN and not self._under_way and not self._busy:
                self._state = _State.RELEASING
                self._see_to_ahead()
                self._forced = False
                self._pool.submit(self._let_go)
            return self._state is _State.CLOSED

    # -- what the pool's threads do --------------------------------------------------------------------------

    def _run(self, job: Job, session: int, *, wake: bool = True) -> None:
        if session == self._session:
            job.error = self._broken
            if self._opened is not None:
                self._perform(self._opened, job)
        wanted = False
        with self._guard:
            self._under_way -= 1
            if session == self._session:
                self._done.append(job)
                # The last one also for a `release`: behind a closed gate nobody takes those that are done.
                wanted = len(self._done) == 1 or not self._under_way
            if self._state is _State.RELEASING and not self._under_way and not self._left_busy:
                self._pool.submit(self._let_go)
        if wanted and wake:
            self._wake()

    def _perform(self, image: Image, job: Job) -> None:
        try:
            image.perform(job)
        except OSError as error:
            job.error = error
        except MemoryError:
            job.error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        except Exception:  # noqa: BLE001 - the request must be answered all the same
            self._log.exception("%s: internal error, please report it", self._path)
            job.error = OSError(errno.EIO, "internal error")

    def _take_up(self) -> None:
        image: Image | None = None
        key: tuple[int, int] | None = None
        broken: OSError | None = None
        try:
            image = self._image()
            if not self.read_only:
                key = self._wait_for_lock(image)
            image.check_size(self.size)
        except (OSError, ValueError, MemoryError) as error:
            self._log.error("%s: %s", self._path, str(error) or "no memory")
            broken = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            self._close(image, key)
            image = key = None
        with self._guard:
            given_up = self._cancel.is_set()
            if not given_up:
                self._opened, self._key, self._broken = image, key, broken
                self._state = _State.OPEN
                self._see_to_ahead()
        if given_up:
            self._close(image, key)
            with self._guard:
                self._state = _State.CLOSED
        self._wake()

    def _wait_for_lock(self, image: Image) -> tuple[int, int] | None:
        seconds = LOCK_FIRST_SECONDS
        told = False
        while (key := disk_lock.take(image.fd)) is None:
            if not told and seconds > LOCK_FIRST_SECONDS:
                told = True
                self._log.warning(
                    "%s is in use by another program, requests wait for it; `fuser -v` tells by which",
                    self._path,
                )
            if self._cancel.wait(seconds):
                return None
            seconds = min(2 * seconds, LOCK_MOST_SECONDS)
        if told:
            self._log.info("%s is free", self._path)
        return key

    def _let_go(self) -> None:
        try:
            if self._opened is not None:
                self._opened.flush()
        except OSError as error:
            self._log.error("%s: %s", self._path, error)
            with self._guard:
                refuse = not self._forced
                if refuse:
                    self._refused = error
                    self._state = _State.OPEN
            if refuse:
                self._wake()
                return
        self._close(self._opened, self._key)
        with self._guard:
            self._opened = self._key = self._broken = None
            self._state = _State.CLOSED
        self._wake()

    def _close(self, image: Image | None, key: tuple[int, int] | None) -> None:
        if image is not None:
            try:
                image.close()
            except OSError as error:
                self._log.error("%s: %s", self._path, error)
        if key is not None:
            disk_lock.release(key)


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


def _nobody() -> None:
    """Nobody to wake yet."""
