"""What a command has of its caller: standard streams, where perhaps nobody reads or writes, and Ctrl-C."""

from __future__ import annotations

import contextlib
import io
import os
import signal
import sys

OUTPUT = 1


def prepare() -> None:
    """Where standard streams were closed: have no socket or file take their place, and get our text.

    And have standard error keep no text that it could not write, whoever said it: Python would try once more
    when the program ends, and make 120 of its status. As with PYTHONUNBUFFERED.
    """
    kept = sys.__stderr__
    if kept is not None and sys.stderr is kept:
        raw = io.FileIO(kept.fileno(), "w", closefd=False)
        sys.stderr = io.TextIOWrapper(raw, kept.encoding, kept.errors, write_through=True)
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)


def heed_interrupts() -> None:
    """Let Ctrl-C through, which the commands that `make` puts into .venv/bin hold back while Python starts.

    Raises KeyboardInterrupt for one that came meanwhile.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def put(text: str) -> None:
    """Print a whole result. Raises OSError; nothing of it is tried again when the program ends."""
    encoding = None if sys.stdout is None else sys.stdout.encoding
    with open(OUTPUT, "w", encoding=encoding, errors="replace", closefd=False) as out:
        out.write(text + "\n")


def tell(program: str, line: str) -> None:
    """Print a line for people on standard error, if there are any: nothing depends on its audience."""
    with contextlib.suppress(OSError, ValueError):
        if sys.stderr is not None:
            sys.stderr.write(f"{program}: {line}\n")
