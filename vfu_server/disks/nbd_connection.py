"""A connection to an NBD server, in the hands of one thread."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from pymodel.devices.block.disk import Kind
from pymodel.memory import Bytes
from vfu_server.disks import libnbd
from vfu_server.disks.image import SECTOR
from vfu_server.disks.libnbd import NO_COMPLETION, library

CONNECT_SECONDS: Final = 10.0
"""How long a server may take to say hello."""

LOOK_SECONDS: Final = 0.1
"""How often, meanwhile, it is asked whether anybody waits for that."""

PAYLOAD_MAX: Final = 32 << 20
"""What any server takes in one read or write, in bytes (the protocol's default)."""

# The server's host is gone when it has not answered for half a minute.
_KEEP_ALIVE: Final = (
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 5),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 4),
    (socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 30_000),
)

_LOST: Final = (errno.ENOTCONN, errno.ESHUTDOWN)
"""What a command ends with that the server did not carry out, or of which nobody knows whether it did."""


class LostError(OSError):
    """The connection is not there any more."""


@dataclass(slots=True, eq=False)
class Command:
    """One request; `data` is to fill or to send, in bytes at `offset`. It has ended when `ended` is set."""

    kind: Kind
    offset: int = 0
    length: int = 0
    data: Bytes | None = None
    flags: int = 0
    error: OSError | None = None
    ended: threading.Event = field(default_factory=threading.Event)

    def end(self, error: OSError | None = None) -> None:
        """It was carried out, or failed."""
        self.error = error
        self.ended.set()


@dataclass(frozen=True, slots=True)
class Export:
    """What a server says of an export.

    Sizes in bytes: `minimum` and `preferred` of a block (0: not said), `payload` of one read or write.
    """

    size: int
    read_only: bool
    flushes: bool
    durable_writes: bool
    trims: bool
    zeroes: bool
    minimum: int
    preferred: int
    payload: int

    def less_than(self, other: Export, *, writable: bool) -> str | None:
        """What an export that took the place of another lacks, for people; None where it will do."""
        if self.size < other.size:
            return f"it has {self.size} bytes, not {other.size}"
        if writable and self.read_only:
            return "it is read-only"
        if self.minimum > max(other.minimum, SECTOR):
            return f"its blocks are of {self.minimum} bytes"
        if self.payload < other.payload:
            return f"it takes {self.payload} bytes at a time, not {other.payload}"
        for name in ("flushes", "durable_writes", "trims", "zeroes"):
            if getattr(other, name) and not getattr(self, name):
                return f"it has no {name.replace('_', ' ')}"
        return None


