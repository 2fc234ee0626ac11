"""Disks of a server in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pymodel.devices.block.device import BlockDevice
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.memory import Buffer
from tests.wire.in_process import serving
from vfu_server.disks.file import FileDisk


def kinds_taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The types of the requests that devices take from now on, so that no engine does them."""
    kinds: list[int] = []
    take = BlockDevice.take

    def taken(device: BlockDevice, buffer: Buffer) -> None:
        kinds.append(buffer.readable.read(0, 4)[0])
        take(device, buffer)

    monkeypatch.setattr(BlockDevice, "take", taken)
    return kinds


@contextlib.contextmanager
def served(image: Path, size: int, *, queues: int) -> Iterator[Path]:
    """The folder of a PF and two VFs on disks of `size` bytes: VF 1 on the image, the others in memory."""
    backends = {"pf": RamDisk(size), "vf1": FileDisk(image), "vf2": RamDisk(size)}
    with serving("blk", backends, queues=queues) as (path, _):
        yield path
