"""A disk that other hosts may have: taken when a driver needs it, let go when nobody does.

    CLOSED ──ready──> OPENING ──> OPEN ──release, abandon──> RELEASING ──> CLOSED

What it is on, a file or an export, is open, and locked if it can be written, only while a driver that runs
uses it. So a VF that was stopped on one host leaves it to the VF that goes on elsewhere, and two servers
never write at once. Threads work on it, so that nobody but its own requests waits.
"""

from __future__ import annotations

import collections
import enum
import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from pymodel.devices.block.disk import Job, Shape
from pymodel.devices.block.store import Store
from pymodel.memory import Bytes
from vfu_server.disks.ahead import FlushAhead
from vfu_server.disks.image import SLOW_SECONDS
from vfu_server.disks.medium import Medium
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


class SharedDisk:
    """A `pymodel.devices.block.disk.Disk` on what `open_medium` opens, with up to `workers` jobs at a time.

    `open_medium` raises OSError, ValueError or MemoryError where it is not to be had; requests then fail
    until the next driver. `name` is what people know it by.
    """

    in_order = False

    def __init__(
        self,
        name: str,
        open_medium: Callable[[], Medium],
        *,
        size: int,
        shape: Shape,
        read_only: bool,
        workers: int,
    ) -> None:
        self.size = size
        self.shape = shape
        self.read_only = read_only
        self._name = name
        self._open_medium = open_medium
        self._log = logging.getLogger("virtio.disk")
        self._pool = Pool(name.rpartition("/")[2], workers)
        self._guard = threading.Lock()
        self._wake: Callable[[], None] = _nobody
        self._state = _State.CLOSED
        self._opened: Medium | None = None
        self._broken: OSError | None = None  # why there is none though the state is OPEN
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

    # -- what a device calls; nothing here waits -------------------------------------------------------------

    def connect(self, wake: Callable[[], None]) -> None:
        """See `Disk`."""
        self._wake = wake
        self.expect_release(soon=False)

    def ready(self) -> bool:
        """See `Disk`. Opens the medium, and waits for its lock, elsewhere."""
        if self._state is _State.OPEN:
            return True
        with self._guard:
            if self._state is _State.CLOSED:
                self._cancel.clear()
                try:
                    self._pool.submit(self._take_up)
                except OSError as error:
                    # As a medium that can't be opened: every request fails until the next driver.
                    self._log.error("%s: %s", self._name, error)
                    self._broken = error
                    self._state = _State.OPEN
                    return True
                self._state = _State.OPENING
        return False

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """See `Disk`: what the page cache can do at once."""
        medium = self._opened if self._state is _State.OPEN else None
        return medium is not None and medium.attempt(job, views)

    def at_once(self) -> Store | None:
        """See `Disk`. A store that turns out slow is left with what needs no waiting for a while."""
        medium = self._opened if self._state is _State.OPEN else None
        store = medium.store if medium is not None else None
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
        medium = self._opened
        return medium is not None and medium.busy

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
            elif self._opened is not None:
                self._opened.give_up()
            if self._state is _State.OPEN:
                self._state = _State.RELEASING
                self._see_to_ahead()
                self._left_busy = self._busy
                if not self._under_way and not self._left_busy:
                    self._pool.submit(self._let_go)

    def expect_release(self, *, soon: bool) -> None:
        """See `Disk`. Whenever the medium is open meanwhile, it is flushed again and again."""
        with self._guard:
            self._release_expected = soon
            self._see_to_ahead()

    def _see_to_ahead(self) -> None:
        """Begin to flush ahead, or end that. To be called with the guard."""
        medium = self._opened if self._release_expected and self._state is _State.OPEN else None
        if medium is None:
            if self._ahead is not None:
                self._ahead.end()
            self._ahead = None
        elif self._ahead is None and not self.read_only:
            try:
                self._ahead = FlushAhead(medium, self._name)
            except (RuntimeError, MemoryError) as error:
                self._log.warning("%s is not flushed ahead: %s", self._name, str(error) or "no memory")

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

    def _perform(self, medium: Medium, job: Job) -> None:
        try:
            medium.perform(job)
        except OSError as error:
            job.error = error
        except MemoryError:
            job.error = OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))
        except Exception:  # noqa: BLE001 - the request must be answered all the same
            self._log.exception("%s: internal error, please report it", self._name)
            job.error = OSError(errno.EIO, "internal error")

    def _take_up(self) -> None:
        medium: Medium | None = None
        broken: OSError | None = None
        try:
            medium = self._open_medium()
            if not self.read_only:
                self._wait_until_taken(medium)
            medium.check_size(self.size)
        except (OSError, ValueError, MemoryError) as error:
            self._log.error("%s: %s", self._name, str(error) or "no memory")
            broken = error if isinstance(error, OSError) else OSError(errno.EIO, str(error))
            self._close(medium)
            medium = None
        with self._guard:
            given_up = self._cancel.is_set()
            if not given_up:
                self._opened, self._broken = medium, broken
                self._state = _State.OPEN
                self._see_to_ahead()
        if given_up:
            self._close(medium)
            with self._guard:
                self._state = _State.CLOSED
        self._wake()

    def _wait_until_taken(self, medium: Medium) -> None:
        seconds = LOCK_FIRST_SECONDS
        told = False
        while not medium.take():
            if not told and seconds > LOCK_FIRST_SECONDS:
                told = True
                self._log.warning(
                    "%s is in use by another program, requests wait for it; `fuser -v` tells by which",
                    self._name,
                )
            if self._cancel.wait(seconds):
                return
            seconds = min(2 * seconds, LOCK_MOST_SECONDS)
        if told:
            self._log.info("%s is free", self._name)

    def _let_go(self) -> None:
        try:
            if self._opened is not None:
                self._opened.flush()
        except (OSError, MemoryError) as failure:
            error = failure if isinstance(failure, OSError) else OSError(errno.ENOMEM, "no memory")
            self._log.error("%s: %s", self._name, error)
            with self._guard:
                refuse = not self._forced
                if refuse:
                    self._refused = error
                    self._state = _State.OPEN
            if refuse:
                self._wake()
                return
        self._close(self._opened)
        with self._guard:
            self._opened = self._broken = None
            self._state = _State.CLOSED
        self._wake()

    def _close(self, medium: Medium | None) -> None:
        if medium is not None:
            try:
                medium.close()
            except OSError as error:
                self._log.error("%s: %s", self._name, error)


def _nobody() -> None:
    """Nobody to wake yet."""
