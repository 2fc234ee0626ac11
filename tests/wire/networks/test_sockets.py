"""Socket ports against a peer of ours that speaks QEMU's framing, well and badly, and against QEMU itself."""

from __future__ import annotations

import errno
import itertools
import os
import select
import socket
import struct
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.wire.frames import ALL, BROADCAST, DEADLINE, Hand, ethernet, mac, wants
from tests.wire.running import until
from vfu_images.workspace import IMAGES
from vfu_server.networks.datagram import DatagramPort
from vfu_server.networks.stream import StreamPort

FRAME = ethernet(mac(2), mac(1), b"frame")
LONGEST = 14 + 8 + 65535


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


class Listener:
    """The far end of a stream port that connects."""

    def __init__(self, path: Path, opened: ExitStack) -> None:
        self._socket = opened.enter_context(socket.socket(socket.AF_UNIX))
        self._socket.bind(os.fspath(path))
        self._socket.listen()
        self._socket.settimeout(DEADLINE)
        self._opened = opened

    def accept(self) -> Peer:
        return Peer(self._opened.enter_context(self._socket.accept()[0]))


class Peer:
    """The far end of a connection: frames, each behind its length in network order."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.socket.settimeout(DEADLINE)

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))

    def exactly(self, count: int) -> bytes:
        found = b""
        while len(found) < count:
            part = self.socket.recv(count - len(found))
            assert part, "hung up"
            found += part
        return found

    def receive(self) -> bytes:
        return self.exactly(int.from_bytes(self.exactly(4)))

    def hung_up(self) -> bool:
        try:
            return self.socket.recv(1) == b""
        except ConnectionResetError:
            return True


@pytest.fixture
def dialled(tmp_path: Path, opened: ExitStack) -> tuple[Hand, Listener]:
    """A port that connects, and the listener that it finds."""
    listener = Listener(tmp_path / "net", opened)
    return _stream(tmp_path / "net", opened, server=False), listener


@pytest.fixture
def pair(dialled: tuple[Hand, Listener]) -> tuple[Hand, Peer]:
    """A port that is connected, and its peer."""
    hand, listener = dialled
    peer = listener.accept()
    hand.until_link(True)
    return hand, peer


def _stream(path: Path, opened: ExitStack, *, server: bool) -> Hand:
    port = StreamPort(path, server=server)
    opened.callback(port.close)
    hand = Hand(port)
    port.configure(0, ALL)
    return hand


def test_frames_go_behind_their_length_and_without_virtio_header(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    assert hand.send(FRAME, 5, 12, 20)
    assert peer.exactly(4 + 60) == b"\0\0\0\x3c" + FRAME


def test_frames_come_in_order_whatever_pieces_they_come_in(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    frames = [ethernet(mac(2), mac(1), bytes(length)) for length in (0, 46, 1500, 65500)]
    stream = b"".join(struct.pack(">I", len(frame)) + frame for frame in frames)
    cuts = (0, 3, 6, 70, 71, len(stream))
    for at, end in itertools.pairwise(cuts):
        peer.socket.sendall(stream[at:end])
        assert hand.wait()
    hand.expect(frames)
    assert hand.receive() is None


def test_no_offload_is_carried(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    assert hand.port.offloads == 0
    assert hand.send(FRAME, header=struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0))
    assert hand.send(FRAME, header=struct.pack("<BBHHHHH", 0, 1, 0, 9, 0, 0, 0))
    assert hand.send(FRAME)
    assert peer.receive() == FRAME
    assert hand.port.counters()["dropped-sending"] == 2


def test_the_filter_is_applied_and_a_flood_of_unwanted_frames_is_let_go_in_turns(
    pair: tuple[Hand, Peer],
) -> None:
    hand, peer = pair
    hand.port.configure(0, wants(mac(2)))
    other = ethernet(mac(3), mac(1))
    peer.send(*[other] * 100, FRAME)
    turns = 0
    while (got := hand.receive()) is None:
        assert hand.wait()
        turns += 1
    assert got == FRAME
    assert turns >= 1
    assert hand.port.counters()["dropped-receiving"] == 100


def test_the_link_is_the_connection_and_comes_back(
    dialled: tuple[Hand, Listener], caplog: pytest.LogCaptureFixture
) -> None:
    hand, listener = dialled
    for _ in range(2):
        peer = listener.accept()
        hand.until_link(True)
        assert hand.send(FRAME)
        assert peer.receive() == FRAME
        peer.socket.close()
        hand.until_link(False)
        assert hand.port.waits == ()
        assert hand.send(FRAME)
    assert hand.port.counters()["dropped-sending"] == 2
    assert "the peer is gone: it hung up" in caplog.text


def test_it_waits_for_one_who_is_not_there_yet(tmp_path: Path, opened: ExitStack) -> None:
    hand = _stream(tmp_path / "net", opened, server=False)
    assert not hand.port.link_up
    assert hand.send(FRAME)
    listener = Listener(tmp_path / "net", opened)
    peer = listener.accept()
    hand.until_link(True)
    peer.send(FRAME)
    assert hand.next() == FRAME


class _Exhausted:
    """A listener in a process without descriptors: who waits there stays an event."""

    def __init__(self, real: socket.socket) -> None:
        self._real = real
        self.asked = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)

    def accept(self) -> None:
        self.asked += 1
        raise OSError(errno.EMFILE, "Too many open files")


def test_without_descriptors_it_lets_nobody_in_and_is_not_busy(tmp_path: Path, opened: ExitStack) -> None:
    port = StreamPort(tmp_path / "net", server=True)
    opened.callback(port.close)
    assert port._listener is not None
    listener = _Exhausted(port._listener)
    port._listener = listener  # type: ignore[assignment]
    os.eventfd_write(port._news, 1)
    peer = opened.enter_context(socket.socket(socket.AF_UNIX))
    peer.connect(os.fspath(tmp_path / "net"))
    hand = Hand(port)
    assert hand.quiet()
    assert listener.asked == 1


def test_a_server_takes_one_peer_after_another(tmp_path: Path, opened: ExitStack) -> None:
    path = tmp_path / "net"
    hand = _stream(path, opened, server=True)
    assert path.stat().st_mode & 0o777 == 0o600
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(os.fspath(path))
            peer = Peer(connection)
            peer.send(FRAME)
            assert hand.next() == FRAME
            assert hand.send(FRAME)
            assert peer.receive() == FRAME
    hand.until_link(False)
    opened.close()
    assert not path.exists()


def test_a_socket_that_was_left_behind_is_replaced_and_one_in_use_is_not(
    tmp_path: Path, opened: ExitStack
) -> None:
    path = tmp_path / "net"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(os.fspath(path))
    _stream(path, opened, server=True)
    with pytest.raises(OSError, match="another process has this socket"):
        StreamPort(path, server=True)
    with pytest.raises(OSError, match="no socket"):
        StreamPort(Path(__file__), server=True)
    with pytest.raises(OSError, match="too long"):
        StreamPort(tmp_path / ("x" * 100), server=True)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"\0\0\0\0", id="a frame of no bytes"),
        pytest.param(struct.pack(">I", LONGEST + 1), id="a frame too long"),
        pytest.param(struct.pack(">I", 1 << 31), id="2 GiB"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", id="another protocol"),
    ],
)
def test_a_peer_that_breaks_the_framing_is_dropped(
    pair: tuple[Hand, Peer], caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    hand, peer = pair
    peer.send(FRAME)
    peer.socket.sendall(data)
    assert hand.next() == FRAME
    while hand.port.link_up:
        assert hand.receive() is None
        assert hand.wait()
    assert peer.hung_up()
    assert f"it sent a frame of {int.from_bytes(data[:4])} bytes; up to {LONGEST} are taken" in caplog.text


def test_half_a_header_or_frame_is_waited_for_without_being_busy(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    for piece in (b"\0\0", b"\0\x3c" + FRAME[:30]):
        peer.socket.sendall(piece)
        assert hand.wait()
        assert hand.receive() is None
        assert hand.quiet()
    peer.socket.sendall(FRAME[30:])
    assert hand.next() == FRAME


def test_a_runt_is_dropped_and_counted(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    peer.send(b"short", FRAME[:14])
    assert hand.next() == FRAME[:14]
    assert hand.port.counters()["dropped-receiving"] == 1


def test_a_function_without_room_is_not_called_again(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    peer.send(FRAME, FRAME)
    assert hand.next() == FRAME
    # It took a frame and has no room for another: quiet, whatever is there.
    peer.send(FRAME)
    assert list(hand.port.waits) == []
    assert hand.drain() == [FRAME, FRAME]
    assert [events for _, events in hand.port.waits] == [select.POLLIN]


def test_a_peer_that_reads_nothing_stalls_nobody_and_loses_nothing(pair: tuple[Hand, Peer]) -> None:
    hand, peer = pair
    frames = [ethernet(mac(2), mac(1), bytes((number,)) * 20000) for number in range(100)]
    sent = 0
    while hand.send(frames[sent]):
        sent += 1
    assert 0 < sent < 100
    assert hand.quiet()  # no room, and no event either
    # One of them may have gone in part: the next one never comes between.
    for frame in frames[:sent]:
        assert peer.receive() == frame
    for frame in frames[sent:]:
        while not hand.send(frame):
            assert hand.wait()
        assert peer.receive() == frame
    assert hand.port.counters()["frames-sent"] == 100


def test_a_peer_that_goes_in_the_middle_of_a_frame_leaves_nothing_for_the_next(
    dialled: tuple[Hand, Listener],
) -> None:
    hand, listener = dialled
    peer = listener.accept()
    hand.until_link(True)
    while hand.send(ethernet(mac(2), mac(1), bytes(60000))):
        pass
    peer.socket.sendall(b"\0\0\0\x3c" + FRAME[:30])
    assert hand.wait()
    assert hand.receive() is None
    peer.socket.close()
    hand.until_link(False)
    peer = listener.accept()
    hand.until_link(True)
    assert hand.send(FRAME)
    assert peer.receive() == FRAME
    peer.send(FRAME)
    assert hand.next() == FRAME


# -- datagrams ---------------------------------------------------------------------------------------------


@pytest.fixture
def datagrams(tmp_path: Path, opened: ExitStack) -> tuple[Hand, socket.socket]:
    port = DatagramPort(tmp_path / "ours", tmp_path / "theirs")
    opened.callback(port.close)
    hand = Hand(port)
    port.configure(0, ALL)
    return hand, _datagram_peer(tmp_path, opened)


def _datagram_peer(folder: Path, opened: ExitStack) -> socket.socket:
    peer = opened.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))
    peer.bind(os.fspath(folder / "theirs"))
    peer.settimeout(DEADLINE)
    return peer


def test_each_frame_is_a_datagram(tmp_path: Path, datagrams: tuple[Hand, socket.socket]) -> None:
    hand, peer = datagrams
    assert hand.send(FRAME, 12, 30)
    assert peer.recvfrom(1 << 17) == (FRAME, os.fspath(tmp_path / "ours"))
    peer.sendto(FRAME, os.fspath(tmp_path / "ours"))
    peer.sendto(ethernet(mac(2), mac(1), bytes(60000)), os.fspath(tmp_path / "ours"))
    hand.expect([FRAME, ethernet(mac(2), mac(1), bytes(60000))])
    assert hand.receive() is None


def test_datagrams_that_are_no_frames_are_dropped(
    tmp_path: Path, datagrams: tuple[Hand, socket.socket]
) -> None:
    hand, peer = datagrams
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 19)
    for data in (b"", b"short", bytes(LONGEST + 1)):
        peer.sendto(data, os.fspath(tmp_path / "ours"))
        assert hand.wait()
        assert hand.receive() is None
    peer.sendto(FRAME, os.fspath(tmp_path / "ours"))
    assert hand.next() == FRAME
    assert hand.port.counters()["dropped-receiving"] == 3
    assert hand.send(FRAME, header=struct.pack("<BBHHHHH", 1, 0, 0, 0, 34, 6, 0))
    assert hand.port.counters()["dropped-sending"] == 1


def test_frames_to_nobody_are_lost_and_those_to_the_next_one_are_not(
    tmp_path: Path, opened: ExitStack, datagrams: tuple[Hand, socket.socket]
) -> None:
    hand, peer = datagrams
    assert hand.send(FRAME)
    peer.close()
    assert hand.send(FRAME)
    (tmp_path / "theirs").unlink()
    assert hand.send(FRAME)
    assert hand.port.counters()["dropped-sending"] == 2
    peer = _datagram_peer(tmp_path, opened)
    peer.sendto(FRAME, os.fspath(tmp_path / "ours"))
    assert hand.next() == FRAME
    assert hand.send(FRAME)
    assert peer.recv(1 << 17) == FRAME


@pytest.mark.parametrize("length", [46, 40000])
def test_datagrams_to_one_who_does_not_read_wait_without_being_busy(
    datagrams: tuple[Hand, socket.socket], length: int
) -> None:
    # Short ones fill the peer's queue, long ones our socket's buffer.
    hand, peer = datagrams
    frames = [ethernet(mac(2), mac(1), number.to_bytes(2) * (length // 2)) for number in range(2000)]
    sent = 0
    while hand.send(frames[sent]):
        sent += 1
    assert 0 < sent < 2000
    assert hand.quiet()
    for frame in frames[:sent]:
        assert peer.recv(1 << 17) == frame
    assert hand.wait()
    for frame in frames[sent : sent + 5]:
        assert hand.send(frame)
        assert peer.recv(1 << 17) == frame


def test_room_is_told_of_though_another_frame_was_taken(datagrams: tuple[Hand, socket.socket]) -> None:
    """One queue's frame was refused, another queue's is taken: the first one still waits to be asked for."""
    hand, peer = datagrams
    while hand.send(FRAME):
        pass
    assert hand.quiet()
    peer.recv(1 << 17)
    assert hand.send(FRAME)
    peer.recv(1 << 17)
    assert hand.wait()


def test_room_is_no_event_for_what_is_not_sent_again(datagrams: tuple[Hand, socket.socket]) -> None:
    """As after a reset of the queue whose frame was refused."""
    hand, peer = datagrams
    sent = 0
    while hand.send(FRAME):
        sent += 1
    for _ in range(sent):
        peer.recv(1 << 17)
    assert hand.wait()
    assert hand.receive() is None
    assert hand.quiet()


def test_a_datagram_socket_goes_with_its_port(tmp_path: Path, opened: ExitStack) -> None:
    port = DatagramPort(tmp_path / "ours", tmp_path / "theirs")
    with pytest.raises(OSError, match="another process has this socket"):
        DatagramPort(tmp_path / "ours", tmp_path / "theirs")
    port.close()
    assert list(tmp_path.iterdir()) == []


# -- QEMU --------------------------------------------------------------------------------------------------


def test_qemu_understands_both_framings_and_is_understood(tmp_path: Path, opened: ExitStack) -> None:
    """QEMU's hub joins `-netdev stream` and `-netdev dgram`: what goes into one comes out of the other."""
    qemu = IMAGES / "qemu-system-x86_64"
    if not qemu.exists():
        pytest.skip("there is no QEMU in build/images: `make images` makes one ready")
    datagram = DatagramPort(tmp_path / "ours", tmp_path / "theirs")
    opened.callback(datagram.close)
    there = Hand(datagram)
    datagram.configure(0, ALL)
    here = _stream(tmp_path / "stream", opened, server=False)
    near = f"stream,id=a,server=on,addr.type=unix,addr.path={tmp_path / 'stream'}"
    ends = f"local.path={tmp_path / 'theirs'},remote.type=unix,remote.path={tmp_path / 'ours'}"
    command = [
        str(qemu),
        "-M",
        "none",
        "-nodefaults",
        "-display",
        "none",
        "-monitor",
        "none",
        "-netdev",
        near,
    ]
    command += ["-netdev", f"dgram,id=b,local.type=unix,{ends}"]
    for netdev in ("a", "b"):
        command += ["-netdev", f"hubport,id=hub-{netdev},hubid=0,netdev={netdev}"]
    process = opened.enter_context(subprocess.Popen(command, stderr=subprocess.DEVNULL))
    opened.callback(process.terminate)
    here.until_link(True)
    lengths = (0, 46, 1500, 30000, 60000)
    frames = [ethernet(BROADCAST, mac(1), bytes((length & 0xFF,)) * length) for length in lengths]
    for frame in frames:
        for source, target in ((here, there), (there, here)):
            assert source.send(frame)
            assert target.next() == frame
    # And many at once: the hub passes on what its other side takes, and loses the rest.
    for _ in range(50):
        assert here.send(FRAME)
    assert there.next() == FRAME


