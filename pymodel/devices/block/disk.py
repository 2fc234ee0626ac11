"""What a block device keeps its sectors on.

Files are the server's business (`vfu_server`), a disk in memory is in `ram_disk`; both are this Protocol.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from pymodel.devices.block.store import Store
from pymodel.memory import Bytes


class Kind(enum.Enum):
    """What a disk can be asked for."""

    READ = enum.auto()
    WRITE = enum.auto()
    ZERO = enum.auto()
    DISCARD = enum.auto()
    FLUSH = enum.auto()


@dataclass(frozen=True, slots=True)
class Shape:
    """What a driver is told about a disk beside its size; all but `frees` in bytes.

    `block` is the least that can be read or written, `physical` what does so without reading first, `optimal`
    a good size for much data (0: not known). `frees` tells whether DISCARD, and ZERO with `unmap`, give
    space back.
    """

    block: int = 512
    physical: int = 4096
    optimal: int = 0
    frees: bool = True


@dataclass(slots=True, eq=False)
class Job:
    """A piece of work for a disk. Offset and length in bytes were checked against its size and block.

    `durable`: a WRITE or ZERO is not done before it is on stable storage. `unmap`: ZERO may free the space.
    `data` is memory of the device's own, to fill or to store, and `error` what went wrong: both are for jobs
    that were started.
    """

    kind: Kind
    offset: int = 0
    length: int = 0
    durable: bool = False
    unmap: bool = False
    data: Bytes | None = None
    error: OSError | None = None


class Disk(Protocol):
    """A store of `size` bytes, a multiple of `shape.block`.

    Called with the lock of its function held, so nothing here waits. A job that may have to is started, goes
    on elsewhere, and comes back by `finished` after the function was woken.
    """

    size: int
    shape: Shape
    read_only: bool
    in_order: bool
    """Whether every attempt succeeds, so that jobs are done in the order in which they come."""

    def connect(self, wake: Callable[[], None]) -> None:
        """Called by each device that comes to stand on this disk. `wake` has it serviced; it never blocks."""
        ...

    def ready(self) -> bool:
        """Whether jobs can be given to it now. If not, it sees to that, and wakes the device then."""
        ...

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """Do a job at once, on `views` of guest memory. False: it may have to wait, `views` hold anything.

        Raises OSError; the range then holds anything.
        """
        ...

    def at_once(self) -> Store | None:
        """What an engine may use now, while the function's lock is held; None where it has to wait for
        anything.

        The same object as long as the disk is `ready`.
        """
        ...

    def start(self, job: Job) -> None:
        """Begin a job after `ready`. It touches nothing but `job`."""
        ...

    def work_unlocked(self) -> bool:
        """Do jobs that were started and should be over in a moment. Whether there were any.

        Called on the function's own thread without its lock, soon after `start`. It wakes nobody.
        """
        ...

    def finished(self) -> list[Job]:
        """Jobs that have ended since the last call, in the order in which they did."""
        ...

    def abandon(self) -> None:
        """The driver is gone: what was started is forgotten, then the disk is let go.

        Not `ready` before nothing of it is under way any more.
        """
        ...

    def expect_release(self, *, soon: bool) -> None:
        """Whether a `release` is to come, which then should find little that is not durable yet.

        A hint, until it is taken back or another device connects. Requests need not wait for what is done.
        """
        ...

    def release(self) -> bool:
        """Make all durable and let another host have the disk. False: under way, it wakes; call again.

        Raises OSError where that failed; the disk is then as before the first call.
        """
        ...
