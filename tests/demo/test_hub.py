"""The demo's switch between Unix sockets: whom a frame reaches, and what ends a connection."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from vfu_demo.hub import Hub

A, B, C = (bytes([2, 0, 0, 0, 0, number]) for number in (1, 2, 3))
EVERYBODY = b"\xff" * 6


class Peer:
    """One that is connected to a port."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self._stream = self.socket.makefile("rb")

    def send(self, destination: bytes, source: bytes, text: bytes) -> None:
        frame = destination + source + b"\x88\xb5" + text
        self.socket.sendall(struct.pack(">I", len(frame)) + frame)

    def receive(self) -> bytes:
        """What follows the Ethernet header of the next frame; empty at the end of the stream."""
        head = self._stream.read(4)
        return self._stream.read(struct.unpack(">I", head)[0])[14:] if head else b""

    def close(self) -> None:
        self._stream.close()
        self.socket.close()


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[list[Peer]]:
    """Three of them on one hub."""
    paths = [tmp_path / name for name in "abc"]
    with Hub(paths):
        connected = [Peer(path) for path in paths]
        yield connected
        for peer in connected:
            peer.close()
    assert not any(path.exists() for path in paths)


def test_learns(peers: list[Peer]) -> None:
    """What is for all or for somebody unknown goes to all others, the rest to one; a move is learned."""
    a, b, c = peers
    a.send(B, A, b"who")
    assert (b.receive(), c.receive()) == (b"who", b"who")
    b.send(A, B, b"me")
    assert a.receive() == b"me"
    a.send(B, A, b"only you")
    assert b.receive() == b"only you"
    # B turns up at the third port; the frame meant for it alone was not seen there.
    c.send(EVERYBODY, B, b"moved")
    assert (a.receive(), b.receive()) == (b"moved", b"moved")
    a.send(B, A, b"still you")
    assert c.receive() == b"still you"
    a.send(EVERYBODY, A, b"all")
    assert (b.receive(), c.receive()) == (b"all", b"all")


def test_many_in_pieces(peers: list[Peer]) -> None:
    """Frames arrive whole and in order, however the stream is cut."""
    a, b, _ = peers
    b.send(EVERYBODY, B, b"here")
    assert a.receive() == b"here"
    frames = [bytes([number]) * (number + 1) for number in range(200)]
    message = b"".join(struct.pack(">I", 14 + len(text)) + B + A + b"\x88\xb5" + text for text in frames)
    for at in range(0, len(message), 1000):
        a.socket.sendall(message[at : at + 1000])
    assert [b.receive() for _ in frames] == frames


@pytest.mark.parametrize("length", [0, 13, 65551, 0xFFFFFFFF])
def test_no_frame(peers: list[Peer], length: int) -> None:
    """A length that no frame has ends that connection and no other."""
    a, b, c = peers
    a.socket.sendall(struct.pack(">I", length) + bytes(20))
    assert a.receive() == b""
    b.send(C, B, b"on")
    assert c.receive() == b"on"
