"""A vfio-user client of a few lines, for what the real one never sends."""

from __future__ import annotations

import array
import json
import os
import socket
import struct
from pathlib import Path
from typing import Final, Self

HEADER: Final = struct.Struct("<HHIII")
VERSION, DMA_MAP, DMA_UNMAP, SET_IRQS, REGION_READ, REGION_WRITE, DMA_WRITE, RESET = 1, 2, 3, 8, 9, 10, 12, 13
NO_REPLY: Final = 0x10


class RawClient:
    """One connection. `call` raises OSError with what the server answered."""

    def __init__(self, path: Path, *, negotiate: bool = True) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(path))
        self._id = 0
        if negotiate:
            caps = json.dumps({"capabilities": {"max_msg_fds": 8}}).encode() + b"\0"
            self.call(VERSION, struct.pack("<HH", 0, 1) + caps)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, command: int, body: bytes, fds: tuple[int, ...] = (), flags: int = 0) -> None:
        self._id = (self._id + 1) & 0xFFFF
        message = HEADER.pack(self._id, command, HEADER.size + len(body), flags, 0) + body
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        sent = self.socket.sendmsg([message], rights)
        # Not even an empty rest: where the server has hung up already, its answer is still to be read.
        if sent < len(message):
            self.socket.sendall(message[sent:])

    def receive(self) -> bytes:
        _, _, size, flags, error = HEADER.unpack(self._exactly(HEADER.size))
        body = self._exactly(size - HEADER.size)
        if flags & 0x20:
            raise OSError(error, os.strerror(error))
        return body

    def posted(self) -> tuple[int, bytes]:
        """The next message, which is a DMA_WRITE of the server's that wants no answer: address and data."""
        _, command, size, flags, _ = HEADER.unpack(self._exactly(HEADER.size))
        assert (command, flags) == (DMA_WRITE, NO_REPLY)
        address, count = struct.unpack("<QQ", self._exactly(16))
        assert size == HEADER.size + 16 + count
        return address, self._exactly(count)

    def call(self, command: int, body: bytes = b"", fds: tuple[int, ...] = ()) -> bytes:
        self.send(command, body, fds)
        return self.receive()

    def read(self, region: int, offset: int, length: int) -> bytes:
        return self.call(REGION_READ, struct.pack("<QII", offset, region, length))[16:]

    def write(self, region: int, offset: int, data: bytes) -> None:
        self.call(REGION_WRITE, struct.pack("<QII", offset, region, len(data)) + data)

    def map(self, fd: int | None, address: int, size: int, offset: int = 0, flags: int = 3) -> None:
        body = struct.pack("<IIQQQ", 32, flags, offset, address, size)
        self.call(DMA_MAP, body, () if fd is None else (fd,))

    def unmap(self, address: int, size: int) -> None:
        self.call(DMA_UNMAP, struct.pack("<IIQQ", 24, 0, address, size))

    def eventfds(self, *fds: int, index: int = 2, start: int = 0) -> None:
        self.call(SET_IRQS, struct.pack("<IIIII", 20, 0x24, index, start, len(fds)), fds)

    def irqs(self, *, flags: int, index: int, start: int, count: int) -> None:
        self.call(SET_IRQS, struct.pack("<IIIII", 20, flags, index, start, count))

    def closed(self) -> bool:
        """Whether the server ended the connection: waits for that, or for a message."""
        try:
            return self.socket.recv(1) == b""
        except ConnectionError:
            return True

    def _exactly(self, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = self.socket.recv(length - len(data))
            if not part:
                raise ConnectionResetError("the server left")
            data += part
        return data
