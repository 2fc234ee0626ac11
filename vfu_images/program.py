"""Programs that run beside a guest, such as servers. Each ends with the process that started it."""

from __future__ import annotations

import contextlib
import ctypes
import select
import shutil
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

START_SECONDS = 30.0

DIE_WITH_PARENT = ("setpriv", "--pdeathsig", "KILL", "--") if shutil.which("setpriv") else ()
"""Of util-linux: an exec keeps the setting. To enter a namespace of users forgets it (prctl(2)): this comes
after what does that. Python's preexec_fn is no way to it where threads run.
"""

_PR_SET_PDEATHSIG = 1


class NotReadyError(Exception):
    """A program did not say in time that it is ready, and was ended; the message is what it logged."""


def start(
    command: Sequence[str], log: Path, *, ready: str = "ready", within: Sequence[str] = ()
) -> subprocess.Popen[bytes]:
    """Start a program, and wait for its first line on standard output, which begins with `ready`.

    What it says on standard error is appended to `log`. `within` is a command that takes another one and
    becomes it. Raises NotReadyError, and OSError where there is no such program.
    """
    with log.open("ab") as errors:
        process = subprocess.Popen(
            [*within, *DIE_WITH_PARENT, *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    assert process.stdout is not None
    waiting = select.poll()
    waiting.register(process.stdout, select.POLLIN)
    try:
        said = process.stdout.readline() if waiting.poll(START_SECONDS * 1000) else b""
    except BaseException:
        kill(process)
        raise
    if not said.startswith(ready.encode()):
        kill(process)
        raise NotReadyError(log.read_text(errors="replace"))
    return process


def end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Have a program end, kill it if it still runs after so many seconds, and close its pipes."""
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """Kill a program if it runs, and close its pipes."""
    with process:
        process.kill()


def die_with_parent() -> None:
    """End this process by SIGTERM when the one that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
