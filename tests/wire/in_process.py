"""A server in the test's own process: what it stands on can be replaced under it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pymodel.build import Options, build
from vfu_server.server import Folder, Server
from vfu_server.vfio.turn_lock import TurnLock


@contextlib.contextmanager
def serving(device: str, backends: Mapping[str, Any], *, queues: int = 1) -> Iterator[tuple[Path, Server]]:
    """A PF and VFs of a device type, each on its backend: the folder of their sockets, and the server."""
    with contextlib.ExitStack() as stack:
        path = Path(tempfile.mkdtemp(prefix="vfu-"))
        stack.callback(shutil.rmtree, path)
        held = Folder(path)
        stack.callback(held.close)
        vfs = len(backends) - 1
        options = Options(device, backends, vfs=vfs, total_vfs=vfs, queues=queues)
        yield path, stack.enter_context(Server(build(options, lock=TurnLock), held))