def test_that_nobody_is_there_is_told_once(
    tmp_path: Path, opened: ExitStack, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vfu_server.networks.stream.RECONNECT_SECONDS", 0.01)
    path = tmp_path / "net"
    line = f"{path}: nobody is connected, tried again each second: "
    hand = _stream(path, opened, server=False)
    until(lambda: line in caplog.text, "a line in the log")
    listener = Listener(path, opened)
    listener.accept()
    hand.until_link(True)
    assert caplog.text.count(line + "No such file or directory") == 1


def test_a_second_peer_is_told_of_and_waits(
    tmp_path: Path, opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "net"
    hand = _stream(path, opened, server=True)
    line = f"{path}: another peer waits"
    peers = []
    for _ in range(2):
        peers.append(opened.enter_context(socket.socket(socket.AF_UNIX)))
        peers[-1].connect(os.fspath(path))
        hand.until_link(True)
    until(lambda: line in caplog.text, "a line in the log")
    # It costs nothing more than that line.
    assert hand.send(FRAME)
    assert Peer(peers[0]).receive() == FRAME
    assert caplog.text.count(line) == 1


def test_that_nobody_takes_datagrams_is_told_once(
    tmp_path: Path, opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    port = DatagramPort(tmp_path / "ours", tmp_path / "theirs")
    opened.callback(port.close)
    hand = Hand(port)
    port.configure(0, ALL)
    line = f"{tmp_path / 'theirs'}: nobody is there"
    for _ in range(3):
        assert hand.send(FRAME)
    assert caplog.text.count(line) == 1
    peer = _datagram_peer(tmp_path, opened)
    assert hand.send(FRAME)
    assert peer.recv(2000) == FRAME
    assert caplog.text.count(line) == 1


def test_a_frame_that_there_is_no_memory_for_is_dropped_and_counted(
    pair: tuple[Hand, Peer], monkeypatch: pytest.MonkeyPatch
) -> None:
    hand, peer = pair

    def none(*_: object) -> None:
        raise MemoryError

    peer.send(FRAME, FRAME)
    with monkeypatch.context() as short:
        short.setattr("vfu_server.networks.stream.write", none)
        assert hand.send(FRAME)
        short.setattr("vfu_server.networks.stream.np.zeros", none)
        until(
            lambda: hand.receive() is None and hand.port.counters()["dropped-receiving"] == 2, "both dropped"
        )
    assert hand.port.counters()["dropped-sending"] == 1
    peer.send(FRAME)
    hand.expect([FRAME])
