"""A client's connection to a vfio-user server over a UNIX socket."""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from vfu_client.vfio import protocol
from vfu_client.vfio.protocol import Command

DEFAULT_TIMEOUT = 5.0
MAX_MESSAGE_FDS = 8
FLAGS = protocol.TYPE_MASK | protocol.FLAG_NO_REPLY | protocol.FLAG_ERROR
"""The bits of a header's flags word; text, such as a monitor's greeting, has others."""
# What one call takes from the socket at most.
RECEIVE_SIZE = 1 << 16


class VfioUserError(OSError):
    """A request that the server refused (`errno` is its answer), or a connection that broke."""


class ServerUnreachableError(VfioUserError):
    """Nobody listens on the socket."""


class ServerBusyError(VfioUserError):
    """The socket takes connections but nobody negotiates: another client holds the function."""


class NotVfioUserError(VfioUserError):
    """What listens on the socket speaks something else."""


class ReplyTimeoutError(VfioUserError, TimeoutError):
    """The server did not answer in time. The connection stays usable: a late reply is dropped."""


@dataclass(frozen=True)
class RegionInfo:
    """One region, as `struct vfio_region_info` tells it."""

    index: int
    flags: int
    size: int


@dataclass(frozen=True)
class IrqInfo:
    """One interrupt index, as `struct vfio_irq_info` tells it."""

    index: int
    flags: int
    count: int


@dataclass(frozen=True)
class DeviceInfo:
    """How many regions and interrupt indices the device has."""

    flags: int
    regions: int
    irqs: int


