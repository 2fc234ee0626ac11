"""Two hosts with a server for disks and one for network cards each, and QEMUs; all ends with this process."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vfu_client.move.qemu import Qemu
from vfu_client.move.side import Side
from vfu_demo.network import Network, open_network
from vfu_images import program
from vfu_images.machine import Machine

DISK_SIZE = 64 << 20
STOP_SECONDS = 10.0


class StageError(Exception):
    """Something on a host does not start or do its work; the message has what it said."""


class Server:
    """One vfu-server."""

    def __init__(self, folder: Path, device: str, options: Sequence[str], within: Sequence[str] = ()) -> None:
        """Start it and wait for its `ready`. Raises StageError."""
        self.folder = folder
        self._log = folder.with_suffix(".log")
        self.command = ["vfu-server", "--socket-dir", str(folder), "--device", device, *options]
        run = [sys.executable, "-m", "vfu_server", *self.command[1:]]
        try:
            self._process = program.start(run, self._log, within=within)
        except program.NotReadyError as error:
            raise StageError(f"server {folder.name} did not start:\n{error}") from error

    @property
    def pid(self) -> int:
        """Its process."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

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


def for_a_guest(server: Server, bus: str) -> tuple[str, list[dict[str, Any]]]:
    """A `vfu-qemu` command, and what it says that QEMU's devices are, for a guest with the PF and its VFs.

    Raises StageError.
    """
    words = ["vfu-qemu", str(server.folder), "--bus", bus, "--json"]
    run = [sys.executable, "-m", "vfu_client.plug.cli", *words[1:]]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    if done.returncode:
        raise StageError(done.stderr.strip())
    devices: list[dict[str, Any]] = json.loads(done.stdout)["devices"]
    return " ".join(words), devices


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
    """A folder with the shared disk, and a network; what is started there ends with `until`."""

    def __init__(self, folder: Path, disk: Path, lan: Network, until: contextlib.ExitStack) -> None:
        self.folder = folder
        self.lan = lan
        self._disk = disk
        self._until = until

    def host(self, name: str) -> Host:
        """Start the servers of a host. Raises StageError."""
        return Host(
            name,
            self._server(f"{name}-disk", "blk", ["--disk", str(self._disk), "--disk", "pf=ram:16M"]),
            self._server(f"{name}-net", "net", ["--uplink", self.lan.uplink(name)]),
        )

    def _server(self, name: str, device: str, options: Sequence[str]) -> Server:
        server = Server(self.folder / name, device, ["--vfs", "2", *options], self.lan.inside)
        self._until.callback(server.close)
        return server

    def machine(self, *devices: dict[str, Any], **settings: Any) -> Machine:
        """Start a QEMU; its guest is booting, or it waits for one to move in."""
        return self._until.enter_context(Machine(devices=devices, spare_ports=0, **settings))


@contextlib.contextmanager
def open_stage(*hosts: str) -> Iterator[Stage]:
    """A stage for these hosts; leaving the context ends and removes all. Raises as `open_network` does."""
    with contextlib.ExitStack() as until:
        # The name of a socket has at most 107 bytes, so the folder has a short one.
        named = tempfile.TemporaryDirectory(prefix="vfu-demo-", ignore_cleanup_errors=True)
        folder = Path(until.enter_context(named))
        disk = folder / "disk.raw"
        with disk.open("wb") as file:
            file.truncate(DISK_SIZE)
        yield Stage(folder, disk, until.enter_context(open_network(folder, hosts)), until)
