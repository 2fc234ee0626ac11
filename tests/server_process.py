"""A real `vfu-server` process for tests, in a short temporary folder of its own, gone when the test is."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from vfu_images import program
from vfu_images.qmp import QMP


class ServerError(Exception):
    """The server did not become ready, or ended; the message has what it logged."""


class ServerProcess:
    """`vfu-server` with the options given, in a folder of its own; ready when `__enter__` returns.

    `log` is what it wrote on stderr so far. Leaving the context kills it if it runs, and removes `folder`.
    """

    program: Sequence[str] = (sys.executable, "-m", "vfu_server")

    def __init__(self, *options: str, device: str = "blk", log_level: str = "info") -> None:
        self.options = ["--device", device, "--log-level", log_level, *options]
        self.folder = Path()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        # Not pytest's tmp_path: the name of a socket has at most 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="vfu-"))
        try:
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def start(self) -> None:
        """Start it, again after `stop`, and wait for its `ready`. Raises ServerError."""
        command = [*self.program, "--socket-dir", str(self.folder), *self.options]
        try:
            self._process = program.start(command, self.folder / "log", ready=f"ready {self.folder}\n")
        except program.NotReadyError as error:
            raise ServerError(f"the server did not start, and logged:\n{error}") from error

    def stop(self, number: int = signal.SIGTERM, *, timeout: float = 20.0) -> int:
        """Send a signal and wait for the end; the exit status, as subprocess has it."""
        self.process.send_signal(number)
        status = self.process.wait(timeout)
        program.kill(self.process)
        return status

    def close(self) -> None:
        """Kill it if it runs, and remove its folder. May be called twice."""
        if self._process is not None:
            program.kill(self._process)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def process(self) -> subprocess.Popen[bytes]:
        """The process, running or ended."""
        assert self._process is not None, "the server was not started"
        return self._process

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.poll() is None

    def socket(self, function: str) -> Path:
        """The socket of `pf`, `vf1` and so on."""
        return self.folder / f"{function}.sock"

    def qemu_device(self, function: str, **properties: Any) -> dict[str, Any]:
        """What attaches QEMU to a function: its id there is the function's name."""
        return {
            "driver": "vfio-user-pci",
            "id": function,
            # A machine with few processors may be busy with a neighbouring test for a while.
            "x-msg-timeout": 60_000,
            "socket": {"type": "unix", "path": str(self.socket(function))},
            **properties,
        }

    def ask(self, command: str, **arguments: Any) -> Any:
        """What its monitor answers to one command."""
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(self.folder / "monitor.sock"))
            monitor = QMP(connection)
            monitor.negotiate()
            return monitor.execute(command, arguments)

    def breaches(self) -> dict[str, int]:
        """With --check-driver: how often each rule was broken so far."""
        return {
            entry["rule"]: sum(breach["count"] for breach in entry["breaches"])
            for entry in self.ask("query-rules")
        }

    @property
    def log(self) -> str:
        """What it logged so far, over all its starts."""
        try:
            return (self.folder / "log").read_text(errors="replace")
        except FileNotFoundError:
            return ""

    def log_of(self, function: str) -> str:
        """The lines of one function."""
        return "".join(line for line in self.log.splitlines(keepends=True) if f" virtio.{function}: " in line)

    def mark(self) -> int:
        """Where the log ends now, for `wait_log`."""
        return len(self.log)

    def wait_log(self, pattern: str, *, since: int = 0, count: int = 1, timeout: float = 20.0) -> str:
        """Wait until `count` lines match after the mark `since`, and return the last one.

        Raises TimeoutError with the log's end, ServerError when the server ended before.
        """
        expression = re.compile(pattern)
        deadline = time.monotonic() + timeout
        while True:
            alive = self.alive
            found = [line for line in self.log[since:].splitlines() if expression.search(line)]
            if len(found) >= count:
                return found[-1]
            tail = "\n".join(self.log.splitlines()[-30:])
            if not alive:
                raise ServerError(f"the server ended and had not logged {pattern!r}:\n{tail}")
            if time.monotonic() > deadline:
                raise TimeoutError(f"{len(found)} of {count} lines {pattern!r} in the server's log:\n{tail}")
            time.sleep(0.02)

    @property
    def open_files(self) -> int:
        """How many file descriptors it has open."""
        return len(os.listdir(f"/proc/{self.process.pid}/fd"))