class Connection:
    """One negotiated connection. Requests from several threads are sent one after the other.

    Raises `ServerUnreachableError`, `ServerBusyError` or `VfioUserError`; then nothing is left open.
    With `posted_writes` region writes ask for no reply, as QEMU's do: their errors are lost.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        timeout: float = DEFAULT_TIMEOUT,
        negotiation_timeout: float | None = None,
        posted_writes: bool = False,
    ) -> None:
        self.path = os.fspath(path)
        self.timeout = timeout
        self.posted_writes = posted_writes
        self.max_data = protocol.DEFAULT_MAX_DATA
        self.max_fds = protocol.DEFAULT_MAX_FDS
        self._lock = threading.RLock()
        self._next_id = 0
        self._received = bytearray()
        self._chunk = memoryview(bytearray(RECEIVE_SIZE))
        self._replies: dict[int, tuple[int, bytes]] = {}
        self._awaited: set[int] = set()
        patience = timeout if negotiation_timeout is None else negotiation_timeout
        self._socket = _connect(self.path, patience)
        # The kernel watches over how long sending takes, and `poll` over receiving: a socket with a timeout
        # of Python's costs two more system calls each time.
        _limit_sending(self._socket, timeout)
        self._readable = select.poll()
        self._readable.register(self._socket, select.POLLIN)
        try:
            self._negotiate(patience)
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up. The server resets the function's virtio state."""
        self._socket.close()

    def fileno(self) -> int:
        """The socket's descriptor, for others that wait for its end; -1 once it is closed."""
        return self._socket.fileno()

    @property
    def closed(self) -> bool:
        return self._socket.fileno() < 0

    # The device as a whole.

    def device_info(self, *, timeout: float | None = None) -> DeviceInfo:
        """DEVICE_GET_INFO; also a way to see whether the server still answers."""
        request = protocol.DEVICE_INFO.pack(protocol.DEVICE_INFO.size, 0, 0, 0)
        _, flags, regions, irqs = _unpack(
            protocol.DEVICE_INFO, self.request(Command.DEVICE_GET_INFO, request, timeout=timeout)
        )
        return DeviceInfo(flags, regions, irqs)

    def region_info(self, index: int) -> RegionInfo:
        """DEVICE_GET_REGION_INFO; capabilities of the region (sparse mmap) are not asked for."""
        size = protocol.REGION_INFO.size
        request = protocol.REGION_INFO.pack(size, 0, index, 0, 0, 0)
        reply = self.request(Command.DEVICE_GET_REGION_INFO, request)
        _, flags, index, _, size, _ = _unpack(protocol.REGION_INFO, reply)
        return RegionInfo(index, flags, size)

    def irq_info(self, index: int) -> IrqInfo:
        """DEVICE_GET_IRQ_INFO."""
        request = protocol.IRQ_INFO.pack(protocol.IRQ_INFO.size, 0, index, 0)
        reply = self.request(Command.DEVICE_GET_IRQ_INFO, request)
        _, flags, index, count = _unpack(protocol.IRQ_INFO, reply)
        return IrqInfo(index, flags, count)

    def device_reset(self) -> None:
        """DEVICE_RESET."""
        self.request(Command.DEVICE_RESET)

    # Regions.

    def region_read(self, region: int, offset: int, count: int) -> bytes:
        """`count` bytes at `offset` of a region, in one access."""
        request = protocol.REGION_ACCESS.pack(offset, region, count)
        reply = self.request(Command.REGION_READ, request)
        data = reply[protocol.REGION_ACCESS.size :]
        if len(data) != count:
            raise self._error(errno.EPROTO, f"read of {count} bytes answered with {len(data)}")
        return data

    def region_write(self, region: int, offset: int, data: bytes, *, posted: bool | None = None) -> None:
        """Write `data` at `offset` of a region, in one access; posted means that no reply is awaited."""
        request = protocol.REGION_ACCESS.pack(offset, region, len(data)) + data
        if self.posted_writes if posted is None else posted:
            self.send(Command.REGION_WRITE, request, flags=protocol.FLAG_NO_REPLY)
        else:
            self.request(Command.REGION_WRITE, request)

    # Interrupts.

    def set_eventfds(self, index: int, start: int, fds: Sequence[int]) -> None:
        """Give the server an eventfd for each interrupt from `start` on, in messages of at most `max_fds`."""
        for first in range(0, len(fds), self.max_fds):
            part = fds[first : first + self.max_fds]
            flags = protocol.IRQ_SET_DATA_EVENTFD | protocol.IRQ_SET_ACTION_TRIGGER
            self._set_irqs(flags, index, start + first, len(part), part)

    def disable_irqs(self, index: int) -> None:
        """Take all eventfds of an interrupt index back."""
        self._set_irqs(protocol.IRQ_SET_DATA_NONE | protocol.IRQ_SET_ACTION_TRIGGER, index, 0, 0)

    def mask_irqs(self, index: int, start: int, count: int) -> None:
        """Ask for no signals of these interrupts."""
        self._set_irqs(protocol.IRQ_SET_DATA_NONE | protocol.IRQ_SET_ACTION_MASK, index, start, count)

    def unmask_irqs(self, index: int, start: int, count: int) -> None:
        """Allow signals of these interrupts again."""
        self._set_irqs(protocol.IRQ_SET_DATA_NONE | protocol.IRQ_SET_ACTION_UNMASK, index, start, count)

    def _set_irqs(self, flags: int, index: int, start: int, count: int, fds: Sequence[int] = ()) -> None:
        request = protocol.IRQ_SET.pack(protocol.IRQ_SET.size, flags, index, start, count)
        self.request(Command.DEVICE_SET_IRQS, request, fds)

    # Memory.

    def dma_map(self, fd: int | None, offset: int, address: int, size: int, *, writable: bool = True) -> None:
        """Let the device reach `size` bytes of `fd` from `offset` on at I/O virtual `address`.

        Without an fd the server would have to ask for the bytes by message, which this client refuses.
        """
        flags = protocol.DMA_MAP_READ | (protocol.DMA_MAP_WRITE if writable else 0)
        request = protocol.DMA_MAP.pack(protocol.DMA_MAP.size, flags, offset, address, size)
        self.request(Command.DMA_MAP, request, [] if fd is None else [fd])

    def dma_unmap(self, address: int, size: int) -> None:
        """Take back every region inside [address, address + size). EINVAL where one is partly inside."""
        request = protocol.DMA_UNMAP.pack(protocol.DMA_UNMAP.size, 0, address, size)
        self.request(Command.DMA_UNMAP, request)

    def dma_unmap_all(self) -> None:
        """Take back every region."""
        request = protocol.DMA_UNMAP.pack(protocol.DMA_UNMAP.size, protocol.DMA_UNMAP_ALL, 0, 0)
        self.request(Command.DMA_UNMAP, request)

    # Messages.

    def request(
        self, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, timeout: float | None = None
    ) -> bytes:
        """Send a command, wait for its reply and return the reply's payload.

        Raises `VfioUserError` with the server's errno, `ReplyTimeoutError`, or `VfioUserError` with
        ECONNRESET when the server hung up.
        """
        with self._lock:
            return self.receive(self.send(command, payload, fds), timeout=timeout)

    def send(self, command: int, payload: bytes = b"", fds: Sequence[int] = (), *, flags: int = 0) -> int:
        """Send a command without waiting; returns the message id that `receive` takes."""
        with self._lock:
            message_id = self._next_id
            self._next_id = (self._next_id + 1) & 0xFFFF
            size = protocol.HEADER.size + len(payload)
            header = protocol.HEADER.pack(message_id, command, size, protocol.TYPE_COMMAND | flags, 0)
            if not flags & protocol.FLAG_NO_REPLY:
                self._awaited.add(message_id)
            self.send_raw(header + payload, fds)
            return message_id

    def send_raw(self, message: bytes, fds: Sequence[int] = ()) -> None:
        """Put bytes on the socket as they are, with file descriptors: for tests of broken messages too."""
        with self._lock:
            try:
                sent = socket.send_fds(self._socket, [message], list(fds)) if fds else 0
                self._socket.sendall(message[sent:] if sent else message)
            except BlockingIOError as error:
                # A part may have gone out: the stream has no known boundary any more.
                self.close()
                raise self._error(errno.ECONNABORTED, "the server does not take messages") from error
            except OSError as error:
                raise self._broken("sending", error) from error

    def receive(self, message_id: int, *, timeout: float | None = None) -> bytes:
        """The payload of the reply to `message_id`. Raises as `request` does."""
        with self._lock:
            deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
            try:
                while message_id not in self._replies:
                    self._receive_message(deadline)
            finally:
                self._awaited.discard(message_id)
            error, payload = self._replies.pop(message_id)
            if error:
                raise self._error(error, f"the server answered {os.strerror(error)}")
            return payload

    def _receive_message(self, deadline: float) -> None:
        """Take one whole message from the stream; what was received of the next one is kept."""
        self._fill(protocol.HEADER.size, deadline)
        message_id, command, size, flags, error = protocol.HEADER.unpack_from(self._received)
        if size < protocol.HEADER.size or flags & ~FLAGS:
            self.close()
            raise NotVfioUserError(errno.EPROTO, "what listens there does not speak vfio-user", self.path)
        self._fill(size, deadline)
        payload = bytes(memoryview(self._received)[protocol.HEADER.size : size])
        del self._received[:size]
        if flags & protocol.TYPE_MASK == protocol.TYPE_REPLY:
            if message_id in self._awaited:
                failed = bool(flags & protocol.FLAG_ERROR)
                self._replies[message_id] = ((error or errno.EINVAL) if failed else 0, payload)
        elif not flags & protocol.FLAG_NO_REPLY:
            refusal = protocol.TYPE_REPLY | protocol.FLAG_ERROR
            answer = protocol.HEADER.pack(
                message_id, command, protocol.HEADER.size, refusal, errno.EOPNOTSUPP
            )
            self.send_raw(answer)

    def _fill(self, size: int, deadline: float) -> None:
        """Receive until `size` bytes are in hand."""
        while len(self._received) < size:
            if self.closed:
                raise self._error(errno.EBADF, "the connection was closed")
            # What is there already is taken, however late it is.
            if not self._readable.poll(max(deadline - time.monotonic(), 1e-3) * 1000):
                raise ReplyTimeoutError(errno.ETIMEDOUT, "no reply from the server in time", self.path)
            try:
                count = self._socket.recv_into(self._chunk)
            except OSError as error:
                raise self._broken("receiving", error) from error
            if not count:
                raise self._error(errno.ECONNRESET, "the server hung up")
            self._received += self._chunk[:count]

    def _error(self, number: int, text: str) -> VfioUserError:
        """An error that names the socket."""
        return VfioUserError(number, text, self.path)

    def _broken(self, doing: str, error: OSError) -> VfioUserError:
        """What a system call on the socket failed with: a peer that is gone shows in several ways."""
        if error.errno in (errno.EPIPE, errno.ECONNRESET):
            return self._error(errno.ECONNRESET, "the server hung up")
        return self._error(error.errno or errno.ECONNRESET, f"{doing} failed: {error.strerror}")

    def _negotiate(self, timeout: float) -> None:
        offer = {"capabilities": {"max_msg_fds": MAX_MESSAGE_FDS, "max_data_xfer_size": self.max_data}}
        version = protocol.VERSION.pack(protocol.MAJOR, protocol.MINOR)
        try:
            reply = self.request(
                Command.VERSION, version + json.dumps(offer).encode() + b"\0", timeout=timeout
            )
        except ReplyTimeoutError as error:
            raise ServerBusyError(errno.EBUSY, "another client holds this function", self.path) from error
        major, minor = protocol.VERSION.unpack_from(reply)
        if (major, minor) != (protocol.MAJOR, protocol.MINOR):
            raise self._error(errno.EPROTONOSUPPORT, f"server speaks vfio-user {major}.{minor}")
        text = reply[protocol.VERSION.size :].rstrip(b"\0")
        capabilities = json.loads(text).get("capabilities", {}) if text else {}
        self.max_fds = min(MAX_MESSAGE_FDS, int(capabilities.get("max_msg_fds", self.max_fds)))
        self.max_data = int(capabilities.get("max_data_xfer_size", self.max_data))


