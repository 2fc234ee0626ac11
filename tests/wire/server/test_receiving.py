"""Messages as a stream may bring them: each is handled once, in order, with its own descriptors."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import os
import random
import resource
import socket
import stat
import struct
import termios
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from pymodel.errors import MemoryFault
from tests.wire.raw_client import (
    DMA_MAP,
    HEADER,
    NO_REPLY,
    REGION_READ,
    REGION_WRITE,
    RESET,
    SET_IRQS,
    RawClient,
)
from tests.wire.running import until
from tests.wire.server.context_rig import PAGE, Device, fds_open, guarded, memfd

pytestmark = [guarded, pytest.mark.usefixtures("no_garbage")]

BAR = 4


class Message(NamedTuple):
    """What a client sends, and the descriptors that go with its first byte."""

    data: bytes
    fds: tuple[int, ...] = ()


def message(command: int, body: bytes, fds: tuple[int, ...] = (), flags: int = 0) -> Message:
    return Message(HEADER.pack(1, command, HEADER.size + len(body), flags, 0) + body, fds)


def write(offset: int, data: bytes, flags: int = NO_REPLY) -> Message:
    return message(REGION_WRITE, struct.pack("<QII", offset, BAR, len(data)) + data, flags=flags)


def read(length: int = 4) -> Message:
    return message(REGION_READ, struct.pack("<QII", 0, BAR, length))


def map_page(address: int, *fds: int) -> Message:
    return message(DMA_MAP, struct.pack("<IIQQQ", 32, 3, 0, address, PAGE), fds)


def irqs(start: int, count: int, *fds: int) -> Message:
    return message(SET_IRQS, struct.pack("<IIIII", 20, 0x24, 2, start, count), fds)


def parts(messages: Sequence[Message], cuts: Sequence[int] = ()) -> Iterator[Message]:
    """What is sent at a time: all up to a cut, or to a message that has descriptors."""
    data = b"".join(each.data for each in messages)
    starts = itertools.accumulate((len(each.data) for each in messages), initial=0)
    fds = {start: each.fds for start, each in zip(starts, messages, strict=False) if each.fds}
    ends = sorted({0, *fds, *cuts, len(data)})
    return (Message(data[begin:end], fds.get(begin, ())) for begin, end in itertools.pairwise(ends))


def send(client: RawClient, part: Message) -> None:
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack(f"{len(part.fds)}i", *part.fds))]
    assert client.socket.sendmsg([part.data], rights if part.fds else []) == len(part.data)


def received(client: RawClient) -> None:
    """Wait until the server has taken all that was sent."""

    def left() -> bytes:
        return fcntl.ioctl(client.socket, termios.TIOCOUTQ, bytes(4))

    until(lambda: left() == bytes(4), "all was received")


@contextlib.contextmanager
def held(device: Device, client: RawClient) -> Iterator[None]:
    """The device is busy with a read. What the client sends meanwhile is there all at once."""
    busy, go_on = threading.Event(), threading.Event()
    good = device.answer

    def answer(region: int, offset: int, length: int) -> bytes:
        device.answer = good
        busy.set()
        assert go_on.wait(10)
        return good(region, offset, length)

    device.answer = answer
    send(client, read())
    assert busy.wait(10)
    try:
        yield
    finally:
        go_on.set()


def first_byte(device: Device, address: int) -> int | None:
    """Of a mapped page; None where no descriptor came with it."""

    def look() -> int | None:
        try:
            return device.context.memory.read(address, 1)[0]
        except MemoryFault as fault:
            assert "share=on" in str(fault)  # noqa: PT017 - another fault is a failure
            return None

    return device.do(look)


def test_many_messages_in_one_send(device: Device, client: RawClient) -> None:
    """Longer than what is received at once, too, and each after all before it."""
    device.answer = lambda _, __, length: struct.pack("<I", len(device.writes)) * (length // 4)
    lengths = [*range(1, 9), 100, 4096, 2, 0x3000, 4, *[2] * 200, 4, 4, 4, 4, 8]
    sent = [write(index, bytes([index & 0xFF]) * length) for index, length in enumerate(lengths)]
    with held(device, client):
        stream = b"".join(
            each.data + (read().data if index % 7 == 6 else b"") for index, each in enumerate(sent)
        )
        client.socket.sendall(stream + read().data)
    client.receive()
    for count in [*range(7, len(lengths) + 1, 7), len(lengths)]:
        assert struct.unpack("<I", client.receive()[16:]) == (count,)
    assert device.writes == [
        (BAR, index, bytes([index & 0xFF]) * length) for index, length in enumerate(lengths)
    ]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_stream_that_is_cut_anywhere(device: Device, at_once: bool) -> None:
    """Both parts are there before the server looks, or the second one comes while it waits for it."""
    eventfd = os.eventfd(0, os.EFD_NONBLOCK)
    with memfd(PAGE) as fd:
        os.pwrite(fd, b"\x5a", 0)
        stream = [write(1, b"ab"), map_page(0x10000, fd), irqs(1, 1, eventfd), write(2, b"abcd"), read()]
        length = sum(len(each.data) for each in stream)
        assert length == 34 + 48 + 36 + 36 + 32
        for cut in range(1, length):
            with RawClient(device.path) as client:
                with held(device, client) if at_once else contextlib.nullcontext():
                    for part in parts(stream, [cut]):
                        send(client, part)
                        if not at_once:
                            received(client)
                for _ in range(4 if at_once else 3):
                    client.receive()
                assert first_byte(device, 0x10000) == 0x5A
                assert device.do(lambda: device.context.irq_trigger(1))
                assert os.eventfd_read(eventfd) == 1
            assert device.writes == [(BAR, 1, b"ab"), (BAR, 2, b"abcd")]
            device.writes.clear()
    os.close(eventfd)


class Expected:
    """Random messages, and what has to come of them."""

    def __init__(self, source: random.Random, stack: contextlib.ExitStack) -> None:
        self.messages: list[Message] = []
        self.answered = 0
        self.resets = 0
        self.writes: list[tuple[int, int, bytes]] = []
        self.pages: dict[int, int | None] = {}
        self.vectors: dict[int, int] = {}
        for number in range(source.randrange(1, 25)):
            kind = source.choice(("write", "write", "map", "map", "irqs", "irqs", "read", "reset"))
            with_fds = source.random() < 0.6
            if kind == "write":
                data = source.randbytes(source.choice((1, 2, 4, 8, 9, 100, 700)))
                self.messages.append(write(number, data))
                self.writes.append((BAR, number, data))
                continue
            if kind == "map":
                fds = [stack.enter_context(memfd(PAGE)) for _ in range(with_fds)]
                for fd in fds:
                    os.pwrite(fd, bytes([number + 1]), 0)
                self.pages[number * PAGE] = number + 1 if fds else None
                self.messages.append(map_page(number * PAGE, *fds))
            elif kind == "irqs":
                start = source.randrange(4)
                vectors = range(start, source.randint(start + 1, 4))
                fds = [os.eventfd(0, os.EFD_NONBLOCK) for _ in vectors] if with_fds else []
                for vector in vectors:
                    self.vectors.pop(vector, None)
                for vector, fd in zip(vectors, fds, strict=False):
                    stack.callback(os.close, fd)
                    self.vectors[vector] = fd
                self.messages.append(irqs(start, len(vectors), *fds))
            elif kind == "read":
                self.messages.append(read())
            else:
                self.messages.append(message(RESET, b""))
                self.resets += 1
            self.answered += 1


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("seed", range(40))
def test_descriptors_are_of_the_message_that_they_were_sent_with(
    device: Device, client: RawClient, seed: int, at_once: bool
) -> None:
    """One message at a time, several together with the descriptors of the first, or one in parts."""
    source = random.Random(seed)
    before = device.do(fds_open)
    with contextlib.ExitStack() as stack:
        expected = Expected(source, stack)
        length = sum(len(each.data) for each in expected.messages)
        cuts = [source.randrange(length) for _ in range(source.choice((0, 1, 4, 16)))]
        starts = itertools.accumulate(len(each.data) for each in expected.messages)
        cuts += [start for start in starts if source.random() < (seed & 3) / 3]
        with held(device, client) if at_once else contextlib.nullcontext():
            for part in parts(expected.messages, cuts):
                send(client, part)
        for _ in range(expected.answered + at_once):
            client.receive()
        received(client)
        assert device.do(lambda: list(device.writes)) == expected.writes
        assert device.resets == expected.resets
        assert {address: first_byte(device, address) for address in expected.pages} == expected.pages
        for vector in range(4):
            assert device.do(lambda: device.context.irq_trigger(vector)) == (vector in expected.vectors)  # noqa: B023 - called at once
        for fd in expected.vectors.values():
            assert os.eventfd_read(fd) == 1
    client.socket.close()
    until(lambda: not device.context.attached, "the client left")
    assert device.do(fds_open) == before - 2 - 1  # of the connection, and the client's own


@pytest.mark.parametrize("at", [1, 8, 16, 20, 47])
@pytest.mark.parametrize("at_once", [True, False])
def test_descriptors_in_the_middle_of_a_message(
    device: Device, client: RawClient, at: int, at_once: bool
) -> None:
    """They are nobody's where it is known that they came there, else of one message; and closed."""
    before = device.do(fds_open)
    with memfd(PAGE) as fd:
        data = write(0, b"ab").data + map_page(0x10000).data + map_page(0x20000).data
        with held(device, client) if at_once else contextlib.nullcontext():
            send(client, Message(data[: 34 + at]))
            if not at_once:
                received(client)
            send(client, Message(data[34 + at :], (fd,)))
        for _ in range(3 if at_once else 2):
            client.receive()
    pages = [first_byte(device, address) for address in (0x10000, 0x20000)]
    assert None in pages if at_once else pages == [None, None]
    assert device.do(fds_open) == before


