"""Socket ports of a running function: what passes without the interpreter, and what Python has to see."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import socket
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pymodel.devices.net.port import NetBackend
from tests.wire.frames import DEADLINE, ethernet, mac
from tests.wire.in_process import serving
from tests.wire.running import until
from vfu_client.drivers.net import NetDriver
from vfu_server.datapath import COMPILED
from vfu_server.networks.datagram import DatagramPort
from vfu_server.networks.stream import StreamPort

pytestmark = pytest.mark.skipif(not COMPILED, reason="there are no channels")

LONGEST = 14 + 8 + 65535
# Of one receive buffer and of several, to the byte: a buffer is 2048, the header 12.
SIZES = (14, 15, 60, 1514, 2036, 2037, 2036 + 2048, 2036 + 2049, 9014, 40000, 65535, LONGEST)


def sized(size: int, number: int = 0) -> bytes:
    """A frame of `size` bytes, no two of which look alike."""
    head = mac(1) + mac(2) + b"\x88\xb5"
    return head + random.Random(size << 32 | number).randbytes(size - 14)


def numbered(number: int) -> bytes:
    """Frame `number` of many, of all kinds of sizes."""
    payload = number.to_bytes(4) * (12 + number * 7919 % 900)
    return ethernet(mac(1), mac(2), payload)


class StreamPeer:
    """The far end of a connection."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(DEADLINE)
        self.socket.connect(os.fspath(path))

    def send(self, frame: bytes) -> None:
        self.socket.sendall(struct.pack(">I", len(frame)) + frame)

    def receive(self) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(4)))

    def exactly(self, count: int) -> bytes:
        found = bytearray()
        while len(found) < count:
            part = self.socket.recv(count - len(found))
            assert part, "hung up"
            found += part
        return bytes(found)


