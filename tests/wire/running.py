"""Servers for wire tests: started with options, and ended cleanly when the test is over."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Iterator

from tests.server_process import ServerProcess

# Generous: machines that run tests do other things too.
STOP_SECONDS = 20.0
WAIT_SECONDS = 10.0


def sockets(server: ServerProcess) -> list[str]:
    """The functions that have a socket now."""
    return sorted(path.stem for path in server.folder.glob("*.sock") if path.stem != "monitor")


def stop(server: ServerProcess, seconds: float = STOP_SECONDS) -> None:
    """SIGTERM; asserts the end within `seconds`: status 0, all threads ended, no sockets, no bug logged."""
    if server.alive:
        try:
            server.stop(timeout=seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"no end within {seconds} s of SIGTERM; log:\n{server.log}") from None
    assert server.process.returncode == 0, server.log
    assert list(server.folder.glob("*.sock")) == []
    for bug in ("Traceback", "internal error", "did not stop"):
        assert bug not in server.log, server.log


@contextlib.contextmanager
def running() -> Iterator[Callable[..., ServerProcess]]:
    """A function that starts servers with options; they are stopped, and checked, with the context."""
    with contextlib.ExitStack() as stack:
        servers: list[ServerProcess] = []

        def start(*options: str, log_level: str = "debug") -> ServerProcess:
            servers.append(stack.enter_context(ServerProcess(*options, log_level=log_level)))
            return servers[-1]

        yield start
        for server in servers:
            stop(server)


def until(condition: Callable[[], bool], what: str, timeout: float = WAIT_SECONDS) -> None:
    """Wait for what has no event to wait for: a file that comes or goes, a register."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout} s: {what}"
        os.sched_yield()
