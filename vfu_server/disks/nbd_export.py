"""An export of an NBD server, connected while a driver has the disk, and again where that was lost."""

from __future__ import annotations

import collections
import errno
import logging
import os
import select
import threading
import time
from typing import Final

import numpy as np

from pymodel.devices.block.disk import Job, Kind
from pymodel.memory import Bytes
from vfu_server.disks.libnbd import FUA, NO_HOLE
from vfu_server.disks.nbd_connection import Command, Connection, Export, LostError

AGAIN_FIRST_SECONDS: Final = 0.05
AGAIN_MOST_SECONDS: Final = 1.0
"""How long to wait before a server that is away is tried again: more each time."""

STEADY_SECONDS: Final = 2.0
"""A connection that holds for so long, or has carried out anything, is one."""

REASONS_MAX: Final = 4
"""Reasons why there is no connection that the log has, each once until there is one."""

RANGE_MAX: Final = 1 << 30
"""Bytes of a TRIM or ZERO: their length is a number of 32 bits."""

_WRITES: Final = frozenset({Kind.WRITE, Kind.ZERO, Kind.DISCARD})

_ZEROES: Final = np.zeros(1 << 20, np.uint8)


class AwayError(OSError):
    """There is no connection, and none is waited for any more."""


class NbdExport:
    """A `Medium`. It connects by itself, from the start; what it is asked for meanwhile waits.

    Where the connection is lost, or there is none, requests wait for one until `patience` seconds have passed
    since, and then fail, until there is one again; with 0 they fail at once. Those that were under way when
    it was lost are sent again if they wait, in their order, as nobody knows which of them were carried out. A
    server that has less to offer than `export` says is none, and one that hangs up before it has done
    anything was never there.
    """

    store = None
    busy = False

    def __init__(self, uri: str, export: Export, *, read_only: bool, patience: float) -> None:
        self.size = export.size
        self._uri = uri
        self._export = export
        self._read_only = read_only
        self._patience = patience
        self._log = logging.getLogger("virtio.disk")
        self._guard = threading.Lock()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._waiting: collections.deque[Command] = collections.deque()
        self._ended = False
        self._impatient = False
        # Writes that were acknowledged and may be in the server's cache; up to which of them all is durable.
        self._acknowledged = 0
        self._durable = 0
        self._counting = threading.Lock()
        self._flushing = threading.Lock()
        self._lost: OSError | None = None
        # Since when there is no connection, why, and the reasons that people were told.
        self._away_since = time.monotonic()
        self._why: OSError | None = None
        self._told: set[str] = set()
        try:
            self._thread = threading.Thread(target=self._work, name=f"disk {uri}", daemon=True)
            self._thread.start()
        except (RuntimeError, MemoryError):
            os.close(self._wake)
            raise OSError(errno.EAGAIN, "no thread can be had") from None

    # -- what a disk calls -----------------------------------------------------------------------------------

    def take(self) -> bool:
        """Nothing: who may write is the server's business."""
        return True

    def check_size(self, size: int) -> None:
        """Nothing: each connection is looked at."""

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """False, as everything waits."""
        return False

    def cached(self, kind: Kind) -> bool:
        """False, as above."""
        return False

    def perform(self, job: Job) -> None:
        """See `Medium`."""
        match job.kind:
            case Kind.READ if job.data is not None:
                self._move(job, job.data)
                return
            case Kind.FLUSH:
                self.flush()
                return
        flags = FUA if job.durable and self._export.durable_writes else 0
        match job.kind:
            case Kind.WRITE if job.data is not None:
                self._move(job, job.data, flags)
            case Kind.ZERO:
                self._zero(job, flags)
            case Kind.DISCARD:
                self._range(job, flags)
        if job.durable and not flags:
            self.flush()

    def flush(self) -> None:
        """See `Medium`. A server without this request has nothing to flush.

        It fails for good where data may be lost, and not where nobody could be asked.
        """
        with self._flushing:
            acknowledged = self._check_lost()
            if self._durable == acknowledged:
                return
            if self._export.flushes:
                try:
                    self._carry_out(Command(Kind.FLUSH))
                except AwayError:
                    raise
                except OSError as error:
                    self._lost = error
                    raise
                # Of another connection than had the writes, perhaps.
                self._check_lost()
            self._durable = acknowledged

    def _check_lost(self) -> int:
        """How many writes were acknowledged. Raises OSError where some of them may be lost."""
        with self._counting:
            if self._lost is not None:
                raise OSError(self._lost.errno, f"data may have been lost before: {self._lost.strerror}")
            return self._acknowledged

    def give_up(self) -> None:
        """See `Medium`."""
        with self._guard:
            if not self._ended:
                self._impatient = True
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """See `Medium`. What has not ended by then fails."""
        with self._guard:
            self._ended = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _move(self, job: Job, data: Bytes, flags: int = 0) -> None:
        for start in range(0, job.length, self._export.payload):
            piece = data[start : start + self._export.payload]
            self._carry_out(Command(job.kind, job.offset + start, len(piece), piece, flags))

    def _range(self, job: Job, flags: int = 0) -> None:
        for start in range(0, job.length, RANGE_MAX):
            length = min(job.length - start, RANGE_MAX)
            self._carry_out(Command(job.kind, job.offset + start, length, flags=flags))

    def _zero(self, job: Job, flags: int) -> None:
        if self._export.zeroes:
            self._range(job, flags | (0 if job.unmap else NO_HOLE))
            return
        most = min(len(_ZEROES), self._export.payload)
        for start in range(0, job.length, most):
            piece = _ZEROES[: min(job.length - start, most)]
            self._carry_out(Command(Kind.WRITE, job.offset + start, len(piece), piece, flags))

    def _carry_out(self, command: Command) -> None:
        with self._guard:
            if self._ended or (self._impatient and command.kind is not Kind.FLUSH):
                raise AwayError(errno.EIO, "the disk was let go")
            self._waiting.append(command)
            os.eventfd_write(self._wake, 1)
        command.ended.wait()
        if command.error is not None:
            raise command.error

    # -- the connection's own thread -------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._stay_connected()
        except Exception:  # noqa: BLE001 - no request may wait for a thread that is gone
            self._log.exception("%s: internal error, please report it", self._uri)
        with self._guard:
            self._ended = True
        self._fail_waiting(OSError(errno.EIO, "the disk was let go"))

    def _stay_connected(self) -> None:
        pause = AGAIN_FIRST_SECONDS
        while not self._ended:
            try:
                connection = self._connect()
            except (OSError, MemoryError) as error:
                self._be_away(error, pause)
                pause = min(2 * pause, AGAIN_MOST_SECONDS)
                continue
            try:
                steady = self._serve(connection)
            finally:
                left = connection.close()
                self._waiting.extendleft(reversed(left))
            pause = AGAIN_FIRST_SECONDS if steady else min(2 * pause, AGAIN_MOST_SECONDS)
            if not self._ended:
                assert self._why is not None, "it was served until it was lost"
                self._be_away(self._why, pause)

    def _connect(self) -> Connection:
        connection = Connection(self._uri, self._wake, self._nobody_waits, self._done)
        less = connection.export.less_than(self._export, writable=not self._read_only)
        if less is not None:
            connection.close()
            raise OSError(errno.EIO, f"the export is not what it was when the server began: {less}")
        return connection

    def _nobody_waits(self) -> bool:
        """While a server is awaited: have those fail who waited long enough; whether it is of no use."""
        self._lose_patience()
        return self._ended

    def _done(self, command: Command, error: OSError | None) -> None:
        """A command has ended. What was written and may be lost counts before its writer hears of it."""
        if error is None and command.kind in _WRITES and not command.flags & FUA:
            with self._counting:
                self._acknowledged += 1
        command.end(error)

    def _serve(self, connection: Connection) -> bool:
        """Until the connection is lost, or is not wanted any more; whether it had been of any use."""
        began = time.monotonic()
        steady = False
        try:
            while not self._ended:
                while self._waiting and not connection.leaving:
                    # Left in the queue until it is known to be under way.
                    connection.issue(self._waiting[0])
                    self._waiting.popleft()
                connection.turn(None if steady else STEADY_SECONDS)
                if not steady and (connection.answered or time.monotonic() - began >= STEADY_SECONDS):
                    steady = True
                    self._be_back()
        except LostError as error:
            self._lose(error, steady=steady or connection.answered)
        return steady

    def _be_back(self) -> None:
        if self._told:
            self._log.info("%s: connected", self._uri)
            self._told.clear()
        self._why = None

    def _lose(self, error: LostError, *, steady: bool) -> None:
        if steady:
            self._away_since = time.monotonic()
        self._why = error
        with self._counting:
            # Who waits for a server takes its word that it comes back with all that it had.
            if not self._patience and self._export.flushes and self._acknowledged != self._durable:
                self._lost = error

    def _be_away(self, error: OSError | MemoryError, seconds: float) -> None:
        """Do without a connection for a while."""
        self._why = error if isinstance(error, OSError) else OSError(errno.ENOMEM, "no memory")
        why = self._why.strerror or str(self._why)
        if why not in self._told and len(self._told) < REASONS_MAX:
            self._told.add(why)
            what = f"requests wait for it for {self._patience:g} s" if self._patience else "requests fail"
            self._log.warning("%s: no connection (%s), %s", self._uri, why, what)
        until = time.monotonic() + seconds
        woken = select.poll()
        woken.register(self._wake, select.POLLIN)
        while not self._ended and (now := time.monotonic()) < until:
            self._lose_patience()
            out_of_patience = self._away_since + self._patience
            ends = min(until, out_of_patience) if now < out_of_patience else until
            if woken.poll(max(ends - now, 0) * 1000):
                os.eventfd_read(self._wake)

    def _lose_patience(self) -> None:
        """Have those fail who wait for a server that is known to be away, and have waited long enough."""
        late = self._why is not None and time.monotonic() >= self._away_since + self._patience
        if self._impatient or late:
            self._fail_waiting(self._why or OSError(errno.EIO, "the disk was let go"))

    def _fail_waiting(self, error: OSError) -> None:
        while self._waiting:
            self._waiting.popleft().end(AwayError(error.errno, error.strerror))
