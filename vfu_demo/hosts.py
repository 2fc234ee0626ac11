"""A guest moves A → B → A between hosts that share nothing but a network, by `vfu-migrate` and ssh.

Its disk is in the memory of the server, and moves too. Leaves demo-hosts.json and demo-hosts.svg in BUILD.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vfu_client.move.report import Report
from vfu_demo import show
from vfu_demo.namespace import NamespaceError
from vfu_demo.network import Network
from vfu_demo.outcome import Moved, finish, moved
from vfu_demo.place import Place
from vfu_demo.show import LostError
from vfu_demo.stage import Host, Server, StageError
from vfu_demo.traffic import Traffic
from vfu_images.machine import Machine
from vfu_images.program import DIE_WITH_PARENT
from vfu_images.workspace import SetupError

DISK = "ram:64M"


class SeparateHost(Host):
    """One with a place of its own: all that runs here runs there."""

    def __init__(self, place: Place, lan: Network, until: contextlib.ExitStack) -> None:
        """Start its servers. Raises StageError."""
        self.place = place
        self._until = until
        disk = self._server("blk", "--disk", DISK)
        super().__init__(place.name, disk, self._server("net", "--uplink", lan.uplink(place.name)))

    def _server(self, device: str, *options: str) -> Server:
        server = Server(self.place.folder / device, device, ["--vfs", "2", *options], self.place.inside)
        self._until.callback(server.close)
        return server

    def machine(self, *, incoming: bool = False) -> Machine:
        """Start a QEMU here; its guest is booting, or it waits for one to move in."""
        return self._until.enter_context(
            Machine(
                devices=self.devices(),
                spare_ports=0,
                incoming=incoming,
                within=self.place.inside,
                temporaries=self.place.folder,
            )
        )

    def named(self, end: str, machine: Machine) -> list[str]:
        """The options of `vfu-migrate` for this host, at that end of a move."""
        return [
            f"--{end}-qmp", str(machine.qmp_path), f"--{end}-qtest", str(machine.qtest_path),
            f"--{end}-server", f"disk={self.disk.folder}", f"--{end}-server", f"net={self.net.folder}",
        ]  # fmt: skip


def play() -> None:
    """Play it."""
    with contextlib.ExitStack() as until:
        with show.step("two hosts, A and B, each with a network, a folder and an sshd of its own"):
            a, b, lan = until.enter_context(_hosts())
        with show.step("servers on both, for disks in memory and for network cards"):
            hosts = SeparateHost(a, lan, until), SeparateHost(b, lan, until)
        for server in (hosts[0].disk, hosts[0].net):
            print(f"    {' '.join(server.command)}")
        print(f"    the network: {lan.about}")
        _demo(*hosts, lan)


@contextlib.contextmanager
def _hosts() -> Iterator[tuple[Place, Place, Network]]:
    """Both, and the network. Raises SetupError where there may be no namespaces, and StageError."""
    # The name of a socket has at most 107 bytes, so the folder has a short one.
    named = tempfile.TemporaryDirectory(prefix="vfu-demo-", ignore_cleanup_errors=True)
    with contextlib.ExitStack() as until:
        folder = Path(until.enter_context(named))
        try:
            a = until.enter_context(Place(folder / "a", folder / "b"))
            b = until.enter_context(Place(folder / "b", folder / "a", beside=a))
        except NamespaceError as error:
            raise SetupError(
                "this demo needs namespaces of networks and mounts for its hosts, and here none may be made:"
                f" {error}\nRun it as root, and outside of containers; sysctl user.max_user_namespaces must"
                " not be 0. `vfu-demo moves` needs none."
            ) from error
        yield a, b, until.enter_context(a.joined(b))


def _demo(a: SeparateHost, b: SeparateHost, lan: Network) -> None:
    with show.step("each logs in at the other, and finds none of its own files there"):
        for here, there in ((a, b), (b, a)):
            _look(here, there)
    show.lines(f"{a.place.login.command('b')} ls -A {a.place.folder}")
    with show.step("a guest boots on A, with a disk VF and a net VF"):
        guest = a.machine()
        guest.wait_ready()
    with show.step("the guest writes to its disk and talks TCP; both ends check every byte"):
        traffic = Traffic(guest, lan)
        traffic.await_more()
    moves: list[Moved] = []
    for source, destination in ((a, b), (b, a)):
        guest, made = _move(source, destination, guest, traffic)
        moves.append(made)
    finish("demo-hosts", moves, traffic)


def _look(here: SeparateHost, there: SeparateHost) -> None:
    """Log in from one at the other. Raises LostError where that one sees this one's files, and StageError."""
    look = ["ls", "-A", str(here.place.folder)]
    own = here.place.run(*look)
    # The shell there splits what ssh joined.
    theirs = here.place.run(*shlex.split(here.place.login.command(there.name)), shlex.join(look))
    if theirs or not own:
        raise LostError(f"host {there.name} sees the files of {here.name}: {theirs.split()}")


def _move(
    source: SeparateHost, destination: SeparateHost, guest: Machine, traffic: Traffic
) -> tuple[Machine, Moved]:
    """Move the guest to a fresh QEMU at the other host, and end the old one."""
    here, there = source.name.upper(), destination.name.upper()
    with show.step(f"move {here} → {there}, under traffic"):
        target = destination.machine(incoming=True)
        clock = traffic.clock()
        command = [
            "vfu-migrate", "--json", *source.named("from", guest), *destination.named("to", target),
            "--to-command", source.place.login.command(destination.name),
            "--ram-address", destination.place.address, "--vf", "disk/vf1", "--vf", "net/vf1",
        ]  # fmt: skip
        report = _made(source, command)
        guest.close()
        traffic.moved(target)
    show.lines(shlex.join(command))
    with show.step("it goes on there"):
        traffic.await_more()
    return target, moved(here, there, report, traffic, clock)


def _made(source: SeparateHost, command: list[str]) -> Report:
    """Have the source make a move, and what it says of it. Raises StageError."""
    done = subprocess.run(
        [*source.place.inside, *DIE_WITH_PARENT, *command],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise StageError(f"vfu-migrate did not move the guest:\n{done.stderr.strip()}")
    told: dict[str, Any] = json.loads(done.stdout)
    return Report.load(told)