def test_a_client_that_leaves_its_descriptors_behind(device: Device) -> None:
    """It takes no answer to what stands before them."""
    before = device.do(fds_open)
    with memfd(PAGE) as fd:
        for count in range(1, 20):
            client = RawClient(device.path)
            with held(device, client):
                for number in range(count):
                    send(client, map_page(number * PAGE, fd, fd))
                client.socket.close()
            until(lambda: not device.context.attached, "the client left")
        with RawClient(device.path) as client:
            client.read(BAR, 0, 1)
            assert device.do(lambda: len(device.context.memory)) == 0
    until(lambda: device.do(fds_open) == before, "all was closed")
    assert {str(error) for error in device.errors} == {"the client left"}


def test_nothing_is_left_of_a_connection_for_the_next(device: Device) -> None:
    """What stood behind a message that ended the connection is void, whatever it was."""
    before = device.do(fds_open)
    with memfd(PAGE) as fd:
        client = RawClient(device.path)
        with held(device, client):
            for _ in range(3):
                send(client, map_page(0x10000, fd))
            send(client, message(RESET, b"", (fd,) * 17))
            client.socket.sendall(write(0, b"late").data * 100)
        assert client.receive()[16:] == bytes([BAR]) * 4
        until(lambda: not device.context.attached, "the server hung up")
        client.socket.close()
    with RawClient(device.path) as client:
        assert client.read(BAR, 0, 1) == b"\4"
    assert device.writes == []
    assert device.resets == 0
    until(lambda: device.do(fds_open) == before, "all was closed")
    assert str(device.errors[0]) == (
        "a message had more file descriptors than it may, or the process has too many open"
    )


