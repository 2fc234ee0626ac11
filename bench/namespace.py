"""A network that nothing else is on: a network namespace with tap interfaces.

Whoever may make one has all rights in it. It goes with the last process in it, and the interfaces go with
it, so nothing has to be removed, however a benchmark ends.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.measure import BenchError, NotPossibleError
from bench.processes import running

PROGRAMS = {"unshare": "util-linux", "nsenter": "util-linux", "ip": "iproute2"}
"""What is needed, and the packages that have it."""

SYSTEM_FOLDERS = "/usr/sbin:/sbin"
"""Where `ip` is on systems that do not name these folders in a user's PATH."""

TUN = "/dev/net/tun"

_NEEDED = 'it needs a network namespace with tap interfaces (docs/benchmarks.md, "net-stream-*")'


@dataclass(frozen=True)
class Tap:
    """A tap interface, and the network behind it; `address` is the host's end, `guest` the other one's."""

    name: str
    address: str
    guest: str
    prefix: int = 24


@contextlib.contextmanager
def namespace(folder: Path, taps: Sequence[Tap]) -> Iterator[list[str]]:
    """A namespace with these interfaces, up. What is given is a command that runs another one in it.

    `folder` has the log. Raises NotPossibleError with what the system says.
    """
    search = f"{os.environ.get('PATH', os.defpath)}:{SYSTEM_FOLDERS}"
    found = {program: shutil.which(program, path=search) for program in PROGRAMS}
    for program, path in found.items():
        if path is None:
            raise NotPossibleError(f"there is no program {program}; it is in the package {PROGRAMS[program]}")
    try:
        os.close(os.open(TUN, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        raise NotPossibleError(f"{_NEEDED}: {TUN}: {error.strerror}") from error
    batch = folder / "interfaces"
    batch.write_text("".join(_lines(taps)))
    script = '"$0" -batch "$1" && echo ready && exec sleep infinity'
    command = ["sh", "-c", script, str(found["ip"]), str(batch)]
    options = _rights()
    with contextlib.ExitStack() as inside:
        try:
            unshare = [str(found["unshare"]), *options, "--net", "--"]
            holder = inside.enter_context(running(command, folder / "namespace.log", within=unshare))
        except BenchError as error:
            said = (folder / "namespace.log").read_text(errors="replace").splitlines()
            raise NotPossibleError(f"{_NEEDED}: {'; '.join(said)}") from error
        users = ["--user", "--preserve-credentials"] if options else []
        yield [str(found["nsenter"]), "--target", str(holder.pid), *users, "--net", "--"]


def _rights() -> list[str]:
    """What lets this user make a network namespace: nothing for root, else one's own namespace of users."""
    return [] if os.geteuid() == 0 else ["--user", "--map-root-user"]


def _lines(taps: Sequence[Tap]) -> Iterator[str]:
    """The commands for `ip`. Without IPv6, which would talk by itself."""
    yield "link set lo up\n"
    for tap in taps:
        yield f"tuntap add dev {tap.name} mode tap\n"
        yield f"link set dev {tap.name} addrgenmode none\n"
        yield f"address add {tap.address}/{tap.prefix} dev {tap.name}\n"
        yield f"link set dev {tap.name} up\n"
