"""Two hosts with a server for disks and one for network cards each, and QEMUs; all ends with this process."""

from __future__ import annotations

import contextlib
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from demo.network import open_network
from images import program
from images.machine import Machine
from vfu_client.move.qemu import Qemu
from vfu_client.move.side import Side

DISK_SIZE = 64 << 20
STOP_SECONDS = 10.0


class StageError(Exception):
    """A server did not start; the message has what it said."""


class Server:
    """One vfu-server of a host: a PF and 2 VFs."""

    def __init__(self, folder: Path, device: str, options: Sequence[str], within: Sequence[str]) -> None:
        """Start it and wait for its `ready`. Raises StageError."""
        self.folder = folder
        self._log = folder.with_suffix(".log")
        self.command = [
            "vfu-server", "--socket-dir", str(folder), "--device", device, "--vfs", "2", *options,
        ]  # fmt: skip
        run = [sys.executable, "-m", "vfu_server", *self.command[1:]]
        try:
            self._process = program.start(run, self._log, within=within)
        except program.NotReadyError as error:
            raise StageError(f"server {folder.name} did not start:\n{error}") from error

    @property
    def log(self) -> str:
        """What it logged so far."""
        return self._log.read_text(errors="replace")

    def device(self, function: str, identifier: str) -> dict[str, Any]:
        """What attaches QEMU to a function of it."""
        socket = {"type": "unix", "path": str(self.folder / f"{function}.sock")}
        return {"driver": "vfio-user-pci", "id": identifier, "socket": socket, "x-msg-timeout": 30_000}

    def close(self) -> None:
        """End it."""
        program.end(self._process, STOP_SECONDS)


class Host:
    """Two servers, one for disks and one for network cards. The disk is every host's; the PF has its own."""

    def __init__(self, name: str, disk: Server, net: Server) -> None:
        self.name = name
        self.disk = disk
        self.net = net

    def devices(self) -> list[dict[str, Any]]:
        """The guest's VFs here: VF 1 of each server."""
        return [self.disk.device("vf1", "disk"), self.net.device("vf1", "net")]

    def side(self, role: str, machine: Machine) -> Side:
        """One side of a move: the servers, and a QEMU here."""
        servers = {"disk": self.disk.folder, "net": self.net.folder}
        return Side(role, Qemu(role, machine.qmp_path, machine.qtest_path), servers)


class Stage:
    """A folder with the shared disk, and a network, and what is started there; leaving the context ends and
    removes all.
    """

    def __init__(self, *hosts: str) -> None:
        self._stack = contextlib.ExitStack()
        self._hosts = hosts
        # The name of a socket has at most 107 bytes, so the folder has a short one.
        self.folder = Path(tempfile.mkdtemp(prefix="vfu-demo-"))
        self._stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
        self._disk = self.folder / "disk.raw"
        with self._disk.open("wb") as file:
            file.truncate(DISK_SIZE)

    def __enter__(self) -> Self:
        """Set the network up. Raises NetworkError, or what Machine does."""
        with contextlib.ExitStack() as stack:
            stack.push(self._stack.pop_all())
            self.lan = stack.enter_context(open_network(self.folder, self._hosts))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def host(self, name: str) -> Host:
        """Start the servers of a host. Raises StageError."""
        return Host(
            name,
            self._server(f"{name}-disk", "blk", ["--disk", str(self._disk), "--disk", "pf=ram:16M"]),
            self._server(f"{name}-net", "net", ["--uplink", self.lan.uplink(name)]),
        )

    def _server(self, name: str, device: str, options: Sequence[str]) -> Server:
        server = Server(self.folder / name, device, options, self.lan.inside)
        self._stack.callback(server.close)
        return server

    def machine(self, *devices: dict[str, Any], **settings: Any) -> Machine:
        """Start a QEMU; its guest is booting, or it waits for one to move in."""
        return self._stack.enter_context(Machine(devices=devices, spare_ports=0, **settings))
