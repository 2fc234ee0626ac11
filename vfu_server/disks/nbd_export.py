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
from vfu_server.disks.nbd_connection import Command, Connection, Export, LostError, Request

AGAIN_FIRST_SECONDS: Final = 0.05
AGAIN_MOST_SECONDS: Final = 1.0
"""How long to wait before a server that is away is tried again: more each time."""

REASONS_MAX: Final = 4
"""Reasons why there is no connection that the log has, each once until there is one."""

RANGE_MAX: Final = 1 << 30
"""Bytes of a TRIM or ZERO: their length is a number of 32 bits."""

_ZEROES: Final = np.zeros(1 << 20, np.uint8)


class NbdExport:
    """A `Medium`. It connects by itself, from the start; what it is asked for meanwhile waits.

    Where the connection is lost, or there is none, requests wait for one until `patience` seconds have passed
    since, and then fail, until there is one again; with 0 they fail at once. Those that were under way when
    it was lost are sent again if they wait, in their order, as nobody knows which of them were carried out. A
    server that has less to offer than `export` says is none.
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
        # Writes that have ended, and how many of them are known to be durable.
        self._written = 0
        self._durable = 0
        self._counting = threading.Lock()
        self._flushing = threading.Lock()
        self._lost: OSError | None = None
        # Since when there is no connection, and the reasons that people were told.
        self._away_since = time.monotonic()
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
                self._move(Request.READ, job, job.data)
                return
            case Kind.FLUSH:
                self.flush()
                return
        flags = FUA if job.durable and self._export.durable_writes else 0
        try:
            match job.kind:
                case Kind.WRITE if job.data is not None:
                    self._move(Request.WRITE, job, job.data, flags)
                case Kind.ZERO:
                    self._zero(job, flags)
                case Kind.DISCARD:
                    self._range(Request.TRIM, job)
        finally:
            with self._counting:
                self._written += 1
        if job.durable and not flags:
            self.flush()

    def flush(self) -> None:
        """See `Medium`. A server without this request has nothing to flush."""
        with self._flushing:
            with self._counting:
                if self._lost is not None:
                    raise OSError(self._lost.errno, f"data may have been lost before: {self._lost.strerror}")
                written = self._written
            if self._durable == written:
                return
            try:
                if self._export.flushes:
                    self._carry_out(Command(Request.FLUSH))
            except OSError as error:
                self._lost = error
                raise
            self._durable = written

    def give_up(self) -> None:
        """See `Medium`."""
        self._impatient = True
        os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """See `Medium`. What has not ended by then fails."""
        with self._guard:
            self._ended = True
            os.eventfd_write(self._wake, 1)
        self._thread.join()
        os.close(self._wake)

    def _move(self, request: Request, job: Job, data: Bytes, flags: int = 0) -> None:
        for start in range(0, job.length, self._export.payload):
            piece = data[start : start + self._export.payload]
            self._carry_out(Command(request, job.offset + start, len(piece), piece, flags))

    def _range(self, request: Request, job: Job, flags: int = 0) -> None:
        for start in range(0, job.length, RANGE_MAX):
            length = min(job.length - start, RANGE_MAX)
            self._carry_out(Command(request, job.offset + start, length, flags=flags))

    def _zero(self, job: Job, flags: int) -> None:
        if self._export.zeroes:
            self._range(Request.ZERO, job, flags | (0 if job.unmap else NO_HOLE))
            return
        most = min(len(_ZEROES), self._export.payload)
        for start in range(0, job.length, most):
            piece = _ZEROES[: min(job.length - start, most)]
            self._carry_out(Command(Request.WRITE, job.offset + start, len(piece), piece, flags))

    def _carry_out(self, command: Command) -> None:
        with self._guard:
            if self._ended:
                raise OSError(errno.EIO, "the disk was let go")
            self._waiting.append(command)
            os.eventfd_write(self._wake, 1)
        command.ended.wait()
        if command.error is not None:
            raise command.error

    # -- the connection's own thread -------------------------------------------------------------------------

    def _work(self) -> None:
        pause = AGAIN_FIRST_SECONDS
        while not self._ended:
            try:
                connection = self._connect()
            except OSError as error:
                self._be_away(error, pause)
                pause = min(2 * pause, AGAIN_MOST_SECONDS)
                continue
            if self._told:
                self._log.info("%s: connected", self._uri)
                self._told.clear()
            try:
                self._serve(connection)
            except LostError as error:
                self._lose(connection, error)
                pause = AGAIN_FIRST_SECONDS
            else:
                connection.close()
        self._fail_waiting(OSError(errno.EIO, "the disk was let go"))

    def _connect(self) -> Connection:
        connection = Connection(self._uri, self._wake, lambda: self._ended)
        less = connection.export.less_than(self._export, writable=not self._read_only)
        if less is not None:
            connection.close()
            raise OSError(errno.EIO, f"the export is not what it was when the server began: {less}")
        return connection

    def _serve(self, connection: Connection) -> None:
        while not self._ended:
            while self._waiting:
                # Left in the queue until it is known to be under way.
                connection.issue(self._waiting[0])
                self._waiting.popleft()
            connection.turn()

    def _lose(self, connection: Connection, error: LostError) -> None:
        """The connection is gone; what was under way comes before what waits."""
        self._waiting.extendleft(reversed(connection.close()))
        self._away_since = time.monotonic()
        with self._counting:
            # Who waits for a server takes its word that it comes back with all that it had.
            if not self._patience and self._written != self._durable:
                self._lost = error
        if not self._patience:
            self._fail_waiting(error)

    def _be_away(self, error: OSError, seconds: float) -> None:
        """Do without a connection for a while."""
        why = error.strerror or str(error)
        if why not in self._told and len(self._told) < REASONS_MAX:
            self._told.add(why)
            what = f"requests wait for it for {self._patience:g} s" if self._patience else "requests fail"
            self._log.warning("%s: no connection (%s), %s", self._uri, why, what)
        until = time.monotonic() + seconds
        out_of_patience = self._away_since + self._patience
        while not self._ended and (now := time.monotonic()) < until:
            if now >= out_of_patience or self._impatient:
                self._fail_waiting(error)
            ends = until if now >= out_of_patience else min(until, out_of_patience)
            if select.select([self._wake], [], [], ends - now)[0]:
                os.eventfd_read(self._wake)

    def _fail_waiting(self, error: OSError) -> None:
        while self._waiting:
            self._waiting.popleft().end(OSError(error.errno, error.strerror))
