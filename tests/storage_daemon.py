"""A real `qemu-storage-daemon` that exports an image over NBD, in the hands of a test."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Self

from vfu_images import program
from vfu_images.workspace import IMAGES

STOP_SECONDS = 20.0

DAEMON = IMAGES / "qemu-storage-daemon"


def make_qcow2(path: Path, size: int) -> None:
    """An empty image of `size` bytes."""
    command = [str(IMAGES / "qemu-img"), "create", "-q", "-f", "qcow2", str(path), str(size)]
    subprocess.run(command, check=True, capture_output=True, timeout=30)


class StorageDaemon:
    """The image as the export `disk` of a UNIX socket, to several clients at a time.

    `uri` is what `--disk` takes. It serves from `__enter__` on; the end of the context kills it.
    """

    def __init__(self, image: Path, folder: Path, *, driver: str = "raw", writable: bool = True) -> None:
        self.socket = folder / "nbd.sock"
        self.uri = f"nbd+unix:///disk?socket={self.socket}"
        file = {"driver": "file", "filename": os.fspath(image), "discard": "unmap"}
        node = {"driver": driver, "node-name": "disk", "discard": "unmap", "file": file}
        server = f"addr.type=unix,addr.path={self.socket}"
        export = {"type": "nbd", "id": "export", "node-name": "disk", "name": "disk", "writable": writable}
        self._command = [os.fspath(DAEMON), "--blockdev", json.dumps(node), "--nbd-server", server]
        self._command += ["--export", json.dumps(export)]
        # It greets on its monitor when all is there; the monitor's end is not the daemon's.
        self._command += ["--chardev", "stdio,id=monitor", "--monitor", "monitor"]
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Start it, again after it was killed."""
        self._process = program.start(self._command, self.socket.with_suffix(".log"), ready='{"QMP"')

    def stop(self) -> None:
        """Have it end as it should, with all it has in its image."""
        assert self._process is not None
        program.end(self._process, STOP_SECONDS)

    def kill(self) -> None:
        """SIGKILL it, if it runs."""
        if self._process is not None:
            program.kill(self._process)
