"""The disk in memory: snapshots that later writes do not change, and what changed since a mark."""

from __future__ import annotations

import errno
from collections.abc import Callable

import numpy as np
import pytest

from pymodel.devices.block.content import capture
from pymodel.devices.block.disk import Job, Kind
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.errors import InvalidField
from pymodel.memory import Bytes

MIB = 1 << 20
CHUNK = 4 << 20


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


def test_zeroing_gives_chunks_back() -> None:
    """Whole chunks are freed, the rest is written; what a snapshot holds stays."""
    disk = RamDisk(9 * MIB)
    disk.write(0, [pattern(9 * MIB, 1)])
    taken = disk.snapshot()
    disk.zero(512, 9 * MIB - 512)
    assert content(disk, 0, 9 * MIB).tolist() == [1] * 512 + [0] * (9 * MIB - 512)
    assert [(offset, len(data)) for offset, data in disk.snapshot()] == [(0, 4 * MIB)]
    assert all((data == 1).all() for _, data in taken)


def test_zeroing_is_a_change() -> None:
    """Where there was something to zero; the end of the disk is the end of the last run."""
    disk = RamDisk(8 * MIB + 512)
    disk.write(4 * MIB, [pattern(4 * MIB + 512, 1)])
    mark = disk.mark()
    disk.zero(0, 8 * MIB + 512)
    changes = disk.changes(mark)
    assert [(offset, len(data)) for offset, data in changes] == [(4 * MIB, 4 * MIB), (8 * MIB, 512)]
    assert not any(data.any() for _, data in changes)
    assert disk.extent_of_changes(mark) == (2, 4 * MIB + 512)
    assert disk.snapshot() == []


def test_only_what_is_sent_is_taken() -> None:
    """Comparing changes with the whole marks no chunk of the one that is not sent as taken."""
    disk = RamDisk(64 * MIB)
    disk.write(0, [pattern(64 * MIB, 1)])
    mark = disk.mark()
    disk.write(0, [pattern(512, 2)])
    fields = capture(disk, mark)
    assert [(field.type, field.length) for field in fields] == [(0x201, 8 + 4096), (0x202, 16), (0x203, 16)]
    chunk = memory_of(disk, 32 * MIB)
    disk.write(32 * MIB, [pattern(512, 3)])
    assert memory_of(disk, 32 * MIB) is chunk
    shared = memory_of(disk, 0)
    disk.write(0, [pattern(512, 4)])
    assert memory_of(disk, 0) is not shared


def test_the_whole_is_sent_where_it_is_smaller() -> None:
    disk = RamDisk(8 * MIB)
    disk.write(0, [pattern(8 * MIB, 1)])
    mark = disk.mark()
    disk.zero(0, 8 * MIB)
    fields = capture(disk, mark)
    assert [(field.type, field.length) for field in fields] == [(0x200, 8), (0x203, 16)]


def memory_of(disk: RamDisk, offset: int) -> object:
    """The chunk itself: the array that a snapshot shows, looked at without taking one."""
    return disk._chunks[offset // RamDisk.CHUNK]


@pytest.fixture
def short_of_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Called, there is no memory for a chunk any more."""

    def none(*_: object) -> Bytes:
        raise MemoryError

    return lambda: monkeypatch.setattr(np, "zeros", none)


def test_no_memory_for_a_chunk_is_an_error_of_the_job(short_of_memory: Callable[[], None]) -> None:
    disk = RamDisk(3 * CHUNK)
    disk.write(0, [pattern(512, 1)])
    mark = disk.mark()
    short_of_memory()
    for offset in (CHUNK, CHUNK - 512):
        with pytest.raises(OSError, match="no memory") as caught:
            disk.attempt(Job(Kind.WRITE, offset, 1024), [pattern(1024, 2)])
        assert caught.value.errno == errno.ENOMEM
    assert not content(disk, CHUNK, 1024).any()
    assert content(disk, 0, 512).all()
    # What was done of it before is a change like any other.
    changed = {offset for offset, _ in disk.changes(mark)}
    assert CHUNK - 4096 in changed


def test_what_was_reserved_is_there_for_an_extent(short_of_memory: Callable[[], None]) -> None:
    disk = RamDisk(3 * CHUNK)
    disk.write(0, [pattern(512, 1)])
    disk.snapshot()
    disk.reserve([(512, 512), (CHUNK, CHUNK), (3 * CHUNK - 512, 512)], cleared=False)
    short_of_memory()
    for offset in (512, 3 * CHUNK - 512):
        disk.adopt(offset, pattern(512, 3))
    disk.adopt(CHUNK, pattern(CHUNK, 4))
    assert content(disk, 0, 1024).tolist() == [1] * 512 + [3] * 512
    assert content(disk, 3 * CHUNK - 512, 512).tolist() == [3] * 512


def test_what_was_reserved_is_there_after_a_clear(short_of_memory: Callable[[], None]) -> None:
    disk = RamDisk(CHUNK)
    disk.write(0, [pattern(512, 1)])
    disk.reserve([(512, 512)], cleared=True)
    short_of_memory()
    disk.clear()
    disk.adopt(512, pattern(512, 3))
    assert content(disk, 0, 1024).tolist() == [0] * 512 + [3] * 512
