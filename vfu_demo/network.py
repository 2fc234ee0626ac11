"""The network between the demo's two hosts, and one on it who talks to the guest: the other end of netverify.

Where this user may make a network namespace (root, or unprivileged user namespaces), there is one with a
bridge. Each server runs inside and has a tap on the bridge as its uplink, and netverify runs inside too, on
the bridge's own address: the TCP of the host's kernel. "Two hosts" are two ports of a bridge, as they are two
ports of a switch in a rack: a guest that moves turns up at another port, and the bridge has to learn it. A
namespace for each host would add two cables and show no more.

Anywhere else the uplinks are Unix sockets that `hub` joins, and learns from in the same way. A TCP of
its own is not to be had there without privilege, other than in a guest: so a second small guest, on a QEMU of
its own and no VF, is the other end.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol, Self

from vfu_demo.gaps import GAP_MS, Clock, Gap, gaps_in
from vfu_demo.hub import Hub
from vfu_demo.namespace import Namespace, NamespaceError
from vfu_images import initramfs, private
from vfu_images.job import Job
from vfu_images.machine import Machine
from vfu_images.program import DIE_WITH_PARENT, kill
from vfu_images.workspace import IMAGES

GUEST_ADDRESS, PEER_ADDRESS = "10.77.0.2", "10.77.0.1"
PORT = 5001
BRIDGE = "lan"
REPORT_MS = 200
SETUP_SECONDS = 10.0
END_SECONDS = 30.0

BRIDGE_COMMANDS = (
    f"link add {BRIDGE} type bridge forward_delay 0",
    f"address add {{address}}/24 dev {BRIDGE}",
    f"link set {BRIDGE} up",
    "link set lo up",
)
TAP_COMMANDS = (
    "tuntap add dev {tap} mode tap",
    f"link set {{tap}} master {BRIDGE}",
    "link set {tap} up",
)

Figures = dict[str, str]
"""The key=value pairs of netverify."""


class NetworkError(Exception):
    """The network, or the peer on it, does not do what it should; the message has what was said."""


class Network(Protocol):
    """What both kinds have."""

    inside: list[str]
    """What a server's command begins with."""

    about: str
    """For people: what it is."""

    def uplink(self, host: str) -> str:
        """What `--uplink` of that host's server is."""

    def listen(self, rate_kib: int) -> None:
        """Start `netverify receive` at PEER_ADDRESS, which sends so much a second; another one ends."""

    def figures(self) -> Figures:
        """What it said last; empty before it began."""

    def gaps(self) -> list[Gap]:
        """When nothing came from the guest, by this host's CLOCK_MONOTONIC."""

    def finish(self) -> Figures:
        """Stop both ends, and what it found. Raises NetworkError, TimeoutError."""


@contextlib.contextmanager
def open_network(folder: Path, hosts: tuple[str, ...]) -> Iterator[Network]:
    """The better one of those that this user can have; its files are in `folder`.

    Raises NetworkError, or what Hub and Machine do.
    """
    bridged = Bridged(folder, hosts)
    with bridged if bridged.possible() else Hubbed.open(folder, hosts) as network:
        yield network


