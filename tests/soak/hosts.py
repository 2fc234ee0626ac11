"""Two hosts whose servers may be killed and started again, and the guest, of which there is always one."""

from __future__ import annotations

import contextlib
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from tests.soak.kinds import BrokenError
from vfu_demo.network import Network
from vfu_demo.stage import Server
from vfu_demo.traffic import Traffic
from vfu_images.machine import Machine
from vfu_images.qmp import QMPError

OWNER: Final = (sys.executable, "-m", "vfu_client.owner.cli")
SERVERS: Final = ("disk", "net")
FILE_VF, MEMORY_VF = 1, 2
"""The VFs that are the guest's disk: one in a file that both hosts see, one in memory."""


class Host:
    """A server for disks, and one for network cards."""

    def __init__(self, name: str, folder: Path, image: Path, lan: Network) -> None:
        self.name = name
        self._folder = folder
        self._lan = lan
        disks = ["pf=ram:1M", f"vf{FILE_VF}={image}", f"vf{MEMORY_VF}=ram:32M", "vf3=ram:1M"]
        self._options = {
            "disk": ("blk", ["--vfs", "3", *(word for disk in disks for word in ("--disk", disk))]),
            "net": ("net", ["--vfs", "1", "--uplink", lan.uplink(name)]),
        }
        self.servers: dict[str, Server] = {}
        self._read: dict[str, int] = {}

    def start(self) -> None:
        """Start what does not run. Raises StageError."""
        for kind, (device, options) in self._options.items():
            if kind not in self.servers or not self.servers[kind].alive:
                if kind in self.servers:
                    self.servers[kind].close()
                folder = self._folder / f"{self.name}-{kind}"
                self.servers[kind] = Server(folder, device, options, self._lan.inside)

    def set_going(self) -> None:
        """Have the VFs run that a guest's end in the middle of a move left standing, as users are told to."""
        for kind, vfs in (("disk", (FILE_VF, MEMORY_VF)), ("net", (1,))):
            for vf in vfs:
                owner = [*OWNER, "--pf", str(self.servers[kind].folder), "mode", f"vf{vf}", "active"]
                done = subprocess.run(owner, capture_output=True, text=True, timeout=60, check=False)
                if done.returncode:
                    raise BrokenError(f"{' '.join(owner)}: {done.stderr}")

    def devices(self, disk_vf: int) -> list[dict[str, Any]]:
        """The guest's VFs here."""
        return [self.servers["disk"].device(f"vf{disk_vf}", "disk"), self.servers["net"].device("vf1", "net")]

    def check_logs(self) -> None:
        """Raise BrokenError where a server told of an exception since this was asked last."""
        for kind, server in self.servers.items():
            log = server.log
            new = log[self._read.get(kind, 0) :]
            self._read[kind] = len(log)
            if "Traceback" in new or "ERROR" in new:
                raise BrokenError(f"the server {self.name}-{kind} says:\n{new[-4000:]}")

    def close(self) -> None:
        for server in self.servers.values():
            server.close()


class World:
    """What is killed at random; `restore` makes it whole again."""

    def __init__(self, folder: Path, lan: Network, chance: Callable[[], random.Random]) -> None:
        self.folder = folder
        self.lan = lan
        self._chance = chance
        image = folder / "disk.raw"
        with image.open("wb") as file:
            file.truncate(64 << 20)
        self.here, self.there = (Host(name, folder, image, lan) for name in ("a", "b"))
        self.disk_vf = FILE_VF
        self.guest: Machine | None = None
        self.target: Machine | None = None
        self.traffic: Traffic | None = None

    def restore(self) -> None:
        """Start what does not run, and boot a guest where there is none, which is busy then."""
        self.here.start()
        self.there.start()
        if self.guest is None:
            self.here.set_going()
            self.there.set_going()
            self.disk_vf = self._chance().choice((FILE_VF, MEMORY_VF))
            self.guest = self._machine(self.here)
            self.guest.wait_ready(timeout=120)
            self.traffic = Traffic(self.guest, self.lan)
            self.traffic.await_more()

    def _machine(self, host: Host, **settings: Any) -> Machine:
        """Start a QEMU there. Its logs stay until the next one but one."""
        theirs = None if self.guest is None else self.guest.folder
        folder = next(place for place in (self.folder / "qemu-0", self.folder / "qemu-1") if place != theirs)
        shutil.rmtree(folder, ignore_errors=True)
        return Machine(
            devices=host.devices(self.disk_vf), spare_ports=0, folder=folder, **settings
        ).__enter__()

    @contextlib.contextmanager
    def incoming(self) -> Iterator[Machine]:
        """A QEMU on the other host that waits for the guest; it ends unless that is the guest's now."""
        self.target = self._machine(self.there, incoming=True)
        try:
            yield self.target
        finally:
            if self.target is not self.guest:
                self.target.close()
            self.target = None

    def arrived(self, target: Machine) -> None:
        """The guest is in this machine now, on the other host."""
        assert self.guest is not None
        assert self.traffic is not None
        self.guest.close()
        self.guest = target
        self.traffic.moved(target)
        self.here, self.there = self.there, self.here

    def lose_guest(self) -> None:
        """There is no guest any more."""
        if self.guest is not None:
            self.guest.close()
        self.guest = self.traffic = None

    def verify(self) -> None:
        """Have the guest read back all that it wrote and end its connection. Raises BrokenError."""
        assert self.guest is not None
        assert self.traffic is not None
        guest, peer = self.traffic.finish_tcp()
        if {guest["resets"], guest["corrupt"], peer["resets"], peer["corrupt"]} != {"0"}:
            raise BrokenError(f"TCP: {guest} {peer}")
        disk = self.traffic.finish_disk()
        if disk["lost"] or disk["corrupt"] or disk["errors"]:
            raise BrokenError(f"disk: {disk}")
        self.traffic = Traffic(self.guest, self.lan)

    def processes(self) -> dict[str, int]:
        """Who runs now, by name, and the ids."""
        found = {
            f"{kind} {host.name}": server.pid
            for host in (self.here, self.there)
            for kind, server in host.servers.items()
        }
        return found | ({"QEMU": self.guest.pid} if self.guest is not None else {})

    def close(self) -> None:
        self.lose_guest()
        self.here.close()
        self.there.close()


def runs(machine: Machine) -> bool:
    """Whether a guest runs there."""
    try:
        return bool(machine.qmp("query-status")["status"] == "running")
    except (QMPError, OSError):
        return False
