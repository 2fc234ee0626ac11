"""A `vfu-server` process under test: started, waited for, and ended whatever the test did."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# Generous: machines that run tests do other things too.
START_SECONDS = 30.0
STOP_SECONDS = 5.0
WAIT_SECONDS = 10.0

_PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class RunningServer:
    """One server, ready. Its log is read as it comes, so that a full pipe never stops it."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder = folder
        self._lines: list[str] = []
        self._news = threading.Condition()
        self._ended = False
        self.process = subprocess.Popen(  # noqa: PLW1509 - one C call, to leave no server behind a killed test run
            [sys.executable, "-m", "vfu_server", "--socket-dir", str(folder), "--device", "blk", *options],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_die_with_parent,
        )
        self._reader = threading.Thread(target=self._read_log, daemon=True)
        self._reader.start()
        try:
            self._wait_ready()
        except BaseException:
            self.kill()
            raise

    @property
    def pid(self) -> int:
        return self.process.pid

    def socket(self, name: str) -> Path:
        """Where function `name` listens."""
        return self.folder / f"{name}.sock"

    def sockets(self) -> list[str]:
        """The functions that have a socket now."""
        return sorted(path.stem for path in self.folder.glob("*.sock"))

    def log(self) -> str:
        """What the server has logged so far."""
        with self._news:
            return "".join(self._lines)

    def wait_log(self, pattern: str, timeout: float = WAIT_SECONDS) -> re.Match[str]:
        """Wait until the log has a line that matches."""
        expression = re.compile(pattern)

        def found() -> bool:
            return self._ended or any(expression.search(line) for line in self._lines)

        with self._news:
            self._news.wait_for(found, timeout)
            for line in self._lines:
                match = expression.search(line)
                if match:
                    return match
        raise AssertionError(f"the server did not log {pattern!r}, but:\n{self.log()}")

    def stop(self, seconds: float = STOP_SECONDS) -> None:
        """SIGTERM; asserts a clean end within `seconds`: status 0, no sockets left, no traceback logged."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"no end within {seconds} s of SIGTERM; log:\n{self.log()}") from None
        self.kill()
        assert status == 0, f"exit status {status}; log:\n{self.log()}"
        assert self.sockets() == []
        assert "Traceback" not in self.log(), self.log()
        assert "internal error" not in self.log(), self.log()

    def kill(self) -> None:
        """End the process at once if it still runs, and what reads from it."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _wait_ready(self) -> None:
        assert self.process.stdout is not None
        ready, _, _ = select.select([self.process.stdout], [], [], START_SECONDS)
        line = self.process.stdout.readline() if ready else ""
        assert line == f"ready {self.folder}\n", f"printed {line!r}; log:\n{self.log()}"

    def _read_log(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr as stream:
            for line in stream:
                with self._news:
                    self._lines.append(line)
                    self._news.notify_all()
        with self._news:
            self._ended = True
            self._news.notify_all()


@contextlib.contextmanager
def running(*options: str) -> Iterator[Callable[..., RunningServer]]:
    """A function that starts servers, each in a short folder of its own; they end with the context."""
    servers: list[RunningServer] = []
    folders: list[str] = []

    def start(*more: str) -> RunningServer:
        folders.append(tempfile.mkdtemp(prefix="vfu-"))
        server = RunningServer(Path(folders[-1]) / "s", *options, *more)
        servers.append(server)
        return server

    try:
        yield start
        for server in servers:
            server.stop()
    finally:
        for server in servers:
            server.kill()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)


def until(condition: Callable[[], bool], what: str, timeout: float = WAIT_SECONDS) -> None:
    """Wait for what has no event to wait for: a file that comes or goes, a register."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        os.sched_yield()
