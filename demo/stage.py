"""Two servers that share a disk, and the QEMUs on them; all of it ends with this process."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from images.machine import DIE_WITH_PARENT, Machine
from vfu_client.qemu import Qemu
from vfu_client.side import Side

DISK_SIZE = 64 << 20
STOP_SECONDS = 10.0


class StageError(Exception):
    """A server did not start; the message has what it said."""


class Server:
    """One vfu-server: a PF with a disk of its own in memory, and 4 VFs on the shared disk."""

    def __init__(self, name: str, folder: Path, disk: Path) -> None:
        """Start it and wait for its `ready`. Raises StageError."""
        self.name = name
        self.folder = folder / name
        self._log = folder / f"server-{name}.log"
        self.command = [
            "vfu-server", "--socket-dir", str(self.folder), "--device", "blk", "--vfs", "4",
            "--disk", str(disk), "--disk", "pf=ram:16M",
        ]  # fmt: skip
        run = [sys.executable, "-m", "vfu_server", *self.command[1:]]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [*DIE_WITH_PARENT, *run],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self._process.stdout is not None
        ready = self._process.stdout.readline()
        if not ready.startswith("ready"):
            self.close()
            raise StageError(f"server {name} did not start:\n{self.log}")

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text(errors="replace")

    def device(self, function: str) -> dict[str, Any]:
        """What attaches QEMU to a function of it."""
        socket = {"type": "unix", "path": str(self.folder / f"{function}.sock")}
        return {"driver": "vfio-user-pci", "id": function, "socket": socket, "x-msg-timeout": 30_000}

    def side(self, role: str, machine: Machine) -> Side:
        """One side of a move: this server and a QEMU on it."""
        return Side(role, Qemu(role, machine.qmp_path, machine.qtest_path), self.folder)

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()


class Stage:
    """A folder with the shared disk, and what is started there; leaving the context ends and removes all."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        # The name of a socket has at most 107 bytes, so the folder has a short one.
        self.folder = Path(tempfile.mkdtemp(prefix="vfu-demo-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self.disk = self.folder / "disk.raw"
        with self.disk.open("wb") as file:
            file.truncate(DISK_SIZE)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._stack.close()

    def server(self, name: str) -> Server:
        """Start a server."""
        server = Server(name, self.folder, self.disk)
        self._stack.callback(server.close)
        return server

    def machine(self, *devices: dict[str, Any], **settings: Any) -> Machine:
        """Start a QEMU; its guest is booting, or it waits for one to move in."""
        return self._stack.enter_context(Machine(devices=devices, spare_ports=0, **settings))
