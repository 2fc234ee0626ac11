"""netverify itself, between two processes of this host: what it says when all is well, and when it is not."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

import pytest

from tests.guest.guest_files import pairs
from vfu_images.workspace import IMAGES

RECORD = 1024


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


class End:
    """One process of netverify, which ends when the context is left."""

    def __init__(self, role: str, port: int, *options: str) -> None:
        command = [str(IMAGES / "netverify"), role, "--address", "127.0.0.1", "--port", str(port)]
        # A pipe that nobody reads would hold it up.
        self._said = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the context is left
        self.process = subprocess.Popen([*command, "--report-ms", "50", *options], stdout=self._said)
        self._await(bool)  # its first line; it listens then

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self.process.kill()
        self.process.wait()
        self._said.close()

    def _lines(self) -> list[str]:
        """The whole lines so far."""
        size = os.fstat(self._said.fileno()).st_size
        return os.pread(self._said.fileno(), size, 0).decode().split("\n")[:-1]

    def _await(self, condition: Callable[[dict[str, str]], bool]) -> None:
        deadline = time.monotonic() + 30
        while not ((lines := self._lines()) and condition(pairs(lines[-1]))):
            assert time.monotonic() < deadline, lines[-3:]
            time.sleep(0.01)

    def wait_records(self, wanted: int, *, resets: int = 0) -> None:
        """Wait until it has received so many, over so many broken connections and one that holds."""
        self._await(
            lambda last: (
                int(last["records"]) >= wanted and (last["resets"], last["connected"]) == (str(resets), "1")
            )
        )

    def wait_gap(self, milliseconds: float) -> None:
        """Wait until nothing has come for so long."""
        self._await(lambda last: float(last.get("gap_now_ms", 0)) >= milliseconds)

    def done(self) -> tuple[int, dict[str, str]]:
        """Its status and last figures."""
        status = self.process.wait(30)
        return status, pairs(self._lines()[-1])


@pytest.fixture
def ends() -> Iterator[contextlib.ExitStack]:
    """Whoever is pushed here is ended with the test."""
    with contextlib.ExitStack() as stack:
        yield stack


def start(ends: contextlib.ExitStack, role: str, port: int, *options: str) -> End:
    return ends.enter_context(End(role, port, *options))


@pytest.mark.parametrize("stopped", ["receive", "send"])
def test_stopped(ends: contextlib.ExitStack, stopped: str) -> None:
    """Either end can be stopped; both end, and each has received just what the other sent."""
    port = free_port()
    receiver = start(ends, "receive", port, "--rate", "4096")
    sender = start(ends, "send", port, "--rate", "4096")
    receiver.wait_records(100)
    sender.wait_records(100)
    (receiver if stopped == "receive" else sender).process.send_signal(signal.SIGTERM)
    (status, taken), (other_status, given) = receiver.done(), sender.done()
    assert (status, other_status) == (0, 0)
    for end, other in ((taken, given), (given, taken)):
        assert (end["event"], end["ended"], end["resets"], end["corrupt"]) == ("done", "clean", "0", "0")
        assert end["records"] == other["sent_records"]
        assert int(end["bytes"]) == int(end["records"]) * RECORD
        assert 0 < float(end["longest_gap_ms"]) < float(end["seconds"]) * 1000


def gaps(end: End) -> list[float]:
    """The gaps that an end reported, in seconds."""
    found = [pairs(line) for line in end._lines() if line.startswith("event=gap ")]
    return [float(gap["to"]) - float(gap["from"]) for gap in found]


def test_gap(ends: contextlib.ExitStack) -> None:
    """A pause of the sender is a line at the receiver, once it is over, and no shorter than it was."""
    port = free_port()
    receiver = start(ends, "receive", port, "--gap-ms", "250")
    sender = start(ends, "send", port, "--rate", "4096")
    receiver.wait_records(100)
    sender.process.send_signal(signal.SIGSTOP)
    receiver.wait_gap(250)
    sender.process.send_signal(signal.SIGCONT)
    sender.process.send_signal(signal.SIGTERM)
    _, figures = receiver.done()
    assert max(gaps(receiver)) >= 0.25
    assert max(gaps(receiver)) * 1000 == pytest.approx(float(figures["longest_gap_ms"]), abs=1)


def spoil(port: int, listener: socket.socket, at: int, *, cut: bool) -> None:
    """Join one connection to a port; change the byte at `at` of what it sends, or end it there."""
    left, _ = listener.accept()
    with left, socket.create_connection(("127.0.0.1", port)) as right:
        back = threading.Thread(target=carry, args=(right, left))
        back.start()
        count = 0
        while received := left.recv(65536):
            data = bytearray(received)
            if count <= at < count + len(data):
                if cut:
                    break
                data[at - count] ^= 0x10
            right.sendall(data)
            count += len(data)
        for end in (left, right):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR if cut else socket.SHUT_WR)
        back.join()


def carry(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)


@pytest.mark.parametrize("place", [0, 8, 20, 500, 1023])
def test_one_bit(ends: contextlib.ExitStack, place: int) -> None:
    """A single wrong bit, wherever in a record, is one corrupt record (two, where it is in its number)."""
    port = free_port()
    receiver = start(ends, "receive", port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = threading.Thread(
            target=spoil, args=(port, listener, 10 * RECORD + place), kwargs={"cut": False}
        )
        way.start()
        sender = start(ends, "send", listener.getsockname()[1], "--count", "500")
        status, taken = receiver.done()
        assert sender.done()[0] == 0
        way.join()
    assert status == 1
    wrong = 2 if place == 8 else 1
    assert (taken["corrupt"], taken["records"]) == (str(wrong), str(500 - wrong))
    assert (taken["ended"], taken["resets"]) == ("clean", "0")


def test_cut(ends: contextlib.ExitStack) -> None:
    """A connection that ends in the middle is a reset at both ends; the next one begins anew."""
    port = free_port()
    receiver = start(ends, "receive", port)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        way = threading.Thread(target=spoil, args=(port, listener, 100 * RECORD + 7), kwargs={"cut": True})
        way.start()
        sender = start(ends, "send", listener.getsockname()[1], "--rate", "4096")
        way.join()
        way = threading.Thread(target=spoil, args=(port, listener, -1), kwargs={"cut": False})
        way.start()
        sender.wait_records(1, resets=1)
        sender.process.send_signal(signal.SIGTERM)
        ended = [receiver.done(), sender.done()]
        way.join()
    for status, figures in ended:
        assert (status, figures["resets"], figures["corrupt"]) == (1, "1", "0")
        assert figures["ended"] == "clean"


def test_nobody_there(ends: contextlib.ExitStack) -> None:
    """An end that finds nobody gives up after its patience."""
    status, figures = start(ends, "send", free_port(), "--patience", "1").done()
    assert (status, figures["ended"], figures["records"]) == (1, "cut", "0")
    assert 1 <= float(figures["seconds"]) < 10