def test_no_descriptor_left_for_those_of_a_message(device: Device) -> None:
    """The connection ends, as the message can't be what its client meant."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with RawClient(device.path) as client, memfd(PAGE) as fd:
        before = device.do(fds_open)
        with held(device, client):
            for part in parts([write(0, b"ab"), map_page(0x10000, fd)]):
                send(client, part)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            client.receive()
            assert client.closed()
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        until(lambda: not device.context.attached, "the server hung up")
        assert device.do(fds_open) == before - 2
    assert str(device.errors[0]) == (
        "a message had more file descriptors than it may, or the process has too many open"
    )


def impatient(path: Path) -> None:
    """Have the server's connection at `path`, in this process, wait for a fifth of a second and no longer."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # that of the folder is closed now
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as found:
                    listens = found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
                    if found.getsockname() == str(path) and not listens:
                        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 0, 200_000))
                        return
    raise AssertionError("no connection")


@pytest.mark.parametrize("length", [1, 15, 16, 17, 33])
@pytest.mark.parametrize("before", [0, 1, 2, 100])
def test_half_a_message_is_not_waited_for_without_end(device: Device, before: int, length: int) -> None:
    """What came before it is handled, and with half of it nothing is."""
    fds = device.do(fds_open)
    with RawClient(device.path) as client, memfd(PAGE) as fd:
        assert device.do(lambda: device.context.attached)
        impatient(device.path)
        with held(device, client):
            client.socket.sendall(write(0, b"abcd").data * before)
            send(client, Message(write(1, b"ab").data[:length], (fd,)))
        client.receive()
        assert client.closed()
    until(lambda: not device.context.attached, "the server hung up")
    assert device.writes == [(BAR, 0, b"abcd")] * before
    assert [str(error) for error in device.errors] == ["the rest of a message did not come"]
    assert device.do(fds_open) == fds
    with RawClient(device.path) as client:
        assert client.read(BAR, 0, 1) == b"\4"


@pytest.mark.parametrize("length", [0, 1, 15, 16, 17, 33])
@pytest.mark.parametrize("before", [0, 1, 2, 100])
def test_the_end_inside_a_message(device: Device, before: int, length: int) -> None:
    fds = device.do(fds_open)
    with RawClient(device.path) as client, memfd(PAGE) as fd:
        with held(device, client):
            client.socket.sendall(write(0, b"abcd").data * before)
            if length:
                send(client, Message(write(1, b"ab").data[:length], (fd,)))
            client.socket.shutdown(socket.SHUT_WR)
        client.receive()
        assert client.closed()
    until(lambda: not device.context.attached, "the connection ended")
    assert device.writes == [(BAR, 0, b"abcd")] * before
    assert [str(error) for error in device.errors] == ["the client left"]
    assert device.do(fds_open) == fds
