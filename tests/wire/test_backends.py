"""Disks in files: every byte where it belongs, however the guest's buffers are cut."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pymodel.memory import Bytes
from vfu_server.backends import IOV_MAX, FileDisk


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


def cut(data: Bytes, lengths: list[int]) -> list[Bytes]:
    ends = np.cumsum(lengths)
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


def test_reads_and_writes_scattered(image: Path) -> None:
    disk = FileDisk(image)
    assert (disk.size, disk.read_only) == (16384, False)
    data = np.zeros(1024, np.uint8)
    views = cut(data, [1, 0, 511, 12, 500])
    disk.read(512, views)
    assert data.tobytes() == image.read_bytes()[512:1536]
    data[:] = 9
    disk.write(1024, views)
    disk.flush()
    assert image.read_bytes()[1020:1028] == b"\xfc\xfd\xfe\xff\x09\x09\x09\x09"
    assert image.read_bytes()[2048:2050] == b"\0\1"
    disk.close()


def test_more_pieces_than_the_kernel_takes(image: Path) -> None:
    disk = FileDisk(image)
    data = np.arange(3 * IOV_MAX, dtype=np.uint8)
    disk.write(0, cut(data, [1] * len(data)))
    back = np.zeros_like(data)
    disk.read(0, cut(back, [2] * (len(back) // 2)))
    assert np.array_equal(back, data)
    disk.close()


def test_short_transfers_go_on(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.preadv
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:5]], offset))
    disk = FileDisk(image)
    data = np.zeros(300, np.uint8)
    disk.read(100, cut(data, [7, 3, 290]))
    assert data.tobytes() == image.read_bytes()[100:400]
    disk.close()


def test_an_image_that_shrank_is_an_error(image: Path) -> None:
    disk = FileDisk(image)
    os.truncate(image, 512)
    with pytest.raises(OSError, match="shorter"):
        disk.read(512, [np.zeros(512, np.uint8)])
    disk.close()


@pytest.mark.parametrize("size", [0, 511, 513])
def test_no_whole_sectors(tmp_path: Path, size: int) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"truncate -s (512|1024) "):
        FileDisk(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileDisk(tmp_path / "none.img")
