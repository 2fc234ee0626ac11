"""A minimal QMP client, synchronous, on a connected socket. For starting a machine; the project else uses
qemu.qmp.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Mapping
from typing import Any


class QMPError(Exception):
    """QEMU refused a command, or its monitor is gone; the message has the command and QEMU's own words."""


class QMP:
    """One QMP session. Events that arrive meanwhile are kept in `events`, oldest first, for whoever looks for
    them.
    """

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._unread = b""
        self.events: list[dict[str, Any]] = []

    def negotiate(self, timeout: float = 30.0) -> None:
        """Take the greeting and leave negotiation mode. Raises QMPError when QEMU is gone, TimeoutError when
        silent.
        """
        self._message(time.monotonic() + timeout)
        self.execute("qmp_capabilities", {}, timeout=timeout)

    def execute(self, command: str, arguments: Mapping[str, Any], *, timeout: float = 30.0) -> Any:
        """Run one command and return its value.

        Raises QMPError when it is refused, and TimeoutError when no answer comes: the session is then of no
        more use.
        """
        request: dict[str, Any] = {"execute": command, "arguments": dict(arguments)}
        self._connection.sendall(json.dumps(request).encode() + b"\n")
        deadline = time.monotonic() + timeout
        while True:
            message = self._message(deadline)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise QMPError(f"{command}: {message['error'].get('desc', message['error'])}")
            if "event" in message:
                self.events.append(message)

    def wait_event(self, name: str, *, timeout: float = 30.0) -> dict[str, Any]:
        """Take the oldest event of that name out of `events`, waiting for it. Raises TimeoutError."""
        deadline = time.monotonic() + timeout
        while True:
            for index, event in enumerate(self.events):
                if event["event"] == name:
                    return self.events.pop(index)
            message = self._message(deadline)
            if "event" in message:
                self.events.append(message)

    def _message(self, deadline: float) -> dict[str, Any]:
        while b"\n" not in self._unread:
            self._connection.settimeout(max(deadline - time.monotonic(), 0.001))
            try:
                received = self._connection.recv(65536)
            except ConnectionError as error:
                raise QMPError(f"QEMU closed its monitor: {error}") from error
            if not received:
                raise QMPError("QEMU closed its monitor")
            self._unread += received
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line)
        return message

    def close(self) -> None:
        """Close the connection; QEMU goes on."""
        self._connection.close()