def _unpack(layout: struct.Struct, reply: bytes) -> tuple[int, ...]:
    """The leading structure of a reply. Raises `VfioUserError` with EPROTO when the reply is too short."""
    if len(reply) < layout.size:
        raise VfioUserError(errno.EPROTO, f"reply of {len(reply)} bytes, {layout.size} expected")
    return layout.unpack_from(reply)


def _limit_sending(client: socket.socket, timeout: float) -> None:
    """Have sending, and connecting, fail with EAGAIN after `timeout` seconds."""
    seconds, fraction = divmod(timeout, 1)
    limit = struct.pack("@ll", int(seconds), int(fraction * 1e6))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def _connect(path: str, timeout: float) -> socket.socket:
    """A connected socket. The folder is opened first, so that a path may be longer than 108 bytes.

    SO_SNDTIMEO and not settimeout: with a full backlog a non-blocking connect fails at once.
    """
    folder, name = os.path.split(os.path.abspath(path))
    client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _limit_sending(client, timeout)
        folder_fd = os.open(folder, os.O_PATH | os.O_DIRECTORY)
        try:
            client.connect(f"/proc/self/fd/{folder_fd}/{name}")
        finally:
            os.close(folder_fd)
    except BlockingIOError as error:
        client.close()
        raise ServerBusyError(errno.EBUSY, "others wait for this function already", path) from error
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError) as error:
        client.close()
        raise ServerUnreachableError(error.errno or errno.ENOENT, "no server listens here", path) from error
    except OSError as error:
        client.close()
        raise VfioUserError(error.errno or errno.EIO, error.strerror, path) from error
    return client
