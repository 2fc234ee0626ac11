"""A request to a block device, on its way through its jobs. virtio 1.4, "Block Device"."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np

from pymodel.devices.block import config as block_config
from pymodel.devices.block.disk import Job, Kind
from pymodel.memory import Buffer, Bytes
from pymodel.spec import block

HEADER: Final = struct.Struct("<IIQ")
"""block.REQUEST: type, reserved, sector."""

ALIGNMENT: Final = 4096
"""Where the data of a job begins: what O_DIRECT may ask for at most."""


@dataclass(slots=True, eq=False)
class Request:
    """A request under way. `job` is the one that is next, or was started; None after the last."""

    buffer: Buffer
    kind: int
    jobs: Iterator[Job]
    job: Job | None
    room: int
    status: int = block.S_OK
    written: int = 0
    dropped: bool = False

    def views(self, job: Job) -> list[Bytes]:
        """Where the data of `job` is in guest memory."""
        if job.kind is Kind.READ:
            return self.buffer.writable.views(self.written, job.length, write=True)
        if job.kind is Kind.WRITE:
            return self.buffer.readable.views(HEADER.size + self.written, job.length, write=False)
        return []

    def go_on(self, job: Job) -> None:
        """`job` is done: the next one."""
        self.written += job.length
        self.job = next(self.jobs, None)


def pieces(kind: Kind, offset: int, length: int, *, durable: bool = False) -> Iterable[Job]:
    """Jobs that read or write a range, one piece each."""
    most = block_config.SEGMENT_BYTES
    if 0 < length <= most:
        return (Job(kind, offset, length, durable),)
    end = offset + length
    return (Job(kind, at, min(end - at, most), durable) for at in range(offset, end, most))


def private(length: int) -> Bytes:
    """Memory of our own, aligned for any file."""
    raw = np.empty(length + ALIGNMENT, np.uint8)
    start = -raw.__array_interface__["data"][0] % ALIGNMENT
    return raw[start : start + length]
