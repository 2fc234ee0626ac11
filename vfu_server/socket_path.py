"""Sockets in the file system: names that can be had, and what an earlier process left behind."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Final

SOCKET_PATH_MAX: Final = 107
"""Bytes in the name of a Unix socket (unix(7)), less the NUL."""


def check_path(path: str | Path) -> None:
    """Raise ValueError for a name that no socket can have."""
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise ValueError(f"{path}: the name is too long for a socket; choose a shorter one")


def bound(kind: socket.SocketKind, path: Path) -> socket.socket:
    """A non-blocking Unix socket at `path`, for its owner only. One that nobody serves any more is replaced.

    Raises OSError, its text says what to do.
    """
    try:
        check_path(path)
    except ValueError as error:
        raise OSError(str(error)) from None
    made = socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK)
    try:
        _clear(kind, path)
        # Nobody can connect before the mode is right: umask is the whole process's.
        os.fchmod(made.fileno(), 0o600)
        made.bind(os.fspath(path))
    except OSError as error:
        made.close()
        raise OSError(f"{path}: {error.strerror or error}") from error
    return made


def _clear(kind: socket.SocketKind, path: Path) -> None:
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise OSError("there is a file that is no socket; choose another name")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, kind | socket.SOCK_NONBLOCK) as probe:
        try:
            probe.connect(os.fspath(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
            return
        except OSError:
            pass
    raise OSError("another process has this socket; end it, or choose another name")
