"""The guest's serial console: reads it in a thread, keeps a log, speaks the protocol of images/guest/init.c.

A line sent is run by `sh -c` in the guest with no standard input; after its output comes `guest: exit STATUS
COUNT` on a line of its own. Nothing is echoed.
"""

from __future__ import annotations

import contextlib
import re
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

READY = re.compile(rb"^guest: ready\r?\n", re.MULTILINE)
EXIT = re.compile(rb"\r?\nguest: exit (\d+) (\d+)\r?\n")

WAIT_SECONDS = 0.5
"""At a time: Python heeds a signal that comes just before a wait only when that is over."""

BEGUN = b"|".join(re.escape(b"guest: exit "[:size]) for size in range(12)) + rb"|guest: exit [\d ]*\r?"
PART = re.compile(
    rb"(.*?)(?:(?:\A|(?<=\n))\n?guest: exit (\d+) (\d+)\r?\n|(?=(?:(?:\A|(?<=\n))\n?(?:"
    + BEGUN
    + rb"))?\Z))",
    re.DOTALL,
)
"""Output, and the end behind it or what may become one."""


class ConsoleClosedError(Exception):
    """QEMU closed the console: it exited."""


class Result(NamedTuple):
    """What a command in the guest left behind."""

    status: int
    output: str


class Console:
    """One serial console on a connected socket. Everything received is also appended to the file `log`."""

    def __init__(self, connection: socket.socket, log: Path) -> None:
        self._connection = connection
        self._log = log.open("ab", buffering=0)
        self._received = bytearray()
        self._changed = threading.Condition()
        self._closed = False
        self._read = 0
        """What lies before this offset was handed out by `expect` or `run`."""
        self._sent: int | None = 0
        """How many commands the guest was given, which is the count in the newest one's answer."""
        self._reader = threading.Thread(target=self._receive, name="console", daemon=True)
        self._reader.start()

    def forget_count(self) -> None:
        """Accept any command count in the next answer: the guest was started by another machine."""
        self._sent = None

    def expect(self, pattern: re.Pattern[bytes], *, timeout: float) -> re.Match[bytes]:
        """Wait until the pattern appears after what was read so far, and read up to its end.

        Raises TimeoutError with the last lines, and ConsoleClosedError; nothing counts as read then.
        """
        return self._wait(pattern.search, f"no {pattern.pattern!r}", timeout)

    def send(self, text: str) -> None:
        """Type something to what does not speak the protocol, such as firmware."""
        self._connection.sendall(text.encode())

    def run(self, command: str, *, timeout: float) -> Result:
        """Run one line in the guest's shell and return its exit status and output.

        Raises ValueError for a command of several lines, ConsoleClosedError, and TimeoutError: the command
        may still be running then, and the next one waits in the guest until it ends.
        """
        self._type(command)
        start = 0

        def answered(text: bytes) -> re.Match[bytes] | None:
            nonlocal start
            start = 0
            for found in EXIT.finditer(text):
                if self._sent in {None, int(found[2])}:
                    return found
                start = found.end()  # the late answer to a command that nobody waits for any more
            return None

        begin = self._read
        found = self._wait(answered, f"no end of {command!r}", timeout)
        self._sent = int(found[2])
        output = bytes(self._received[begin + start : begin + found.start()])
        return Result(int(found[1]), output.decode(errors="replace").replace("\r\n", "\n"))

    def stream(self, command: str, put: Callable[[bytes], object], *, timeout: float) -> int:
        """Like `run`, but hand over the output as it comes, as it is; the exit status.

        A last line without an end gets one. What came before an error has been handed over, too.
        """
        self._type(command)
        deadline = time.monotonic() + timeout
        behind = 0

        def part(text: bytes) -> re.Match[bytes] | None:
            found = PART.match(text, behind)
            return found if found and found.end() > behind else None

        while True:
            try:
                found = self._wait(part, f"no end of {command!r}", deadline - time.monotonic())
            except (ConsoleClosedError, TimeoutError):
                put(bytes(self._received[self._read + behind :]))
                raise
            if found[2] and self._sent == int(found[3]):
                put(found[1])
                return int(found[2])
            put(found[0])
            # The last byte stays: what follows a line's end may be the answer.
            self._read -= 1
            behind = 1

    def _type(self, command: str) -> None:
        """Send a command; what was received before is no answer to it."""
        if "\n" in command:
            raise ValueError("a command is one line; separate its parts with ;")
        self._read = len(self._received)
        self._connection.sendall(command.encode() + b"\n")
        if self._sent is not None:
            self._sent += 1

    def tail(self, lines: int = 20) -> str:
        """The last lines received, for messages."""
        return "\n".join(bytes(self._received[-8192:]).decode(errors="replace").splitlines()[-lines:])

    def close(self) -> None:
        """Close the connection and the log, and end the reader."""
        with contextlib.suppress(OSError):
            self._connection.shutdown(socket.SHUT_RDWR)
        self._reader.join(timeout=5)
        self._connection.close()
        self._log.close()

    def _wait(
        self, search: Callable[[bytes], re.Match[bytes] | None], complaint: str, timeout: float
    ) -> re.Match[bytes]:
        deadline = time.monotonic() + timeout
        with self._changed:
            while True:
                found = search(bytes(self._received[self._read :]))
                if found:
                    self._read += found.end()
                    return found
                if self._closed:
                    raise ConsoleClosedError(f"{complaint}: the console was closed\n{self.tail()}")
                left = deadline - time.monotonic()
                if left <= 0:
                    seconds = round(timeout, 1)
                    raise TimeoutError(
                        f"{complaint} within {seconds:g} s on the console, which says:\n{self.tail()}"
                    )
                self._changed.wait(min(left, WAIT_SECONDS))

    def _receive(self) -> None:
        while True:
            try:
                received = self._connection.recv(65536)
            except OSError:
                received = b""
            with self._changed:
                self._closed = not received
                self._received += received
                self._changed.notify_all()
            if not received:
                return
            self._log.write(received)