class Connection:
    """A connection to the export of a URI. Raises OSError where there is none to be had.

    `wake` is an eventfd that ends a wait and is read then. While the connection is made, `stop` is asked now
    and then whether nobody wants it any more. `done` hears of each command that ended, with its error.
    """

    def __init__(
        self,
        uri: str,
        wake: int,
        stop: Callable[[], bool],
        done: Callable[[Command, OSError | None], None] = Command.end,
    ) -> None:
        self._wake = wake
        self._done = done
        self._nbd = library()
        self._under_way: dict[int, Command] = {}
        self._refused = 0
        self.leaving = False
        """The server carries out no new commands: none is to be issued any more."""
        self.answered = False
        """Whether it has carried out anything."""
        self._handle = self._nbd.nbd_create()
        if not self._handle:
            raise libnbd.failure()
        try:
            self._check(self._nbd.nbd_set_uri_allow_local_file(self._handle, True))
            self._connect(uri, stop)
            self.export = self._look()
        except BaseException:
            self._nbd.nbd_close(self._handle)
            raise
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(self._fd())) as own:
            for level, option, value in _KEEP_ALIVE:
                own.setsockopt(level, option, value)

    def _connect(self, uri: str, stop: Callable[[], bool]) -> None:
        until = time.monotonic() + CONNECT_SECONDS
        self._check(self._nbd.nbd_aio_connect_uri(self._handle, uri.encode()))
        while not self._nbd.nbd_aio_is_ready(self._handle):
            if self._gone:
                raise LostError(errno.ECONNRESET, "the server closed the connection while it was made")
            if stop():
                raise OSError(errno.ECANCELED, "given up")
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, "the server does not answer")
            self._wait(min(max(until - time.monotonic(), 0), LOOK_SECONDS))

    def _look(self) -> Export:
        ask, handle, check = self._nbd, self._handle, self._check
        largest = check(ask.nbd_get_block_size(handle, libnbd.SIZE_MAXIMUM))
        minimum = check(ask.nbd_get_block_size(handle, libnbd.SIZE_MINIMUM))
        block = max(minimum, SECTOR)
        return Export(
            size=check(ask.nbd_get_size(handle)),
            read_only=bool(check(ask.nbd_is_read_only(handle))),
            flushes=bool(check(ask.nbd_can_flush(handle))),
            durable_writes=bool(check(ask.nbd_can_fua(handle))),
            trims=bool(check(ask.nbd_can_trim(handle))),
            zeroes=bool(check(ask.nbd_can_zero(handle))),
            minimum=minimum,
            preferred=check(ask.nbd_get_block_size(handle, libnbd.SIZE_PREFERRED)),
            payload=min(largest or PAYLOAD_MAX, PAYLOAD_MAX) // block * block,
        )

    def _check(self, result: int) -> int:
        if result < 0:
            raise libnbd.failure()
        return result

    def _fd(self) -> int:
        return self._check(self._nbd.nbd_aio_get_fd(self._handle))

    @property
    def _gone(self) -> bool:
        return bool(self._nbd.nbd_aio_is_dead(self._handle) or self._nbd.nbd_aio_is_closed(self._handle))

    def issue(self, command: Command) -> None:
        """Send a command, or as much of it as goes now. Raises LostError; else it is one of `ended`."""
        nbd, handle, offset, length = self._nbd, self._handle, command.offset, command.length
        flags = command.flags
        place = command.data.ctypes.data if command.data is not None else None
        match command.kind:
            case Kind.READ:
                cookie = nbd.nbd_aio_pread(handle, place, length, offset, NO_COMPLETION, flags)
            case Kind.WRITE:
                cookie = nbd.nbd_aio_pwrite(handle, place, length, offset, NO_COMPLETION, flags)
            case Kind.FLUSH:
                cookie = nbd.nbd_aio_flush(handle, NO_COMPLETION, flags)
            case Kind.DISCARD:
                cookie = nbd.nbd_aio_trim(handle, length, offset, NO_COMPLETION, flags)
            case Kind.ZERO:
                cookie = nbd.nbd_aio_zero(handle, length, offset, NO_COMPLETION, flags)
        if cookie < 0:
            error = libnbd.failure()
            if self._gone:
                raise _lost(error)
            self._done(command, error)
        else:
            self._under_way[cookie] = command

    def turn(self, seconds: float | None = None) -> None:
        """Wait for the server or `wake`, and end those commands that have. Raises LostError."""
        lost: LostError | None = None
        try:
            self._wait(seconds)
        except OSError as error:
            lost = _lost(error)
        while (cookie := self._nbd.nbd_aio_peek_command_completed(self._handle)) > 0:
            ended = self._nbd.nbd_aio_command_completed(self._handle, cookie)
            failure = libnbd.failure() if ended < 0 else None
            if failure is not None and failure.errno in _LOST:
                # Not carried out, or nobody knows. It stays among those that are left.
                self._refused += 1
                self.leaving = True
            else:
                self.answered = True
                self._done(self._under_way.pop(cookie), failure)
        if lost is None and self._gone:
            lost = LostError(errno.ENOTCONN, "the server closed the connection")
        if lost is None and self.leaving and self._refused == len(self._under_way):
            # Not before: what the server still has must not come after what another connection does.
            lost = LostError(errno.ESHUTDOWN, "the server is shutting down")
        if lost is not None:
            raise lost

    def _wait(self, seconds: float | None) -> None:
        direction = self._nbd.nbd_aio_get_direction(self._handle)
        fd = self._fd()
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        wanted = select.POLLIN if direction & libnbd.READ else 0
        poller.register(fd, wanted | (select.POLLOUT if direction & libnbd.WRITE else 0))
        events = dict(poller.poll(None if seconds is None else seconds * 1000))
        if events.pop(self._wake, 0):
            os.eventfd_read(self._wake)
        if direction & libnbd.READ and events.get(fd, 0) & ~select.POLLOUT:
            self._check(self._nbd.nbd_aio_notify_read(self._handle))
        elif events:
            self._check(self._nbd.nbd_aio_notify_write(self._handle))

    def read(self, offset: int, length: int) -> bytes:
        """Read up to so many bytes, with nothing else under way. Raises OSError."""
        data = np.zeros(max(min(length, self.export.size - offset), 0), np.uint8)
        command = Command(Kind.READ, offset, data.size, data)
        self.issue(command)
        until = time.monotonic() + CONNECT_SECONDS
        while not command.ended.is_set():
            if time.monotonic() > until:
                raise OSError(errno.ETIMEDOUT, "the server does not answer")
            self.turn(max(until - time.monotonic(), 0))
        if command.error is not None:
            raise command.error
        return data.tobytes()

    def close(self) -> list[Command]:
        """Say goodbye where that can be, and end. The commands that had not, in the order of `issue`."""
        if not self._gone:
            self._nbd.nbd_aio_disconnect(self._handle, 0)
        self._nbd.nbd_close(self._handle)
        self._handle = None
        left = list(self._under_way.values())
        self._under_way.clear()
        return left


def _lost(error: OSError) -> LostError:
    """What libnbd says of a connection that is gone; that it is, is to libnbd a fault of ours (EINVAL)."""
    why = "the server closed the connection" if error.errno == errno.EINVAL else error.strerror
    return LostError(errno.ENOTCONN, why)
