"""The disk in memory: snapshots that later writes do not change, and what changed since a mark."""

from __future__ import annotations

import numpy as np
import pytest

from pymodel.devices.disk import RamDisk
from pymodel.errors import InvalidField
from pymodel.memory import Bytes

MIB = 1 << 20


def pattern(length: int, value: int) -> Bytes:
    return np.full(length, value, np.uint8)


def content(disk: RamDisk, offset: int, length: int) -> Bytes:
    out = pattern(length, 0xEE)
    disk.read(offset, [out[: length // 2], out[length // 2 :]])
    return out


def test_unwritten_is_zero() -> None:
    assert not content(RamDisk(9 * MIB), 3 * MIB, 5 * MIB).any()
    assert RamDisk(9 * MIB).snapshot() == []


@pytest.mark.parametrize("offset", [0, 512, 4 * MIB - 512, 8 * MIB - 4096])
def test_what_was_written_is_read(offset: int) -> None:
    """Also across the border of two chunks of 4 MiB, in pieces."""
    disk = RamDisk(9 * MIB)
    disk.write(offset, [pattern(512, 1), pattern(1024, 2)])
    assert content(disk, offset, 1536).tolist() == [1] * 512 + [2] * 1024
    assert content(disk, offset, 4096)[1536:].sum() == 0


def test_a_snapshot_does_not_change() -> None:
    disk = RamDisk(9 * MIB)
    disk.write(0, [pattern(512, 1)])
    disk.write(8 * MIB, [pattern(512, 2)])
    taken = disk.snapshot()
    disk.write(0, [pattern(512, 3)])
    disk.clear()
    assert [(offset, len(data), data[0]) for offset, data in taken] == [(0, 4 * MIB, 1), (8 * MIB, MIB, 2)]


def test_changes_since_a_mark() -> None:
    """Whole blocks of 4 KiB, neighbours in one run, runs cut at chunks of 4 MiB."""
    disk = RamDisk(9 * MIB)
    disk.write(0, [pattern(8192, 1)])
    mark = disk.mark()
    assert disk.changes(mark) == []
    disk.write(512, [pattern(512, 2)])
    disk.write(4 * MIB - 4096, [pattern(8192, 3)])
    changes = disk.changes(mark)
    assert [(offset, len(data)) for offset, data in changes] == [
        (0, 4096),
        (4 * MIB - 4096, 4096),
        (4 * MIB, 4096),
    ]
    assert changes[0][1][:1024].tolist() == [1] * 512 + [2] * 512
    disk.write(512, [pattern(512, 9)])
    assert changes[0][1][512] == 2
    assert disk.changes(disk.mark()) == []


def test_whole_chunks_are_taken_over() -> None:
    disk = RamDisk(9 * MIB)
    whole, tail, part = pattern(4 * MIB, 1), pattern(MIB, 2), pattern(512, 3)
    disk.adopt(0, whole)
    disk.adopt(8 * MIB, tail)
    disk.adopt(4 * MIB, part)
    assert np.shares_memory(disk.snapshot()[0][1], whole)
    assert np.shares_memory(disk.snapshot()[2][1], tail)
    assert content(disk, 4 * MIB, 1024).tolist() == [3] * 512 + [0] * 512


@pytest.mark.parametrize(("offset", "length"), [(9 * MIB, 1), ((1 << 64) - 512, 512), (0, 9 * MIB + 1)])
def test_what_is_not_on_the_disk(offset: int, length: int) -> None:
    with pytest.raises(InvalidField):
        RamDisk(9 * MIB).check(offset, length)
