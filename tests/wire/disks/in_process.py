"""Disks of a server in the test's own process."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pymodel.devices.block.ram_disk import RamDisk
from tests.wire.in_process import serving
from vfu_server.disks.file import FileDisk


@contextlib.contextmanager
def served(image: Path, size: int, *, queues: int) -> Iterator[Path]:
    """The folder of a PF and two VFs on disks of `size` bytes: VF 1 on the image, the others in memory."""
    backends = {"pf": RamDisk(size), "vf1": FileDisk(image), "vf2": RamDisk(size)}
    with serving("blk", backends, queues=queues) as (path, _):
        yield path
