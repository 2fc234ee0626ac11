"""A server of QMP, the protocol of QEMU's monitor: `qmp-shell` and the library qemu.qmp talk to it.

qemu.qmp brings the messages; its sessions are those of clients. A client's bytes are JSON objects one after
another, with or without white space between them (qemu.qmp sends none). Whatever a client sends or leaves
unread costs a bounded amount of memory, and at worst its own connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from qemu.qmp.error import ProtocolError
from qemu.qmp.message import Message

from vfu_server.monitor.framer import MESSAGE_MAX, Framer

MISTAKES_MAX: Final = 16
"""Messages that are no JSON, until their sender is hung up on: answers cost more than rubbish."""

CLIENTS_MAX: Final = 16
"""Clients at a time; more are hung up on."""

BACKLOG_MAX: Final = 16 << 20
"""Bytes that a client may leave unread. One that takes no events is hung up on."""

EVENTS_MAX: Final = 1024
"""Events on their way from the functions' threads. A guest can make them faster than they are sent."""

THREADS_MAX: Final = 32
"""Commands under way, those included whose clients gave up: each is a thread."""

COMMAND_SECONDS: Final = 20.0
"""How long a command may take until it is answered with an error."""

UNREAD_SECONDS: Final = 60.0
"""How long a client may take to read an answer."""

log: Final = logging.getLogger("virtio.monitor")


class CommandFailed(Exception):
    """The command is answered with an error of this text, and of QMP's class `kind`."""

    def __init__(self, text: str, kind: str = "GenericError") -> None:
        super().__init__(text)
        self.kind = kind


_TYPE_NAMES: Final[Mapping[type, str]] = {bool: "boolean", str: "string", int: "integer"}


@dataclass(frozen=True, slots=True)
class Command:
    """A row of the command table. `run` is called with the arguments, on a thread of its own.

    It returns what JSON can say, None for nothing. `optional` names arguments that may be left out. `then` is
    called when the answer was sent, or could not be.
    """

    run: Callable[..., Any]
    arguments: Mapping[str, type] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    then: Callable[[], None] | None = None

    def check(self, given: Mapping[str, Any]) -> None:
        """Raise `CommandFailed`, naming the argument, for one that is unknown, missing or of a wrong type."""
        for name in given:
            if name not in self.arguments:
                raise CommandFailed(f"Parameter {name[:80]!r} is unexpected")
        for name, kind in self.arguments.items():
            if name in given:
                if type(given[name]) is not kind:
                    raise CommandFailed(f"Parameter {name!r} is no {_TYPE_NAMES[kind]}")
            elif name not in self.optional:
                raise CommandFailed(f"Parameter {name!r} is missing")


