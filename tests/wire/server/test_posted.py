"""Posted writes seen before the library (link.c), which the extension's own tests can't tell from others."""

from __future__ import annotations

import ctypes
import os
import socket
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final, cast

import pytest

from tests.wire.raw_client import HEADER, NO_REPLY, REGION_READ, REGION_WRITE
from tests.wire.server.context_rig import fds_open, guarded

pytestmark = [guarded, pytest.mark.usefixtures("no_garbage")]

ROOT: Final = Path(__file__).parents[3]
A_POST, SOMETHING_ELSE, NOTHING, THE_END = 1, 0, -1, -2


class Posted(ctypes.Structure):
    _fields_ = (
        ("region", ctypes.c_uint32),
        ("offset", ctypes.c_uint64),
        ("count", ctypes.c_uint32),
        ("data", ctypes.c_uint8 * 8),
        ("size", ctypes.c_size_t),
    )


class Link:
    """The server's end of a connection, and the client's."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._link = ctypes.create_string_buffer(1 << 14)
        self.client, self.server = socket.socketpair()
        library.link_init(self._link, 0)
        assert library.link_open(self._link, self.server.fileno()) == 0

    def peek(self, *, ready: bool = True) -> tuple[int, Posted]:
        """What is next, after poll(2) said that there is something or not."""
        post = Posted()
        if ready:
            self._library.link_ready(self._link)
        return self._library.link_peek_post(self._link, self.server.fileno(), ctypes.byref(post)), post

    def drop(self, post: Posted) -> None:
        self._library.link_drop_post(self._link, ctypes.byref(post))

    def posts(self) -> Iterator[tuple[int, int, bytes]]:
        """All that are there: region, offset and data."""
        found, post = self.peek()
        while found == A_POST:
            yield post.region, post.offset, bytes(post.data[: post.count])
            self.drop(post)
            found, post = self.peek(ready=False)
        assert found == NOTHING
        assert not self.has_input

    @property
    def has_input(self) -> bool:
        return cast("bool", self._library.link_has_input(self._link))

    def close(self) -> None:
        self._library.link_close(self._link)
        self.client.close()
        self.server.close()


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    made = tmp_path_factory.mktemp("link") / "link.so"
    sources = [ROOT / "vfu_server" / "vfio" / name for name in ("link.c", "inbox.c")]
    options = ["-shared", "-fPIC", "-D_GNU_SOURCE", "-DGUARDED_LIBRARY", "-pthread"]
    include = f"-I{ROOT / 'subprojects' / 'libvfio-user' / 'include'}"
    subprocess.run([os.environ.get("CC", "cc"), *options, include, *sources, "-o", made], check=True)
    library = ctypes.CDLL(str(made))
    library.link_has_input.restype = ctypes.c_bool
    return library


@pytest.fixture
def link(library: ctypes.CDLL) -> Iterator[Link]:
    made = Link(library)
    yield made
    made.close()


def message(
    data: bytes, *, command: int = REGION_WRITE, flags: int = NO_REPLY, count: int | None = None
) -> bytes:
    body = struct.pack("<QII", 0x3000, 4, len(data) if count is None else count) + data
    return HEADER.pack(1, command, HEADER.size + len(body), flags, 0) + body


def test_a_posted_write(link: Link) -> None:
    assert link.peek()[0] == NOTHING
    link.client.sendall(message(b"\1\0"))
    for _ in range(2):  # it stays where it is
        found, post = link.peek()
        assert found == A_POST
        assert (post.region, post.offset, post.count, bytes(post.data[:2])) == (4, 0x3000, 2, b"\1\0")
        assert post.size == 34
        assert link.has_input
    link.drop(post)
    assert not link.has_input


def test_what_was_found_empty_is_not_looked_at_before_poll_says_so(link: Link) -> None:
    link.client.sendall(message(b"\1\0"))
    _, post = link.peek()
    link.drop(post)
    link.client.sendall(message(b"\2\0\0\0"))
    assert link.peek(ready=False)[0] == NOTHING
    assert link.peek()[0] == A_POST


@pytest.mark.parametrize("together", [True, False])
def test_many_posted_writes(link: Link, together: bool) -> None:
    """None is taken for a part, wherever what is received at once ends."""
    sent = [bytes([index & 0xFF]) * (index % 8 + 1) for index in range(100)]
    if together:
        link.client.sendall(b"".join(map(message, sent)))
    else:
        for data in sent:
            link.client.sendall(message(data))
    assert list(link.posts()) == [(4, 0x3000, data) for data in sent]


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_a_posted_write_in_two_parts(link: Link, length: int) -> None:
    whole = message(bytes(range(length)))
    for cut in range(1, len(whole)):
        link.client.sendall(message(b"\1") + whole[:cut])
        found, post = link.peek()
        assert found == A_POST
        link.drop(post)
        for _ in range(2):
            assert link.peek()[0] == SOMETHING_ELSE
        assert link.has_input
        link.client.sendall(whole[cut:])
        assert list(link.posts()) == [(4, 0x3000, bytes(range(length)))]


@pytest.mark.parametrize(
    "other",
    [
        message(b"", command=REGION_READ, flags=0, count=4),
        message(b"\1\0", flags=0),
        message(b"\1\0", flags=NO_REPLY | 1),
        message(b""),
        message(bytes(9)),
        message(bytes(4096)),
        message(b"\1\0", count=1),
        message(b"\1\0", count=3),
        message(b"\1\0", count=0xFFFF_FFF2),
        HEADER.pack(1, REGION_WRITE, 0, NO_REPLY, 0),
        HEADER.pack(1, REGION_WRITE, 16, NO_REPLY, 0),
        HEADER.pack(1, REGION_WRITE, 0xFFFF_FFFF, NO_REPLY, 0),
    ],
)
def test_what_is_left_to_the_library(link: Link, other: bytes) -> None:
    link.client.sendall(message(b"\1\0") + other)
    found, post = link.peek()
    assert found == A_POST
    link.drop(post)
    for _ in range(2):
        assert link.peek()[0] == SOMETHING_ELSE
    assert link.has_input


@pytest.mark.parametrize("at", [0, 1, 16, 33])
def test_a_posted_write_with_descriptors(link: Link, at: int) -> None:
    """The library closes those that it does not expect. Here they go with the connection."""
    whole = message(b"\1\0")
    before = fds_open()
    link.client.sendall(whole[:at])
    socket.send_fds(link.client, [whole[at:]], [link.client.fileno()] * 3)
    assert link.peek()[0] == SOMETHING_ELSE
    assert fds_open() == before + 3
    link.close()
    assert fds_open() == before - 3


def test_descriptors_of_the_next_message(link: Link) -> None:
    link.client.sendall(message(b"\1\0"))
    socket.send_fds(link.client, [message(b"\2\0\0\0")], [link.client.fileno()])
    found, post = link.peek()
    assert (found, post.count) == (A_POST, 2)
    link.drop(post)
    assert link.peek()[0] == SOMETHING_ELSE


def test_the_end(link: Link) -> None:
    link.client.sendall(message(b"\1\0"))
    link.client.close()
    found, post = link.peek()
    assert found == A_POST
    link.drop(post)
    for _ in range(2):
        assert link.peek()[0] == THE_END


def test_the_end_inside_a_message(link: Link) -> None:
    """The library is told of it."""
    link.client.sendall(message(b"\1\0")[:20])
    link.client.close()
    for _ in range(2):
        assert link.peek()[0] == SOMETHING_ELSE


def test_more_descriptors_than_a_message_may_have(link: Link) -> None:
    before = fds_open()
    socket.send_fds(link.client, [message(b"\1\0")], [link.client.fileno()] * 17)
    for _ in range(2):
        assert link.peek()[0] == THE_END
    assert not link.has_input
    assert link.client.recv(1) == b""
    assert fds_open() == before
