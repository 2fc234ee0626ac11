"""A QEMU that runs within a guest; its console and its monitor come out at ports of that guest."""

from __future__ import annotations

import contextlib
import json
import re
import shlex
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from vfu_demo.stage import StageError
from vfu_images import nested
from vfu_images.console import Console, ConsoleClosedError
from vfu_images.machine import Machine
from vfu_images.qmp import QMP, QMPError

PLACE = Path("/nested")
"""Where the guest has mounted the disk of `images.nested`."""

SERIAL = {"source": 1, "target": 3}
"""The number of each QEMU's port for its console; the next one is for its monitor."""

SECONDS = 500.0
"""How long anything may take in an emulator within an emulator, on a machine that is busy otherwise."""

POLL_SECONDS = 0.2
NO_LIMIT_MS = 2_000_000
"""So long may the guest stand still: VFIO tells of no page that is not dirty, so all memory is sent then."""


def ports(folder: Path) -> list[str]:
    """QEMU's options for the outer guest: each port is a socket in this folder."""
    options = ["-device", "virtio-serial-pci"]
    for serial in SERIAL.values():
        for number in (serial, serial + 1):
            options += ["-chardev", f"socket,id=inner{number},path={folder / str(number)},server=on,wait=off"]
            options += ["-device", f"virtserialport,chardev=inner{number},nr={number}"]
    return options


class Inner:
    """One of the QEMUs, with its name from SERIAL. It ends with the guest that it runs in.

    Methods raise StageError, with what QEMU said, when it refuses something or it takes too long.
    """

    def __init__(
        self, outer: Machine, name: str, folder: Path, devices: Sequence[Mapping[str, Any]] = ()
    ) -> None:
        """Start it in `outer`; it waits for a guest to come in."""
        command = nested.machine(PLACE / nested.FOLDER, devices).command_line()
        serial, monitor = SERIAL[name], SERIAL[name] + 1
        command += ["-chardev", f"pipe,id=serial,path=/dev/vport0p{serial}"]
        command += ["-chardev", f"pipe,id=monitor,path=/dev/vport0p{monitor}", "-qmp", "chardev:monitor"]
        script = f"/run/{name}.sh"
        outer.check(f"echo {shlex.quote(shlex.join(command))} > {script}")
        self._console = Console(_connected(folder / str(serial)), folder / f"{name}.log")
        self._monitor = QMP(_connected(folder / str(monitor)))
        self._job = outer.start(f"sh {script}")
        with self._explained():
            self._monitor.negotiate(SECONDS)

    def close(self) -> None:
        """Close its console and its monitor here."""
        self._console.close()
        self._monitor.close()

    def ask(self, command: str, **arguments: Any) -> Any:
        """Run a QMP command and return its value; an underscore is a hyphen."""
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        with self._explained():
            return self._monitor.execute(command, named, timeout=SECONDS)

    def expect(self, event: str) -> dict[str, Any]:
        """The next report of ioverify that is called so."""
        pattern = re.compile(rb'^(\{"event":"%b".*\})\r?\n' % event.encode(), re.MULTILINE)
        with self._explained():
            found: dict[str, Any] = json.loads(self._console.expect(pattern, timeout=SECONDS)[1])
        return found

    def report(self) -> dict[str, Any]:
        """What ioverify says that it has done so far."""
        self._console.send("report\n")
        return self.expect("progress")

    def stop(self) -> dict[str, Any]:
        """Have ioverify stop, and check all it wrote; its last report."""
        self._console.send("stop\n")
        return self.expect("done")

    def write(self, sectors: int) -> dict[str, Any]:
        """Wait until ioverify has written so many sectors since it began; what it says then."""
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            report = self.report()
            if report["sectors_written"] >= sectors:
                return report
        raise StageError(f"{report['sectors_written']} of {sectors} sectors were written")

    def resume(self, state: Path) -> None:
        """Have a guest go on that was saved to a file."""
        self.ask("migrate-incoming", uri=f"file:{state}")
        self._migrated()

    def move(self, target: Inner) -> dict[str, Any]:
        """Move the guest to another QEMU of the same outer guest; what QEMU says of it."""
        uri = "unix:/run/move"
        target.ask("migrate-incoming", uri=uri)
        self.ask("migrate-set-parameters", downtime_limit=NO_LIMIT_MS, max_bandwidth=0)
        self.ask("migrate", uri=uri)
        told = self._migrated()
        target._migrated()
        return told

    def _migrated(self) -> dict[str, Any]:
        """Wait until the guest came in, or has left."""
        while True:
            told: dict[str, Any] = self.ask("query-migrate")
            if told.get("status") == "completed":
                return told
            if told.get("status") in {"failed", "cancelled"}:
                raise StageError(f"QEMU did not migrate: {told}\n{self._job.output()}")
            time.sleep(POLL_SECONDS)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (ConsoleClosedError, QMPError, TimeoutError) as error:
            raise StageError(f"{error}\nQEMU in the guest says:\n{self._job.output()}") from error


def _connected(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX)
    connection.connect(str(path))
    return connection