class Verified:
    """What has the kernel's TCP for its other end: netverify runs `inside`, where PEER_ADDRESS is."""

    def __init__(self, folder: Path) -> None:
        self.inside: list[str] = []
        self._log = folder / "netverify.log"
        self._verifier: subprocess.Popen[bytes] | None = None

    def close(self) -> None:
        """End netverify. May be called twice."""
        if self._verifier is not None:
            kill(self._verifier)
        self._verifier = None

    def listen(self, rate_kib: int) -> None:
        """See `Network`."""
        self.close()
        command = [str(IMAGES / "netverify"), *receive(rate_kib)]
        with self._log.open("wb") as log:
            self._verifier = subprocess.Popen(
                [*self.inside, *DIE_WITH_PARENT, *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log
            )
        deadline = time.monotonic() + SETUP_SECONDS
        while not self.figures():
            if time.monotonic() > deadline or self._verifier.poll() is not None:
                raise NetworkError(f"netverify does not run: {self._log.read_text(errors='replace')}")
            time.sleep(0.02)

    def figures(self) -> Figures:
        """See `Network`."""
        return last_figures(self._log.read_text(errors="replace"))

    def gaps(self) -> list[Gap]:
        """See `Network`."""
        return gaps_in(self._log.read_text(errors="replace"))

    def finish(self) -> Figures:
        """See `Network`."""
        assert self._verifier is not None
        self._verifier.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._verifier.wait(END_SECONDS)
        return done_figures(self._log.read_text(errors="replace"))


class Bridged(Verified):
    """A network namespace with a bridge and a tap for each host; it ends with this process."""

    about = "a bridge with a tap for each host, in a network namespace; the other end is this kernel's TCP"

    def __init__(self, folder: Path, hosts: tuple[str, ...]) -> None:
        super().__init__(folder)
        script = folder / "bridge.ip"
        bridge = [command.format(address=PEER_ADDRESS) for command in BRIDGE_COMMANDS]
        taps = [command.format(tap=self._tap(host)) for host in hosts for command in TAP_COMMANDS]
        script.write_text("\n".join([*bridge, *taps]) + "\n")
        self._namespace = Namespace("--net", first=ip("-batch", str(script)))

    def possible(self) -> bool:
        """Whether this user can have one, which is tried."""
        try:
            with self:
                return has_taps(self.inside)
        except NetworkError:
            return False

    def __enter__(self) -> Self:
        try:
            self.inside = self._namespace.__enter__().inside
        except NamespaceError as error:
            raise NetworkError(f"no network namespace with a bridge: {error}") from error
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
        self._namespace.close()

    @staticmethod
    def _tap(host: str) -> str:
        return f"host-{host}"

    def uplink(self, host: str) -> str:
        """See `Network`."""
        return f"tap:{self._tap(host)}"


class Hubbed:
    """Unix sockets that a hub joins, and a small guest as the other end."""

    def __init__(self, sockets: Mapping[str, Path], peer: Machine) -> None:
        self.inside: list[str] = []
        self.about = (
            "Unix sockets with a switch between them (no network namespace here); the other end is a guest"
        )
        self._sockets = sockets
        self._peer = peer
        self._job: Job | None = None
        self._clock: Clock | None = None

    @classmethod
    @contextlib.contextmanager
    def open(cls, folder: Path, hosts: tuple[str, ...]) -> Iterator[Self]:
        """Such a network with a socket for each host; leaving the context ends the hub and the guest."""
        sockets = {name: folder / f"hub-{name}.sock" for name in (*hosts, "peer")}
        netdev = f"stream,id=lan,server=off,addr.type=unix,addr.path={sockets['peer']}"
        with (
            Hub(list(sockets.values())),
            Machine(
                devices=[{"driver": "virtio-net-pci", "netdev": "lan"}],
                arguments=["-netdev", netdev],
                memory_mib=128,
                spare_ports=0,
            ) as peer,
        ):
            yield cls(sockets, peer)

    def uplink(self, host: str) -> str:
        return f"stream:{self._sockets[host]}"

    def listen(self, rate_kib: int) -> None:
        if self._job is not None:
            self._peer.run(f"kill -KILL $(cat {self._job.folder}/pid)")  # which may have ended
        else:
            self._peer.wait_ready()
            self._peer.check(f"/bin/ip address add {PEER_ADDRESS}/24 dev eth0; /bin/ip link set eth0 up")
        self._clock = Clock.of(self._peer.check)
        self._job = self._peer.start(" ".join(["netverify", *receive(rate_kib)]))

    def figures(self) -> Figures:
        return last_figures(self._job.output()) if self._job is not None else {}

    def gaps(self) -> list[Gap]:
        if self._job is None or self._clock is None:
            return []
        return self._clock.host(gaps_in(self._job.output()))

    def finish(self) -> Figures:
        assert self._job is not None
        self._job.stop()
        return done_figures(self._job.wait(timeout=END_SECONDS).output)


def has_taps(inside: Sequence[str]) -> bool:
    """Whether there may be taps where a command begins so."""
    tap = [*inside, "sh", "-c", "exec 3<>/dev/net/tun"]
    return subprocess.run(tap, stderr=subprocess.DEVNULL, check=False).returncode == 0


def ip(*arguments: str) -> list[str]:
    """The command line of `ip`, which the guest's packages have where the machine may not."""
    return private.command(initramfs.ROOT, "usr/bin/ip", *arguments)


def receive(rate_kib: int) -> list[str]:
    """The options of the peer's netverify."""
    return [
        "receive", "--port", str(PORT), "--rate", str(rate_kib),
        "--report-ms", str(REPORT_MS), "--gap-ms", str(GAP_MS),
    ]  # fmt: skip


def last_figures(text: str) -> Figures:
    """The pairs of the last whole line of netverify that has figures."""
    lines = [line for line in text.split("\n")[:-1] if not line.startswith("event=gap")]
    return dict(word.split("=", 1) for word in lines[-1].split() if "=" in word) if lines else {}


def done_figures(text: str) -> Figures:
    """What netverify found at its end. Raises NetworkError when it did not get there."""
    found = last_figures(text)
    if found.get("event") != "done":
        raise NetworkError(f"netverify did not end as it should; it said last: {found}")
    return found
