"""How a demo tells what it does, and ends: its steps with their times, signals, and what a failure is."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator

from vfu_client.move.report import MoveError
from vfu_demo.network import NetworkError
from vfu_demo.stage import StageError
from vfu_images.machine import MachineError
from vfu_images.program import die_with_parent
from vfu_images.workspace import SetupError

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class LostError(Exception):
    """What a demo shows does not hold: something was lost, damaged or is missing."""


def run(play: Callable[[], None]) -> int:
    """Play a demo. Returns the exit status: 0 all is well, 1 something failed, 130 a signal came."""
    _end_with_make()
    heed_signals()
    started = time.monotonic()
    try:
        play()
    except KeyboardInterrupt:
        print("\ninterrupted; all processes are ended")
        return 130
    except (LostError, MachineError, MoveError, NetworkError, SetupError, StageError, TimeoutError) as error:
        print(f"\nFAILED: {error}", file=sys.stderr)
        return 1
    print(f"\nall is well, after {time.monotonic() - started:.0f} s")
    return 0


@contextlib.contextmanager
def step(what: str) -> Iterator[None]:
    """A line of progress with the time that it took."""
    started = time.monotonic()
    print(f"=== {what} ", end="", flush=True)
    try:
        yield
    except BaseException:
        print()
        raise
    print(f"[{time.monotonic() - started:.1f} s]", flush=True)


def lines(text: str) -> None:
    """What a step has to show, below it."""
    print("\n".join(f"    {line}" for line in text.strip().splitlines()))


def heed_signals() -> None:
    """Have a signal be a KeyboardInterrupt."""
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


def _end_with_make() -> None:
    """When make started this, end when make is killed. Else whoever detaches it wants it to go on."""
    if "MAKELEVEL" in os.environ:
        die_with_parent()
