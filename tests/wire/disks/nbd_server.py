"""An NBD server in the test's own hands: it says what it was asked, and does wrong when it is told to.

Of the protocol as NetworkBlockDevice's doc/proto.md has it, as much as libnbd asks for.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

READ, WRITE, DISC, FLUSH, TRIM, ZERO = 0, 1, 2, 3, 4, 6

HAS_FLAGS, READ_ONLY, CAN_FLUSH, CAN_FUA, CAN_TRIM, CAN_ZERO = 0x01, 0x02, 0x04, 0x08, 0x20, 0x40
EVERYTHING: Final = HAS_FLAGS | CAN_FLUSH | CAN_FUA | CAN_TRIM | CAN_ZERO

_REQUEST: Final = struct.Struct(">IHHQQI")
_OPTION: Final = struct.Struct(">QII")
_GO, _ABORT = 7, 2
_ACK, _INFO, _UNSUPPORTED = 1, 3, 0x80000001


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    kind: int
    flags: int
    offset: int
    length: int
    handle: int
    data: bytes = b""


class NbdServer:
    """Serves `content` at a socket until the end of its context.

    `asked` has all requests but DISC, in their order; `goodbyes` counts those. `answer` is what becomes of
    one: an error number (0: it is done), or None to say nothing, for `reply` to do so later.
    """

    def __init__(self, path: Path, size: int = 1 << 20) -> None:
        self.path = path
        self.uri = f"nbd+unix:///disk?socket={path}"
        self.content = bytearray(size)
        self.flags = EVERYTHING
        self.blocks: tuple[int, int, int] | None = None
        self.asked: list[Asked] = []
        self.goodbyes = 0
        self.connections = 0
        self.answer: Callable[[Asked], int | None] = lambda _: 0
        self.changed = threading.Condition()
        self._listener: socket.socket | None = None
        self._clients: list[socket.socket] = []
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        for thread in self._threads:
            thread.join(10)

    def start(self) -> None:
        """Listen, again after `stop`."""
        self.path.unlink(missing_ok=True)
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen()
        self._run(self._accept, self._listener)

    def stop(self) -> None:
        """Listen no more, and hang up on everybody."""
        if self._listener is not None:
            # A close alone does not end an accept.
            with contextlib.suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)
            with self.changed:
                self._listener.close()
                self._listener = None
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection, with what was asked there unanswered."""
        clients, self._clients = self._clients, []
        for client in clients:
            with contextlib.suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

    def wait(self, condition: Callable[[], bool]) -> None:
        """Until that is so, which requests and connections bring about."""
        with self.changed:
            assert self.changed.wait_for(condition, 10), f"not seen; asked: {self.asked}"

    def reply(self, asked: Asked, error: int = 0) -> None:
        """Answer one that `answer` said nothing to, on the newest connection."""
        self._reply(self._clients[-1], asked, error)

    def send(self, data: bytes) -> None:
        """Send anything to the newest connection."""
        self._clients[-1].sendall(data)

    def _run(self, target: Callable[[socket.socket], None], argument: socket.socket) -> None:
        thread = threading.Thread(target=target, args=(argument,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                with self.changed:
                    if self._listener is not listener:
                        client.close()
                        return
                    self._clients.append(client)
                self._run(self._serve, client)

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, EOFError):
            self._greet(client)
            with self.changed:
                self.connections += 1
                self.changed.notify_all()
            while self._one(client):
                pass

    def _greet(self, client: socket.socket) -> None:
        client.sendall(b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3))
        _take(client, 4)
        while True:
            _, option, length = _OPTION.unpack(_take(client, 16))
            _take(client, length)

            def say(kind: int, data: bytes = b"", option: int = option) -> None:
                client.sendall(struct.pack(">QIII", 0x3E889045565A9, option, kind, len(data)) + data)

            if option == _GO:
                say(_INFO, struct.pack(">HQH", 0, len(self.content), self.flags))
                if self.blocks is not None:
                    say(_INFO, struct.pack(">HIII", 3, *self.blocks))
                say(_ACK)
                return
            if option == _ABORT:
                raise EOFError
            say(_UNSUPPORTED)

    def _one(self, client: socket.socket) -> bool:
        magic, flags, kind, handle, offset, length = _REQUEST.unpack(_take(client, 28))
        assert magic == 0x25609513
        if kind == DISC:
            with self.changed:
                self.goodbyes += 1
                self.changed.notify_all()
            return False
        asked = Asked(kind, flags, offset, length, handle, _take(client, length) if kind == WRITE else b"")
        with self.changed:
            self.asked.append(asked)
            self.changed.notify_all()
        error = self.answer(asked)
        if error is not None:
            self._reply(client, asked, error)
        return True

    def _reply(self, client: socket.socket, asked: Asked, error: int) -> None:
        data = b""
        end = asked.offset + asked.length
        if not error:
            match asked.kind:
                case 0:
                    data = bytes(self.content[asked.offset : end])
                case 1:
                    self.content[asked.offset : end] = asked.data
                case 4 | 6:
                    self.content[asked.offset : end] = bytes(asked.length)
        client.sendall(struct.pack(">IIQ", 0x67446698, error, asked.handle) + data)


def _take(client: socket.socket, length: int) -> bytes:
    data = client.recv(length, socket.MSG_WAITALL)
    if len(data) < length:
        raise EOFError
    return data
