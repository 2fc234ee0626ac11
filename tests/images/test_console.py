"""What a guest prints is handed over as it comes, in pieces of any size."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfu_images.console import Console, ConsoleClosedError


@pytest.fixture
def console(tmp_path: Path) -> Iterator[tuple[Console, socket.socket]]:
    """A console, and the guest's end of it."""
    ours, theirs = socket.socketpair()
    console = Console(ours, tmp_path / "log")
    with theirs:
        theirs.settimeout(10)
        yield console, theirs
        console.close()


def answer(guest: socket.socket, said: bytes, size: int) -> threading.Thread:
    """Have the guest say this to the next command, `size` bytes at a time."""

    def say() -> None:
        assert guest.recv(100) == b"try\n"
        for start in range(0, len(said), size):
            guest.sendall(said[start : start + size])

    thread = threading.Thread(target=say)
    thread.start()
    return thread


@pytest.mark.parametrize("size", [1, 7, 100])
@pytest.mark.parametrize(
    ("said", "output"),
    [
        (b"\nguest: exit 3 1\n", b""),
        (b"one\ntwo\n\nguest: exit 3 1\n", b"one\ntwo\n"),
        (b"\n\none\n\n\n\nguest: exit 3 1\n", b"\n\none\n\n\n"),
        (b"no end\nguest: exit 3 1\n", b"no end\n"),
        (b"guest: exit 3 9\n\nguest: exit 3 1\n", b"guest: exit 3 9\n"),
        (b"a guest: exit 3 1\n\nguest: exit 3 1\n", b"a guest: exit 3 1\n"),
    ],
)
def test_output_and_status(
    said: bytes, output: bytes, size: int, console: tuple[Console, socket.socket]
) -> None:
    """All of it but the answer."""
    pieces: list[bytes] = []
    saying = answer(console[1], said, size)
    assert console[0].stream("try", pieces.append, timeout=10) == 3
    saying.join()
    assert b"".join(pieces) == output


def test_a_line_is_not_kept_back(console: tuple[Console, socket.socket]) -> None:
    """It is there while the command runs on; and what follows it is when the guest is gone."""
    pieces: list[bytes] = []
    seen = threading.Event()

    def put(output: bytes) -> None:
        pieces.append(output)
        if b"".join(pieces) == b"begun\n":
            seen.set()

    def leave() -> None:
        if seen.wait(10):
            console[1].sendall(b"guest")
        console[1].shutdown(socket.SHUT_RDWR)

    answer(console[1], b"begun\n", 100)
    leaving = threading.Thread(target=leave)
    leaving.start()
    with pytest.raises(ConsoleClosedError):
        console[0].stream("try", put, timeout=30)
    leaving.join()
    assert seen.is_set()
    assert b"".join(pieces) == b"begun\nguest"