class QmpServer:
    """Serves QMP at a Unix socket with mode 0600, from `start` to `close`, in a thread of its own.

    `greeting` is the version that clients are told. The commands' names are what `query-commands` answers.
    """

    def __init__(self, path: Path, commands: Mapping[str, Command], greeting: Mapping[str, Any]) -> None:
        self._path = path
        self.greeting = greeting
        self.commands = {
            **commands,
            "query-commands": Command(lambda: [{"name": name} for name in sorted(self.commands)]),
        }
        self._sessions: set[_Session] = set()
        self._events: deque[dict[str, Any]] = deque(maxlen=EVENTS_MAX)
        self._lost = 0
        self._flushing = False
        self._full = False
        self._threads = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping: asyncio.Event | None = None
        self._started = threading.Event()
        self._thread = threading.Thread(target=self._main, name="monitor", daemon=True)
        self._socket: socket.socket | None = None

    def start(self) -> None:
        """Make the socket, in place of one that is there, and serve. Raises OSError, nothing left behind."""
        listener = socket.socket(socket.AF_UNIX)
        try:
            os.fchmod(listener.fileno(), 0o600)  # the mode that bind() gives the socket's file
            self._path.unlink(missing_ok=True)
            listener.bind(str(self._path))
            listener.listen(CLIENTS_MAX)
        except OSError:
            listener.close()
            raise
        self._socket = listener
        self._thread.start()
        self._started.wait()

    def close(self) -> None:
        """Hang up on all clients and remove the socket. What commands have begun goes on."""
        if self._socket is None:
            return
        if self._loop is not None and self._stopping is not None:
            with contextlib.suppress(RuntimeError):  # the loop ended by itself
                self._loop.call_soon_threadsafe(self._stopping.set)
        self._thread.join(5)
        self._path.unlink(missing_ok=True)
        self._socket.close()
        self._socket = None

    def publish(self, kind: str, data: Mapping[str, Any]) -> None:
        """Send an event to all clients. Any thread may call it; it never waits."""
        if self._loop is None or not self._sessions:
            return
        if len(self._events) == EVENTS_MAX:
            self._lost += 1
        self._events.append(_event(kind, data))
        if not self._flushing:
            self._flushing = True
            with contextlib.suppress(RuntimeError):  # the server ends
                self._loop.call_soon_threadsafe(self._flush)

    async def run(self, call: Callable[[], Any]) -> Any:
        """Call in a thread, a daemon: it may wait for a function whose backend hangs.

        Returns what it returns. Raises what it raises, or `CommandFailed` where that takes too long.
        """
        if self._threads >= THREADS_MAX:
            raise CommandFailed(f"{self._threads} commands are under way already")
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def deliver(result: Any, error: Exception | None) -> None:
            self._threads -= 1
            if future.done():
                return
            if error is not None:
                future.set_exception(error)
            else:
                future.set_result(result)

        def work() -> None:
            result, failure = None, None
            try:
                result = call()
            except Exception as error:  # noqa: BLE001 - raised again by the session
                failure = error
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(deliver, result, failure)

        threading.Thread(target=work, name="monitor command", daemon=True).start()
        self._threads += 1
        try:
            return await asyncio.wait_for(future, COMMAND_SECONDS)
        except TimeoutError:
            raise CommandFailed(f"no answer within {COMMAND_SECONDS:g} s: a backend may hang") from None

    def _main(self) -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        try:
            asyncio.run(self._serve())
        except Exception:
            log.exception("internal error: the monitor is no longer served, please report it")
        finally:
            self._started.set()

    async def _serve(self) -> None:
        self._stopping = asyncio.Event()
        server = await asyncio.start_unix_server(self._serve_client, sock=self._socket)
        self._loop = asyncio.get_running_loop()
        self._started.set()
        await self._stopping.wait()
        server.close()
        for session in list(self._sessions):
            session.hang_up()

    async def _serve_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        session = _Session(self, reader, writer)
        if len(self._sessions) >= CLIENTS_MAX:
            if not self._full:
                log.warning("clients of the monitor are refused: there are %d already", CLIENTS_MAX)
            self._full = True
            session.hang_up()
            return
        self._full = False
        self._sessions.add(session)
        try:
            await session.serve()
        except asyncio.CancelledError:
            pass  # the server ends; asyncio takes a handler that was cancelled for one that failed
        except (ConnectionError, TimeoutError) as error:
            log.debug("a client of the monitor was lost: %s", str(error) or "it does not read")
        except Exception:
            log.exception("internal error: a client of the monitor is hung up on, please report it")
        finally:
            self._sessions.discard(session)
            session.hang_up()
            # Who left while it was written to is known: else asyncio tells of an error that nobody looked at.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                await writer.wait_closed()

    def _flush(self) -> None:
        self._flushing = False
        if self._lost:
            lost, self._lost = self._lost, 0
            self._tell(_event("EVENTS_LOST", {"count": lost}))
        while self._events:
            self._tell(self._events.popleft())

    def _tell(self, event: Mapping[str, Any]) -> None:
        data = bytes(Message(event)) + b"\r\n"
        for session in self._sessions:
            session.tell(data)


