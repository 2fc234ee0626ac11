"""A server in the test's own process: what it stands on can be replaced under it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from pymodel.build import Options, build
from pymodel.devices.block.ram_disk import RamDisk
from vfu_server.disks.file import FileDisk
from vfu_server.server import Folder, Server
from vfu_server.vfio.turn_lock import TurnLock


@contextlib.contextmanager
def served(image: Path, size: int, *, queues: int) -> Iterator[Path]:
    """The folder of a PF and two VFs on disks of `size` bytes: VF 1 on the image, the others in memory."""
    path = Path(tempfile.mkdtemp(prefix="vfu-"))
    held = Folder(path)
    backends = {"pf": RamDisk(size), "vf1": FileDisk(image), "vf2": RamDisk(size)}
    device = build(Options("blk", backends, vfs=2, total_vfs=2, queues=queues), lock=TurnLock)
    with Server(device, held):
        yield path
    held.close()
    shutil.rmtree(path)
