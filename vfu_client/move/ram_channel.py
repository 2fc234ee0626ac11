"""The way of a guest's memory from QEMU to QEMU: a socket of this host, or TCP to another one."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any, Final, Protocol

from vfu_client.move.qemu import Qemu
from vfu_client.qemu.running import QemuError

SOCKET_PATH_BYTES: Final = 107
"""struct sockaddr_un holds 108, and QEMU wants a zero at the end."""


class RamChannel(Protocol):
    """Where the destination's QEMU listens, and how the source's reaches it."""

    def check(self) -> None:
        """Raise QemuError where QEMU could not listen, as far as can be seen: it would cost that QEMU."""
        ...

    def parameters(self) -> dict[str, Any]:
        """What the source's migration parameters are to be beside others."""
        ...

    def parameters_there(self) -> dict[str, Any]:
        """The same of the destination."""
        ...

    async def listen(self, qemu: Qemu) -> str:
        """Have the destination listen; the URI for the source's `migrate`. Raises QemuError."""
        ...


class UnixChannel:
    """A socket at `path`."""

    def __init__(self, path: Path) -> None:
        # QEMU would take a relative one for a file of its own folder.
        self._path = path.absolute()

    def check(self) -> None:
        path = self._path
        if path.exists() and not path.is_socket():
            raise QemuError(f"{path} exists and is no socket: name another --ram-socket")
        if not os.access(path.parent, os.W_OK | os.X_OK):
            raise QemuError(f"no socket can be made in {path.parent}: name another --ram-socket")
        if len(os.fsencode(path)) > SOCKET_PATH_BYTES:
            raise QemuError(
                f"{path} has more bytes than the path of a socket ({SOCKET_PATH_BYTES}): name another"
            )

    def parameters(self) -> dict[str, Any]:
        return {}

    def parameters_there(self) -> dict[str, Any]:
        return {}

    async def listen(self, qemu: Qemu) -> str:
        await _listen(qemu, f"unix:{self._path}")
        return f"unix:{self._path}"


class TcpChannel:
    """An address of the destination's host, a name or a number; a port that is free where none is given.

    `tls` is the id of an object of TLS credentials that both QEMUs have (`-object tls-creds-x509,id=...`).
    """

    def __init__(self, host: str, port: int = 0, tls: str | None = None) -> None:
        self._host = host
        self._port = port
        self._tls = tls

    @classmethod
    def parse(cls, text: str, tls: str | None = None) -> TcpChannel:
        """HOST, HOST:PORT, or with a colon in HOST [HOST]:PORT. Raises ValueError."""
        found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[\w.-]+)(?::([0-9]{1,5}))?", text)
        if found is None or int(found[2] or 0) > 0xFFFF:
            raise ValueError(f"{text!r} is no address: give HOST, HOST:PORT or [ADDRESS]:PORT")
        return cls(found[1], int(found[2] or 0), tls)

    def check(self) -> None:
        """It is the other host's; QEMU sees whether it can listen there."""

    def parameters(self) -> dict[str, Any]:
        return {} if self._tls is None else {"tls-creds": self._tls, "tls-hostname": self._host.strip("[]")}

    def parameters_there(self) -> dict[str, Any]:
        return {} if self._tls is None else {"tls-creds": self._tls}

    async def listen(self, qemu: Qemu) -> str:
        await _listen(qemu, f"tcp:{self._host}:{self._port}")
        port = self._port
        if not port:
            addresses = (await qemu.execute("query-migrate")).get("socket-address", [])
            port = next((int(each["port"]) for each in addresses if each.get("type") == "inet"), 0)
        if not port:
            raise QemuError(
                f"{qemu.name}: QEMU does not say at which port it listens: give --ram-address one"
            )
        return f"tcp:{self._host}:{port}"


async def _listen(qemu: Qemu, uri: str) -> None:
    await qemu.execute("migrate-incoming", {"uri": uri, "exit-on-error": False})