class _Session:
    """One client: greeting, negotiation, then commands one at a time."""

    def __init__(self, server: QmpServer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._negotiated = False
        self._then: Callable[[], None] | None = None

    def hang_up(self) -> None:
        """End the connection; what was not read is dropped if it is much."""
        if self._writer.transport.get_write_buffer_size():
            self._writer.transport.abort()
        else:
            self._writer.close()

    def tell(self, data: bytes) -> None:
        """Send an event, unless the client reads none."""
        if not self._negotiated or self._writer.is_closing():
            return
        if self._writer.transport.get_write_buffer_size() > BACKLOG_MAX:
            log.warning("a client of the monitor reads nothing: it is hung up on")
            self._writer.transport.abort()
            return
        self._writer.write(data)

    async def serve(self) -> None:
        """Until the client leaves. Raises ConnectionError, or TimeoutError for one that does not read."""
        await self._send({"QMP": {"version": self._server.greeting, "capabilities": []}})
        framer = Framer()
        mistakes = 0
        while data := await self._reader.read(MESSAGE_MAX):
            try:
                for message in framer.feed(data):
                    request = _parse(message)
                    if request is None:
                        mistakes += 1
                        await self._send(_error("GenericError", "Invalid JSON syntax: an object is expected"))
                        if mistakes == MISTAKES_MAX:
                            return
                    else:
                        await self._carry_out(request)
            except OverflowError as error:
                await self._send(_error("GenericError", str(error)))
                return

    async def _send(self, message: Mapping[str, Any]) -> None:
        self._writer.write(bytes(Message(message)) + b"\r\n")
        await asyncio.wait_for(self._writer.drain(), UNREAD_SECONDS)

    async def _carry_out(self, request: Mapping[str, Any]) -> None:
        answer = await self._answer(request)
        try:
            await self._send(answer)
        finally:
            then, self._then = self._then, None
            if then is not None:
                then()

    async def _answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        reply: dict[str, Any]
        try:
            result = await self._execute(request)
            reply = {"return": {} if result is None else result}
        except CommandFailed as error:
            reply = _error(error.kind, str(error))
        except Exception:
            log.exception("internal error: a command of the monitor failed, please report it")
            reply = _error("GenericError", "internal error: see the server's log")
        if "id" in request:
            reply["id"] = request["id"]
        return reply

    async def _execute(self, request: Mapping[str, Any]) -> Any:
        for member in request:
            if member not in ("execute", "arguments", "id"):
                raise CommandFailed(f"QMP input member {member[:80]!r} is unexpected")
        name: Any = request.get("execute")
        if not isinstance(name, str):
            raise CommandFailed("QMP input lacks member 'execute', a string")
        arguments = request.get("arguments", {})
        if not isinstance(arguments, dict):
            raise CommandFailed("QMP input member 'arguments' must be an object")
        if not self._negotiated:
            return self._negotiate(name, arguments)
        if name == "qmp_capabilities":
            raise CommandFailed("Capabilities negotiation is complete already", "CommandNotFound")
        command = self._server.commands.get(name)
        if command is None:
            raise CommandFailed(f"The command {name[:80]} has not been found", "CommandNotFound")
        command.check(arguments)
        result = await self._server.run(lambda: command.run(**arguments))
        self._then = command.then
        return result

    def _negotiate(self, name: str, arguments: Mapping[str, Any]) -> None:
        if name != "qmp_capabilities":
            raise CommandFailed("Negotiate with 'qmp_capabilities' first", "CommandNotFound")
        if arguments.get("enable") or arguments.keys() - {"enable"}:
            raise CommandFailed("There are no capabilities to enable")
        self._negotiated = True


def _parse(message: bytes | None) -> Mapping[str, Any] | None:
    """A message, or None for what is none."""
    if message is None:
        return None
    try:
        return dict(Message(message))
    except (ProtocolError, ValueError, RecursionError):  # ValueError: bad UTF-8, numbers of very many digits
        return None


def _event(kind: str, data: Mapping[str, Any]) -> dict[str, Any]:
    seconds, rest = divmod(time.time_ns(), 10**9)
    return {
        "timestamp": {"seconds": seconds, "microseconds": rest // 1000},
        "event": kind,
        "data": data,
    }


def _error(kind: str, text: str) -> dict[str, Any]:
    return {"error": {"class": kind, "desc": text}}
