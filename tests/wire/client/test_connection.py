"""The vfio-user client against a peer that follows a script: what is on the wire, and every way to fail."""

from __future__ import annotations

import array
import errno
import json
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vfu_client.vfio.connection import (
    Connection,
    ReplyTimeoutError,
    ServerBusyError,
    ServerUnreachableError,
    VfioUserError,
)
from vfu_client.vfio.interrupt import Interrupt
from vfu_client.vfio.memory import GuestMemory

HEADER = struct.Struct("<HHIII")


class Peer:
    """A server's end of one connection, driven step by step."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(path))
        self._listener.listen(0)
        self.error: BaseException | None = None

    def receive(self) -> tuple[int, int, int, bytes, list[int]]:
        """The next message: id, command, flags, payload, descriptors."""
        space = socket.CMSG_SPACE(4 * 16)
        head, ancillary, _, _ = self.socket.recvmsg(HEADER.size, space)
        message_id, command, size, flags, _ = HEADER.unpack(head)
        fds = array.array("i")
        for _, _, data in ancillary:
            fds.frombytes(data)
        payload = b""
        while len(payload) < size - HEADER.size:
            payload += self.socket.recv(size - HEADER.size - len(payload))
        return message_id, command, flags, payload, list(fds)

    def reply(self, message_id: int, command: int, payload: bytes = b"", error: int = 0) -> None:
        flags = 1 | (0x20 if error else 0)
        size = HEADER.size + len(payload)
        self.socket.sendall(HEADER.pack(message_id, command, size, flags, error) + payload)

    def negotiate(self, max_fds: int = 8) -> bytes:
        """Answer VERSION; returns what the client sent."""
        self.socket: socket.socket = self._listener.accept()[0]
        self.socket.settimeout(5)
        message_id, command, _, payload, _ = self.receive()
        text = json.dumps({"capabilities": {"max_msg_fds": max_fds, "max_data_xfer_size": 1 << 20}})
        self.reply(message_id, command, struct.pack("<HH", 0, 0) + text.encode() + b"\0")
        return payload

    def close(self) -> None:
        if hasattr(self, "socket"):
            self.socket.close()
        self._listener.close()


Run = Callable[[Callable[[Peer], None]], Connection]


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[Peer]:
    peer = Peer(tmp_path / "peer.sock")
    yield peer
    peer.close()


@pytest.fixture
def run(peer: Peer) -> Iterator[Run]:
    """Connect to a peer that negotiates and then runs the script it is given."""
    threads: list[threading.Thread] = []
    connections: list[Connection] = []

    def start(script: Callable[[Peer], None]) -> Connection:
        def serve() -> None:
            try:
                peer.negotiate()
                script(peer)
            except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
                peer.error = error

        thread = threading.Thread(target=serve)
        thread.start()
        threads.append(thread)
        connections.append(Connection(peer.path, timeout=2))
        return connections[-1]

    yield start
    for thread in threads:
        thread.join(5)
    for connection in connections:
        connection.close()
    if peer.error is not None:
        raise peer.error


def test_version_names_what_the_client_can_take(peer: Peer) -> None:
    offers: list[bytes] = []
    thread = threading.Thread(target=lambda: offers.append(peer.negotiate(max_fds=4)))
    thread.start()
    with Connection(peer.path) as connection:
        thread.join()
        assert offers[0][:4] == b"\0\0\0\0"
        assert offers[0].endswith(b"\0")
        assert json.loads(offers[0][4:-1])["capabilities"]["max_data_xfer_size"] == 1 << 20
        assert connection.max_fds == 4


def test_region_access_on_the_wire(run: Run) -> None:
    def script(peer: Peer) -> None:
        message_id, command, flags, payload, _ = peer.receive()
        assert (command, flags, payload) == (9, 0, struct.pack("<QII", 0x14, 7, 4))
        peer.reply(message_id, command, payload + b"\1\2\3\4")
        message_id, command, flags, payload, _ = peer.receive()
        assert (command, flags, payload) == (10, 0, struct.pack("<QII", 8, 2, 2) + b"ab")
        peer.reply(message_id, command, payload[:16])

    connection = run(script)
    assert connection.region_read(7, 0x14, 4) == b"\1\2\3\4"
    connection.region_write(2, 8, b"ab")


def test_posted_write_asks_for_no_reply(run: Run) -> None:
    def script(peer: Peer) -> None:
        _, command, flags, _, _ = peer.receive()
        assert (command, flags) == (10, 0x10)

    run(script).region_write(0, 0, b"\0\0", posted=True)


def test_eventfds_go_in_messages_of_max_fds(run: Run) -> None:
    def script(peer: Peer) -> None:
        for start, count in ((0, 8), (8, 2)):
            message_id, command, _, payload, fds = peer.receive()
            assert command == 8
            assert struct.unpack("<IIIII", payload) == (20, 0x24, 2, start, count)
            assert len(fds) == count
            for fd in fds:
                os.close(fd)
            peer.reply(message_id, command)

    fds = [os.eventfd(0) for _ in range(10)]
    run(script).set_eventfds(2, 0, fds)
    for fd in fds:
        os.close(fd)


def test_memory_is_mapped_by_descriptor_and_unmapped_as_mapped(run: Run) -> None:
    def script(peer: Peer) -> None:
        message_id, command, _, payload, fds = peer.receive()
        assert command == 2
        assert struct.unpack("<IIQQQ", payload) == (32, 3, 0, 0x10000, 0x2000)
        os.pwrite(fds[0], b"here", 0x1000)
        os.close(fds[0])
        peer.reply(message_id, command)
        message_id, command, _, payload, _ = peer.receive()
        assert command == 3
        assert struct.unpack("<IIQQ", payload) == (24, 0, 0x10000, 0x2000)
        peer.reply(message_id, command)

    memory = GuestMemory()
    memory.attach(run(script))
    region = memory.add_region(0x1001, 0x10000)
    memory.remove(region)
    assert bytes(region.view[0x1000:0x1004]) == b"here"


def test_a_refused_mapping_leaves_no_region(run: Run) -> None:
    def script(peer: Peer) -> None:
        message_id, command, _, _, fds = peer.receive()
        os.close(fds[0])
        peer.reply(message_id, command, error=errno.ENOSPC)

    memory = GuestMemory()
    memory.attach(run(script))
    with pytest.raises(VfioUserError) as caught:
        memory.add_region(4096)
    assert caught.value.errno == errno.ENOSPC
    assert memory.regions == []


def test_error_reply_becomes_an_exception(run: Run) -> None:
    def script(peer: Peer) -> None:
        message_id, command, _, _, _ = peer.receive()
        peer.reply(message_id, command, error=errno.EINVAL)

    with pytest.raises(VfioUserError) as caught:
        run(script).device_info()
    assert caught.value.errno == errno.EINVAL


def test_a_late_reply_is_dropped(run: Run) -> None:
    asked = threading.Event()

    def script(peer: Peer) -> None:
        message_id, command, _, payload, _ = peer.receive()
        asked.wait(5)
        peer.reply(message_id, command, payload + b"late")
        message_id, command, _, payload, _ = peer.receive()
        peer.reply(message_id, command, payload + b"good")

    connection = run(script)
    late = connection.send(9, struct.pack("<QII", 0, 7, 4))
    with pytest.raises(ReplyTimeoutError):
        connection.receive(late, timeout=0.05)
    asked.set()
    assert connection.region_read(7, 0, 4) == b"good"


def test_a_reply_in_pieces_is_put_together(run: Run) -> None:
    def script(peer: Peer) -> None:
        message_id, command, _, payload, _ = peer.receive()
        answer = HEADER.pack(message_id, command, HEADER.size + 20, 1, 0) + payload + b"data"
        for at in range(0, len(answer), 7):
            peer.socket.sendall(answer[at : at + 7])
            time.sleep(0.002)

    assert run(script).region_read(7, 0, 4) == b"data"


def test_a_server_that_hangs_up(run: Run) -> None:
    def script(peer: Peer) -> None:
        peer.receive()
        peer.socket.close()

    with pytest.raises(VfioUserError) as caught:
        run(script).device_reset()
    assert caught.value.errno == errno.ECONNRESET


def test_a_wait_for_an_interrupt_ends_when_the_server_hangs_up(run: Run) -> None:
    """However long it was meant to be; what was signalled before comes first."""
    connection = run(lambda peer: peer.socket.close())
    interrupt = Interrupt(connection)
    os.eventfd_write(interrupt.fileno(), 2)
    assert interrupt.wait(1000) == 2
    with pytest.raises(VfioUserError, match="the server hung up") as caught:
        interrupt.wait(1000)
    assert (caught.value.errno, caught.value.filename) == (errno.ECONNRESET, connection.path)
    interrupt.close()


@pytest.mark.parametrize("write", [lambda it: it.device_reset(), lambda it: it.send(13, bytes(1 << 20))])
def test_a_server_that_hung_up_before(run: Run, write: Callable[[Connection], object]) -> None:
    """Sending to it says the same as waiting for it, and whose socket it was."""
    left = threading.Event()

    def script(peer: Peer) -> None:
        peer.socket.close()
        left.set()

    connection = run(script)
    left.wait(5)
    with pytest.raises(VfioUserError, match="the server hung up") as caught:
        write(connection)
    assert (caught.value.errno, caught.value.filename) == (errno.ECONNRESET, connection.path)


def test_dma_by_message_is_refused(run: Run) -> None:
    def script(peer: Peer) -> None:
        read, _, _, payload, _ = peer.receive()
        peer.socket.sendall(HEADER.pack(77, 11, HEADER.size + 16, 0, 0) + bytes(16))
        head = peer.socket.recv(HEADER.size)
        assert HEADER.unpack(head) == (77, 11, 16, 0x21, errno.EOPNOTSUPP)
        peer.reply(read, 9, payload + b"\0")

    assert run(script).region_read(7, 0, 1) == b"\0"


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(ServerUnreachableError):
        Connection(tmp_path / "none.sock")
    with pytest.raises(ServerUnreachableError):
        Connection(tmp_path / "no" / "folder.sock")


def test_a_socket_that_nobody_negotiates_on_is_busy(peer: Peer) -> None:
    with pytest.raises(ServerBusyError):
        Connection(peer.path, timeout=0.05)


def test_a_full_backlog_is_busy_too(peer: Peer) -> None:
    waiting = [socket.socket(socket.AF_UNIX) for _ in range(4)]
    try:
        for client in waiting:
            client.setblocking(False)
            client.connect_ex(str(peer.path))
        with pytest.raises(ServerBusyError):
            Connection(peer.path, timeout=0.05)
    finally:
        for client in waiting:
            client.close()


def test_a_path_longer_than_a_socket_address(tmp_path: Path) -> None:
    folder = tmp_path / ("long" * 40)
    folder.mkdir()
    short = tmp_path / "s"
    short.symlink_to(folder)
    peer = Peer(Path(os.path.relpath(short / "peer.sock")) if len(str(short)) > 90 else short / "peer.sock")
    thread = threading.Thread(target=peer.negotiate)
    thread.start()
    Connection(folder / "peer.sock").close()
    thread.join()
    peer.close()
