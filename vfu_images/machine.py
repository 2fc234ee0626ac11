"""Starts a QEMU guest for tests and demos, and talks to it: console, QMP, qtest, hot-plug, background jobs.

    device = {"driver": "vfio-user-pci", "id": "vf1", "socket": {"type": "unix", "path": path}}
    with Machine(devices=[device]) as guest:
        guest.wait_ready()
        print(guest.check("lspci -nn"))
        job = guest.start("ioverify --device /dev/vda")
        guest.qmp("stop"); guest.qmp("cont")
        job.stop()                      # SIGTERM: stop writing, verify, report
        print(json.loads(job.wait().output.splitlines()[-1]))

`python3 -m images all` makes the images first. Under TCG a guest is ready in about five seconds.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from vfu_images.console import READY, Console, ConsoleClosedError, Result
from vfu_images.job import Job
from vfu_images.program import DIE_WITH_PARENT, kill
from vfu_images.qmp import QMP, QMPError
from vfu_images.workspace import COMMAND, IMAGES, SetupError

KERNEL_ARGUMENTS = (
    "console=ttyS1 quiet panic=-1 tsc=reliable no_timer_check mitigations=off random.trust_cpu=on"
    " cryptomgr.notests"  # a quarter of the time until the guest is ready
)
FIRST_PORT = 0x10
"""Device number of the first root port; what is below port N is 0000:(N+1):00.0 in the guest."""


class MachineError(Exception):
    """QEMU did not start or ended too early, or a guest command failed; the message has what was said."""


class Machine:
    """One QEMU process with our guest in it. A context manager; leaving it ends that process and no other.

    devices      QEMU devices as in QEMU's JSON syntax; one without a "bus" gets a pcie-root-port of its own
    spare_ports  empty root ports for `plug`
    arguments    further QEMU arguments, such as ("-blockdev", '{...}')
    append       further kernel arguments
    incoming     start as the target of a migration: no guest runs until `migrate-incoming` over QMP
    boots        false for a guest that comes in with its kernel, and is never reset
    within       a command that runs QEMU elsewhere and becomes it, such as nsenter with its options
    accel        "tcg" or "kvm"; KVM works only where the processor really offers it
    folder       where console.log, kernel.log and qemu.log stay; else a temporary one, removed at the end
    temporaries  where that one is made, which has QEMU's sockets too; by default where the system has its own

    QEMU dies with the thread that started it (PR_SET_PDEATHSIG), so start machines from a thread that
    outlives them.
    """

    def __init__(
        self,
        *,
        devices: Sequence[Mapping[str, Any]] = (),
        spare_ports: int = 2,
        memory_mib: int = 256,
        cpus: int = 1,
        accel: str = "tcg",
        append: str = "",
        arguments: Sequence[str] = (),
        incoming: bool = False,
        boots: bool = True,
        within: Sequence[str] = (),
        folder: Path | None = None,
        temporaries: Path | None = None,
        images: Path = IMAGES,
    ) -> None:
        self.devices = [dict(device) for device in devices]
        self.ports = sum("bus" not in device for device in self.devices) + spare_ports
        self.memory_mib = memory_mib
        self.cpus = cpus
        self.accel = accel
        self.append = append
        self.arguments = list(arguments)
        self.incoming = incoming
        self.boots = boots
        self.within = list(within)
        self.images = images
        self._folder = folder
        self._temporaries = temporaries
        self._temporary: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None
        self._qmp: QMP | None = None
        self._console_lock = threading.Lock()
        self._qmp_lock = threading.Lock()
        self._free_ports: list[str] = []
        self._ports_of: dict[str, str] = {}

    # -- life

    def __enter__(self) -> Self:
        """Start QEMU; the guest is booting when this returns. Raises SetupError (images missing) or
        MachineError.
        """
        for name in ("qemu-system-x86_64", "vmlinux", "initramfs.cpio.gz"):
            if not (self.images / name).exists():
                raise SetupError(f"{self.images / name} is missing; run `{COMMAND} all` first")
        self._temporary = Path(tempfile.mkdtemp(prefix="machine-", dir=self._temporaries))
        self.folder = self._folder or self._temporary
        self.folder.mkdir(parents=True, exist_ok=True)
        self.qmp_path = self._temporary / "qmp.sock"
        """A second QMP monitor, for another program (one client at a time)."""
        self.qtest_path = self._temporary / "qtest.sock"
        try:
            self._launch()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Kill QEMU if it runs and remove what was temporary. May be called twice."""
        if self._process is not None:
            kill(self._process)
        if self._qmp is not None:
            self._qmp.close()
        if self._console is not None:
            self._console.close()
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)

    @property
    def pid(self) -> int:
        """Process id of QEMU."""
        assert self._process is not None, "the machine was not started"
        return self._process.pid

    def wait_exit(self, *, timeout: float = 30.0) -> int:
        """Wait until QEMU ends by itself, as after `poweroff -f`; its status. Raises TimeoutError."""
        assert self._process is not None, "the machine was not started"
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(f"QEMU still runs after {timeout:g} s") from error

    def command_line(self, serial: str = "chardev:serial", kernel_log: str = "null") -> list[str]:
        """The QEMU command without the sockets that this class opens; of use for a person too."""
        ports = [f"port{number}" for number in range(self.ports)]
        options = [
            "-no-user-config", "-nodefaults", "-display", "none", "-vga", "none",
            "-machine", "q35,memory-backend=mem,sata=off,smbus=off,i8042=off,vmport=off",
            "-accel", self.accel,
            "-object", f"memory-backend-memfd,id=mem,size={self.memory_mib}M,share=on",
            "-m", f"{self.memory_mib}M", "-smp", str(self.cpus),
            "-serial", serial, "-serial", kernel_log,
        ]  # fmt: skip
        if self.boots:
            options += ["-kernel", str(self.images / "vmlinux")]
            options += ["-initrd", str(self.images / "initramfs.cpio.gz")]
            options += ["-append", f"{KERNEL_ARGUMENTS} {self.append}".strip()]
        if self.accel == "kvm":
            options += ["-cpu", "host"]
        if self.incoming:
            options += ["-incoming", "defer"]
        for number, port in enumerate(ports):
            place = {
                "bus": "pcie.0",
                "addr": hex(FIRST_PORT + number),
                "chassis": number + 1,
                "slot": number + 1,
            }
            options += ["-device", json.dumps({"driver": "pcie-root-port", "id": port, **place})]
        self._free_ports = list(ports)
        # Block devices and the like come before the devices that name them.
        options += self.arguments
        for device in self.devices:
            placed = device if "bus" in device else {**device, "bus": self._free_ports[0]}
            self._occupy(placed)
            options += ["-device", json.dumps(placed)]
        return [str(self.images / "qemu-system-x86_64"), *options]

    def _launch(self) -> None:
        serial, serial_peer = socket.socketpair()
        monitor, monitor_peer = socket.socketpair()
        with serial_peer, monitor_peer, (self.folder / "qemu.log").open("ab") as log:
            command = [*self.within, *DIE_WITH_PARENT]
            command += self.command_line(kernel_log=f"file:{self.folder / 'kernel.log'}")
            command += [
                "-chardev", f"socket,id=serial,fd={serial_peer.fileno()}",
                "-chardev", f"socket,id=monitor,fd={monitor_peer.fileno()}",
                "-qmp", "chardev:monitor",
                "-qmp", f"unix:{self.qmp_path},server=on,wait=off",
                "-qtest", f"unix:{self.qtest_path},server=on,wait=off", "-qtest-log", "none",
            ]  # fmt: skip
            self._console = Console(serial, self.folder / "console.log")
            self._qmp = QMP(monitor)
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(serial_peer.fileno(), monitor_peer.fileno()),
            )
        if self.incoming:
            self._console.forget_count()
        try:
            self._qmp.negotiate()
        except (QMPError, TimeoutError) as error:
            raise MachineError(f"QEMU did not start: {error}\n{self._said()}") from error

    def _said(self) -> str:
        said = (self.folder / "qemu.log").read_text(errors="replace").splitlines()
        return "\n".join(["QEMU says:", *said[-20:]])

    # -- the guest

    @property
    def console(self) -> Console:
        """The serial console, for `expect` and the like."""
        assert self._console is not None, "the machine was not started"
        return self._console

    def wait_ready(self, *, timeout: float = 60.0) -> None:
        """Wait for the guest's `guest: ready`. Raises TimeoutError, or MachineError when QEMU ends."""
        with self._explained():
            self.console.expect(READY, timeout=timeout)

    def run(self, command: str, *, timeout: float = 60.0) -> Result:
        """Run a line in the guest's shell. Raises TimeoutError, or MachineError when QEMU ends."""
        with self._console_lock, self._explained():
            return self.console.run(command, timeout=timeout)

    def stream(self, command: str, put: Callable[[bytes], object], *, timeout: float = 60.0) -> int:
        """Like `run`, but hand over the output as it comes; the exit status."""
        with self._console_lock, self._explained():
            return self.console.stream(command, put, timeout=timeout)

    def check(self, command: str, *, timeout: float = 60.0) -> str:
        """Like `run`, but return the output only and raise MachineError for a status other than 0."""
        result = self.run(command, timeout=timeout)
        if result.status:
            raise MachineError(f"{command!r} ended with {result.status} in the guest:\n{result.output}")
        return result.output

    def start(self, command: str) -> Job:
        """Start a command (a simple one: it is exec'ed) in the background of the guest."""
        folder = self.check("mktemp -d /run/job-XXXXXX").strip()
        self.check(f"mkfifo {folder}/input")
        # Opened for both, so that opening does not wait and the reader sees no end of file between two
        # writers.
        inner = f"sh -c 'echo $$ > {folder}/pid; exec {command}' <>{folder}/input >{folder}/output 2>&1"
        self.check(
            f"({inner}; echo $? > {folder}/status) >/dev/null 2>&1 & while ! [ -s {folder}/pid ]; do :; done"
        )
        return Job(self.check, folder)

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except ConsoleClosedError as error:
            raise MachineError(f"{error}\n{self._said()}") from error

    # -- the machine around it

    def qmp(
        self,
        command: str,
        arguments: Mapping[str, Any] | None = None,
        /,
        *,
        timeout: float = 30.0,
        **named: Any,
    ) -> Any:
        """Run a QMP command and return its value. Raises QMPError, TimeoutError.

        Arguments are named as in QMP; those with a hyphen in their name come in the mapping.
        """
        assert self._qmp is not None, "the machine was not started"
        with self._qmp_lock:
            return self._qmp.execute(command, {**(arguments or {}), **named}, timeout=timeout)

    def wait_event(self, name: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """Take the oldest QMP event of that name, waiting for it. Raises TimeoutError."""
        assert self._qmp is not None, "the machine was not started"
        with self._qmp_lock:
            return self._qmp.wait_event(name, timeout=timeout)

    def plug(self, device: Mapping[str, Any]) -> None:
        """Hot-plug a device into a free root port. Raises QMPError, or MachineError when no port is free."""
        if "bus" not in device:
            if not self._free_ports:
                raise MachineError("no root port is free; start the machine with more spare_ports")
            device = {**device, "bus": self._free_ports[0]}
        self.qmp("device_add", device)
        self._occupy(device)

    def unplug(self, identifier: str, *, timeout: float = 30.0) -> None:
        """Ask the guest to let go of a device, and wait until it is gone. Raises QMPError, TimeoutError.

        Its root port is free again then.
        """
        self.qmp("device_del", id=identifier)
        deadline = time.monotonic() + timeout
        deleted = None
        while deleted != identifier:
            event = self.wait_event("DEVICE_DELETED", timeout=deadline - time.monotonic())
            deleted = event["data"].get("device")
        port = self._ports_of.pop(identifier, None)
        if port:
            self._free_ports.append(port)

    def _occupy(self, device: Mapping[str, Any]) -> None:
        """Note that the device's root port is taken, and by whom."""
        if device["bus"] in self._free_ports:
            self._free_ports.remove(device["bus"])
            if "id" in device:
                self._ports_of[device["id"]] = device["bus"]

    def qtest(self, *commands: str) -> list[str]:
        """Run qtest commands ("readl 0xfe000000") one by one; each one's answer without its OK. Raises
        MachineError.
        """
        answers = []
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(self.qtest_path))
            lines = connection.makefile("rw", encoding="ascii", newline="\n")
            for command in commands:
                lines.write(command + "\n")
                lines.flush()
                verdict, _, value = lines.readline().strip().partition(" ")
                if verdict != "OK":
                    raise MachineError(f"qtest {command!r}: {verdict} {value}")
                answers.append(value)
        return answers
