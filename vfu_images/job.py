"""A command that runs in the background of a guest, its output in a file there."""

from __future__ import annotations

import time
from collections.abc import Callable

from vfu_images.console import Result


class Job:
    """A handle to one such command; `Machine.start` makes it. `check` is Machine.check."""

    def __init__(self, check: Callable[[str], str], folder: str) -> None:
        self._check = check
        self.folder = folder

    def moved(self, check: Callable[[str], str]) -> Job:
        """The same job, reached through the machine that the guest has moved to."""
        return Job(check, self.folder)

    def output(self) -> str:
        """What it printed so far, both streams together."""
        return self._check(f"cat {self.folder}/output")

    def last_line(self) -> str:
        """The last whole line that it printed so far, or the empty string."""
        text = self._check(f"tail -n 2 {self.folder}/output")
        return (text.rpartition("\n")[0]).rpartition("\n")[2]

    def send(self, line: str) -> None:
        """Write one line to its standard input."""
        self._check(f"echo '{line}' > {self.folder}/input")

    def stop(self, signal: str = "TERM") -> None:
        """Send it a signal."""
        self._check(f"kill -{signal} $(cat {self.folder}/pid)")

    def wait(self, *, timeout: float = 60.0) -> Result:
        """Wait for its end. Raises TimeoutError, and it runs on."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self._check(f"cat {self.folder}/status 2>/dev/null || true").strip()
            if status:
                return Result(int(status), self.output())
            time.sleep(0.1)
        raise TimeoutError(
            f"the job in {self.folder} did not end within {timeout:g} s; it printed:\n{self.output()}"
        )
