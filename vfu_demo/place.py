"""A host of its own: a network, mounts, a folder that no other host sees, and a way to log in.

Both hosts are namespaces of Linux: one cable joins them, and neither sees the other's folder, where all is
that it has of its own: sockets, keys, temporary files.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final, Self

import vfu_demo
from vfu_demo.login import NUMBER, USER, Login
from vfu_demo.namespace import Namespace, NamespaceError
from vfu_demo.network import (
    BRIDGE,
    BRIDGE_COMMANDS,
    PEER_ADDRESS,
    SETUP_SECONDS,
    TAP_COMMANDS,
    Verified,
    has_taps,
    ip,
)
from vfu_demo.stage import StageError
from vfu_images.openssh import SSH
from vfu_images.workspace import IMAGES

ADDRESSES: Final = {"a": "10.77.0.11", "b": "10.77.0.12"}
"""Of each host's bridge."""

CABLE, TAP = "cable", "guest"
PASSWD = f"root:x:0:0:root:/root:/bin/sh\n{USER}:x:{NUMBER}:{NUMBER}::{{home}}:/bin/sh\n"

MOUNTS = 'mount -t tmpfs none "$1" && mount --bind "$2" /etc/passwd'
BRIDGED = (
    *BRIDGE_COMMANDS,
    *TAP_COMMANDS,
    f"link set {CABLE} master {BRIDGE}",
    f"link set {CABLE} up",
)


class Place:
    """One host's, whose name the folder has. It is a context; `beside`, the other host, is entered before."""

    def __init__(self, folder: Path, other: Path, beside: Place | None = None) -> None:
        self.folder = folder
        self.name = folder.name
        self.address = ADDRESSES[self.name]
        folder.mkdir(mode=0o700, exist_ok=True)
        other.mkdir(mode=0o700, exist_ok=True)
        programs = folder / "bin"
        programs.mkdir()
        (programs / SSH).symlink_to(IMAGES / SSH)
        migrate = programs / "vfu-migrate"
        migrate.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m vfu_client.move.cli "$@"\n')
        migrate.chmod(0o755)
        self._environment = {
            "PATH": f"{programs}:{os.environ.get('PATH', os.defpath)}",
            # A command begins in another folder than this one's there.
            "PYTHONPATH": str(Path(vfu_demo.__file__).parents[1]),
            "TMPDIR": str(folder),
        }
        self.login = Login(self.name, folder / "ssh", self.address, self._environment)
        passwd = folder / "passwd"
        passwd.write_text(PASSWD.format(home=folder))
        first = ["sh", "-c", MOUNTS, "mounts", str(other), str(passwd)]
        of = None if beside is None else beside.namespace
        self.namespace: Namespace = Namespace("--net", "--mount", first=first, of=of)

    def __enter__(self) -> Self:
        """Raises NamespaceError."""
        self.namespace.__enter__()
        if not has_taps(self.namespace.inside):
            self.namespace.close()
            raise NamespaceError("no tap can be made: /dev/net/tun can't be opened")
        return self

    def __exit__(self, *_: object) -> None:
        self.namespace.close()

    @property
    def inside(self) -> list[str]:
        """What a command begins with that runs on this host."""
        variables = [f"{name}={value}" for name, value in self._environment.items()]
        return [*self.namespace.inside, "env", *variables]

    def run(self, *command: str, given: str = "") -> str:
        """Run a command on this host; what it prints. Raises StageError with what it says."""
        where = f"{shlex.join(command)} on host {self.name}"
        try:
            done = subprocess.run(
                [*self.inside, *command],
                input=given, capture_output=True, text=True, timeout=SETUP_SECONDS, check=False,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise StageError(f"{where}: no end within {SETUP_SECONDS:g} s") from error
        if done.returncode:
            raise StageError(f"{where}: {done.stderr.strip()}")
        return done.stdout

    @contextlib.contextmanager
    def joined(self, other: Place) -> Iterator[Cable]:
        """Lay a cable to another host, and let each one's user log in at the other. This one has the peer.

        Raises StageError.
        """
        cable = f"link add {CABLE} type veth peer name {CABLE} netns {other.namespace.pid}"
        peer = f"address add {PEER_ADDRESS}/24 dev {BRIDGE}"
        self._ip(cable, *self._bridged(), peer)
        other._ip(*other._bridged())
        for place in (self, other):
            place.login.make_keys(place.inside)
        self.login.lets_in(other.login)
        other.login.lets_in(self.login)
        with (
            self.login.served(self.inside),
            other.login.served(other.inside),
            contextlib.closing(Cable(self)) as lan,
        ):
            yield lan

    def _bridged(self) -> list[str]:
        return [command.format(address=self.address, tap=TAP) for command in BRIDGED]

    def _ip(self, *commands: str) -> None:
        self.run(*ip("-batch", "-"), given="\n".join(commands) + "\n")


class Cable(Verified):
    """The network of both: a bridge at each host, and a cable from one to the other."""

    about = (
        "a bridge with a tap at each host, and a cable from one to the other; the other end is A's own TCP"
    )

    def __init__(self, place: Place) -> None:
        super().__init__(place.folder)
        self.inside = place.inside

    def uplink(self, host: str) -> str:
        """See `Network`."""
        return f"tap:{TAP}"