class DatagramPeer:
    """The far end of a datagram port."""

    def __init__(self, folder: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.settimeout(DEADLINE)
        self.socket.bind(os.fspath(folder / "theirs"))
        self._to = os.fspath(folder / "ours")

    def send(self, frame: bytes) -> None:
        self.socket.sendto(frame, self._to)

    def receive(self) -> bytes:
        return self.socket.recv(1 << 17)


class Wire:
    """A function on a port, its driver, and what of its frames passed in Python."""

    def __init__(self, folder: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder = folder
        self.port = (
            StreamPort(folder / "net", server=True)
            if kind == "stream"
            else DatagramPort(folder / "ours", folder / "theirs")
        )
        self.read = self.written = self.turns = 0
        for name in ("_read", "_write", "receive"):
            monkeypatch.setattr(self.port, name, self._counted(name, getattr(self.port, name)))
        self.driver: NetDriver

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            found = method(*arguments)
            if name == "_read":
                self.read += found is not None
            elif name == "_write":
                self.written += 1
            else:
                self.turns += 1
            return found

        return call

    @property
    def in_python(self) -> int:
        return self.read + self.written

    def peer(self) -> StreamPeer | DatagramPeer:
        if isinstance(self.port, DatagramPort):
            return DatagramPeer(self.folder)
        found = StreamPeer(self.folder / "net")
        until(lambda: self.driver.status & 1 == 1, "the link is up")
        return found

    def received(self, count: int = 1) -> list[bytes]:
        found: list[bytes] = []
        while len(found) < count:
            found += [frame.data for frame in self.driver.receive(DEADLINE)]
        assert len(found) == count
        return found

    def both_ways(self, peer: StreamPeer | DatagramPeer, frame: bytes = ethernet(mac(1), mac(2))) -> None:
        """A frame each way, there and intact."""
        peer.send(frame)
        assert self.received() == [frame]
        self.driver.send(frame)
        assert peer.receive() == frame

    def settle(self, peer: StreamPeer | DatagramPeer) -> None:
        """Until frames need no Python: what the driver's last accesses of registers called for is over."""

        def without() -> bool:
            before = self.in_python
            self.both_ways(peer)
            return self.in_python == before

        until(without, "frames pass without the interpreter")


@pytest.fixture(params=["stream", "dgram"])
def kind(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


@pytest.fixture
def wire(kind: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Wire]:
    """A function at a server in this process."""
    monkeypatch.setattr("vfu_server.networks.stream.RECONNECT_SECONDS", 0.01)
    with contextlib.ExitStack() as stack:
        ends = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vfu-")))
        found = Wire(ends, kind, monkeypatch)
        stack.callback(found.port.close)
        path, _ = stack.enter_context(serving("net", {"pf": NetBackend(found.port)}))
        found.driver = stack.enter_context(
            NetDriver.open(path / "pf.sock", timeout=DEADLINE, posted_writes=True)
        )
        yield found


@pytest.fixture
def peer(wire: Wire) -> Iterator[StreamPeer | DatagramPeer]:
    found = wire.peer()
    wire.settle(found)
    yield found
    found.socket.close()


stream_only = pytest.mark.parametrize("kind", ["stream"], indirect=True)
datagrams_only = pytest.mark.parametrize("kind", ["dgram"], indirect=True)


def test_frames_of_all_sizes(wire: Wire, peer: StreamPeer | DatagramPeer) -> None:
    """Each by itself and several at a time, both ways, without a call of Python's port."""
    wire.driver.flush()  # a frame is counted when it was sent, and the peer may be faster
    before, counts = wire.in_python, wire.port.counters()
    for size in SIZES:
        wire.both_ways(peer, sized(size))
    many = [sized(size, 1) for size in SIZES[:7]]
    for frame in many:
        peer.send(frame)
    assert wire.received(len(many)) == many
    for frame in many:
        wire.driver.send(frame)
    assert [peer.receive() for _ in many] == many
    assert wire.in_python == before
    wire.driver.flush()
    after = wire.port.counters()
    for name in ("sent", "received"):
        assert after[f"frames-{name}"] - counts[f"frames-{name}"] == len(SIZES) + 7
        assert after[f"bytes-{name}"] - counts[f"bytes-{name}"] == sum(SIZES) + sum(SIZES[:7])
        assert after["dropped-sending"] == after["dropped-receiving"] == 0


def test_a_header_that_asks_for_nothing_comes_along(wire: Wire, peer: StreamPeer | DatagramPeer) -> None:
    for size in (60, 9014):
        peer.send(sized(size))
        (found,) = wire.driver.receive(DEADLINE)
        assert found[1:] == (0, 0, 0, 0, 0, 0, -(-(size + 12) // 2048), 0, 0)


def test_what_is_no_frame_is_dropped(wire: Wire, peer: StreamPeer | DatagramPeer) -> None:
    before = wire.in_python
    junk = [b"short", bytes(13)]
    if isinstance(peer, DatagramPeer):
        peer.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
        junk += [b"", bytes(LONGEST + 1), bytes(150_000)]
    for data in junk:
        peer.send(data)
    wire.both_ways(peer)
    assert wire.port.counters()["dropped-receiving"] == len(junk)
    assert wire.in_python == before


def test_ways_that_take_turns_keep_the_order(wire: Wire, peer: StreamPeer | DatagramPeer) -> None:
    """A flood each way while the driver reads registers, after each of which Python has a turn.

    No more is under way to the driver than it has buffers for: what Python takes beyond that is dropped.
    """
    count = 1500
    ahead = threading.Semaphore(100)
    before = wire.port.counters()["frames-received"]
    python = wire.read

    def flood() -> None:
        for number in range(count):
            ahead.acquire()
            peer.send(numbered(number))

    got: list[bytes] = []

    def read() -> None:
        got.extend(peer.receive() for _ in range(count))

    threads = [threading.Thread(target=flood), threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    found: list[bytes] = []
    sent = 0
    while len(found) < count or sent < count:
        for _ in range(min(20, count - sent)):
            wire.driver.send(numbered(sent))
            sent += 1
        if sent % 60 == 0:
            assert wire.driver.status == 1
        came = [frame.data for frame in wire.driver.poll()]
        found += came
        for _ in came:
            ahead.release()
    for thread in threads:
        thread.join(DEADLINE)
    expected = [numbered(number) for number in range(count)]
    assert found == expected
    assert got == expected
    after = wire.port.counters()["frames-received"] - before
    assert after == count
    assert wire.read - python < count


@stream_only
def test_half_a_frame_is_waited_for_without_being_busy(wire: Wire, peer: StreamPeer) -> None:
    frames = [sized(60), sized(65000), sized(1514)]
    data = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    turns = wire.turns
    at = 0
    for cut in (2, 4, 30, 64, 65, 67, 40000, len(data) - 1):
        peer.socket.sendall(data[at:cut])
        at = cut
    assert wire.received(2) == frames[:2]
    assert wire.turns == turns
    # The rest comes after a turn of Python's.
    assert wire.driver.status == 1
    peer.socket.sendall(data[at:])
    assert wire.received() == frames[2:]


@stream_only
@pytest.mark.parametrize("turn", [False, True], ids=["alone", "with turns of Python's"])
def test_the_rest_of_a_frame_that_went_out_in_part(wire: Wire, peer: StreamPeer, turn: bool) -> None:
    """It comes before the next frame, which waits for that; nothing is lost."""
    assert isinstance(wire.port, StreamPort)
    assert wire.port._peer is not None
    wire.port._peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
    before = wire.written
    frames = [sized(size, number) for number in range(5) for size in (LONGEST, 60, 9014)]
    wire.driver.send(frames[0])
    wire.driver.flush()
    assert wire.port._stream.blocked
    assert wire.written == before
    for frame in frames[1:]:
        wire.driver.send(frame)
    got = []
    for frame in frames:
        if turn:
            assert wire.driver.status == 1
        # Meanwhile others come in.
        peer.send(frame)
        got.append(peer.receive())
        assert wire.received() == [frame]
    assert got == frames
    assert wire.port.counters()["dropped-sending"] == 0


@stream_only
def test_a_socket_that_is_full_again_and_again_needs_no_python(wire: Wire, peer: StreamPeer) -> None:
    frames = [sized(9014, number) for number in range(300)]
    before = wire.in_python
    got: list[bytes] = []
    thread = threading.Thread(target=lambda: got.extend(peer.receive() for _ in frames))
    for number, frame in enumerate(frames):
        if number == 100:
            # More than the socket takes is on its way.
            thread.start()
        wire.driver.send(frame)
    thread.join(DEADLINE)
    assert got == frames
    assert wire.in_python == before


@stream_only
def test_what_waits_for_a_peer_that_goes_is_lost(wire: Wire, peer: StreamPeer) -> None:
    """Though the driver was not to notify of anything meanwhile."""
    assert isinstance(wire.port, StreamPort)
    for number in range(100):
        wire.driver.send(sized(9014, number))
    stream = wire.port._stream
    until(lambda: stream.blocked, "the socket is full")
    assert wire.driver.transmitters[0].in_flight
    peer.socket.close()
    wire.driver.flush()
    assert wire.port.counters()["dropped-sending"] > 0


@stream_only
def test_a_peer_that_goes_in_a_flood_and_comes_back(wire: Wire, peer: StreamPeer) -> None:
    """What was under way is lost with it, and nothing of that is seen by the next one."""
    for life in range(4):
        for number in range(200):
            wire.driver.send(numbered(number))
        for number in range(30 * life):
            peer.send(numbered(number))
        peer.socket.sendall(struct.pack(">I", 9000) + bytes(100))
        peer.socket.close()
        until(lambda: wire.driver.status & 1 == 0, "the link is down")
        wire.driver.flush()
        found = [frame.data for frame in wire.driver.poll()]
        assert found == [numbered(number) for number in range(len(found))]
        peer = wire.peer()  # type: ignore[assignment]
        wire.settle(peer)
    peer.socket.close()


@stream_only
@pytest.mark.parametrize("data", [b"\0\0\0\0", struct.pack(">I", LONGEST + 1), b"GET / HTTP/1.1\r\n\r\n"])
def test_a_peer_that_breaks_the_framing_is_dropped(
    wire: Wire, peer: StreamPeer, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    peer.send(sized(60))
    peer.socket.sendall(data)
    assert wire.received() == [sized(60)]
    with contextlib.suppress(ConnectionResetError):
        assert peer.socket.recv(1) == b""
    until(lambda: wire.driver.status & 1 == 0, "the link is down")
    assert f"it sent a frame of {int.from_bytes(data[:4])} bytes; up to {LONGEST} are taken" in caplog.text
    again = wire.peer()
    wire.settle(again)
    again.socket.close()


@datagrams_only
def test_datagrams_wait_for_room(wire: Wire, peer: DatagramPeer) -> None:
    frames = [numbered(number) for number in range(200)]
    for frame in frames:
        wire.driver.send(frame)
    assert [peer.receive() for _ in frames] == frames
    assert wire.port.counters()["dropped-sending"] == 0
    wire.settle(peer)


@datagrams_only
def test_that_nobody_is_there_is_told_each_time(
    wire: Wire, peer: DatagramPeer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "virtio.net")
    for life in range(1, 3):
        peer.socket.close()
        (wire.folder / "theirs").unlink()
        for _ in range(3):
            wire.driver.send(sized(60))
        wire.driver.flush()
        assert caplog.text.count("nobody is there") == life
        peer = DatagramPeer(wire.folder)
        wire.settle(peer)
    assert wire.port.counters()["dropped-sending"] == 6
    peer.socket.close()
