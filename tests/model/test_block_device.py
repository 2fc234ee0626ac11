"""The block device between a disk and one buffer: what a guest gets when the disk can't."""

from __future__ import annotations

import errno
import struct

import numpy as np
import pytest

from pymodel.devices.block import BlockDevice
from pymodel.devices.disk import RamDisk
from pymodel.errors import BrokenQueue
from pymodel.memory import Buffer, Bytes, Segments
from tests.model.fakes import FakeMemory

IOERR = 1


class ReadOnlyDisk(RamDisk):
    read_only = True


class FailingDisk(RamDisk):
    """Every access fails, as of a broken drive."""

    def read(self, offset: int, views: list[Bytes]) -> None:
        views[0][:] = 0x11
        raise OSError(errno.EIO, "broken")

    def write(self, offset: int, views: list[Bytes]) -> None:
        raise OSError(errno.ENOSPC, "full")

    def flush(self) -> None:
        raise OSError(errno.EIO, "broken")


def device(disk: RamDisk) -> BlockDevice:
    return BlockDevice(disk, name="s" * 40, queues=1)


def answer(block: BlockDevice, kind: int, out: int = 0, room: int = 0, header: int = 16) -> tuple[int, int]:
    """(status, used length) of a request for sector 0."""
    memory = FakeMemory(1 << 16)
    memory.data[:16] = np.frombuffer(struct.pack("<IIQ", kind, 0, 0), np.uint8)
    used: list[int] = []
    readable = Segments(memory, [(0, header), (0x1000, out)])
    block.take(Buffer(0, readable, Segments(memory, [(0x2000, room + 1)]), used.append))
    return int(memory.data[0x2000 + room]), used[0]


def test_read_only() -> None:
    """F_RO is offered, a write is an I/O error and writes nothing."""
    disk = ReadOnlyDisk(4096)
    block = device(disk)
    assert block.features >> 5 & 1
    assert answer(block, 1, out=512) == (IOERR, 1)
    assert disk.snapshot() == []
    assert answer(block, 0, room=512) == (0, 513)
    assert not device(RamDisk(4096)).features >> 5 & 1


@pytest.mark.parametrize(("kind", "out", "room"), [(0, 0, 512), (1, 512, 0), (4, 0, 0)])
def test_a_failing_disk_is_an_io_error(kind: int, out: int, room: int) -> None:
    """The used length does not claim data that was not read."""
    assert answer(device(FailingDisk(4096)), kind, out, room) == (IOERR, 0 if room else 1)


@pytest.mark.parametrize("header", [0, 15])
def test_no_header(header: int) -> None:
    with pytest.raises(BrokenQueue):
        answer(device(RamDisk(4096)), 4, header=header)


def test_id_is_cut_to_20_bytes() -> None:
    assert answer(device(RamDisk(4096)), 8, room=20) == (0, 21)
