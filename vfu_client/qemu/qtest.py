"""QEMU's qtest protocol: access to the registers and the memory of a machine from outside, as its CPU would.

QEMU offers it beside any accelerator with `-qtest unix:PATH,server=on,wait=off -qtest-log none`, to one
client at a time. Commands are carried out whether or not the machine runs.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from itertools import islice
from typing import Self

Step = tuple[str, ...]
"""Commands that belong together; the value of the last is that of the step. Without any it is 0."""

# Lines on their way at once. QEMU blocks in writing an answer that nobody reads, so that a client which goes
# on sending instead of reading would wait for ever: the answers to these fit a socket's buffer.
WINDOW = 1024


class QTestError(Exception):
    """QEMU refused a qtest command, does not answer, or is gone."""


class QTest:
    """One connection. Answers come in order: commands are sent in batches, then their answers are read.

    After a failure nobody knows whose answer comes next, so the next commands go over a new connection.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 10.0) -> None:
        """Connect. Raises QTestError when QEMU does not listen. Another client has the first command wait."""
        self.path = os.fspath(path)
        self._timeout = timeout
        self._unread = bytearray()
        self._socket = self._connected()

    def _connected(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(self._timeout)
        try:
            client.connect(self.path)
        except OSError as error:
            client.close()
            raise QTestError(f"no qtest server at {self.path}: {error.strerror or error}") from error
        self._unread.clear()
        return client

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up; the machine goes on, and another client may connect."""
        self._socket.close()

    def run(self, commands: Sequence[str]) -> list[int]:
        """Carry out commands in order; the value that each one answered, 0 where it has none. Raises
        QTestError. The value of `read` is that of its bytes, the first being the highest.
        """
        values: list[int] = []
        if self._socket.fileno() < 0:
            self._socket = self._connected()
        try:
            for first in range(0, len(commands), WINDOW):
                window = commands[first : first + WINDOW]
                self._socket.sendall("".join(f"{command}\n" for command in window).encode())
                answers = self._answers(len(window))
                values += [_value(*pair) for pair in zip(window, answers, strict=True)]
        except TimeoutError as error:
            self.close()
            raise QTestError(
                f"{self.path} does not answer: is another qtest client connected, or does a server of QEMU's"
                " devices stand still?"
            ) from error
        except QTestError:
            self.close()
            raise
        except OSError as error:
            self.close()
            if isinstance(error, ConnectionError):  # a QEMU that is gone shows in several ways
                raise self._gone() from error
            raise QTestError(f"qtest at {self.path}: {error.strerror or error}") from error
        return values

    def run_steps(self, steps: Sequence[Step]) -> list[int]:
        """As `run`, at once; the value of each step."""
        values = iter(self.run([command for step in steps for command in step]))
        return [[0, *islice(values, len(step))][-1] for step in steps]

    def _gone(self) -> QTestError:
        return QTestError(f"QEMU hung up on {self.path}: did it end?")

    def touch(self, pages: Sequence[int]) -> None:
        """Write one byte of each page with the value that it has, so that QEMU takes the page for written.

        Only for a machine that is stopped, and memory that no device writes meanwhile. Raises QTestError.
        """
        half = WINDOW // 2
        for first in range(0, len(pages), half):
            group = pages[first : first + half]
            found = self.run([f"readb {page:#x}" for page in group])
            self.run([f"writeb {page:#x} {value:#x}" for page, value in zip(group, found, strict=True)])

    def _answers(self, count: int) -> list[bytearray]:
        """The next lines, so many."""
        there = self._unread.count(b"\n")
        while there < count:
            received = self._socket.recv(1 << 16)
            if not received:
                raise self._gone()
            self._unread += received
            there += received.count(b"\n")
        *lines, rest = self._unread.split(b"\n", count)
        self._unread = rest
        return lines


def _value(command: str, answer: bytearray) -> int:
    """The value of an answer, 0 where it has none. Raises QTestError for one that is not OK."""
    words = answer.decode(errors="replace").split()
    if not words or words[0] != "OK":
        raise QTestError(f"qtest {command!r}: {answer.decode(errors='replace')}")
    return int(words[1], 0) if len(words) > 1 else 0
