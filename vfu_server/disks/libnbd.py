"""libnbd as a table of its functions: the system's, else the one that `vfu-images libnbd` unpacked.

It is loaded when a disk wants it, and needs no compiler, as its authors keep its binary interface stable.
Meanings and errors of the functions are in libnbd(3).
"""

from __future__ import annotations

import ctypes
import functools
import os
import re
from ctypes import c_bool, c_char_p, c_int, c_int64, c_size_t, c_uint, c_uint32, c_uint64, c_void_p
from pathlib import Path
from typing import Any, Final

SONAME: Final = "libnbd.so.0"

_BUILDS: Final = (
    Path(__file__).parents[2] / "build",
    Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "vfu-virtio"),
)
UNPACKED: Final = tuple(build / "cache" / "libnbd" / "usr" / "lib" for build in _BUILDS)
"""Where a clone, and an installed package, keep one of Debian, with all that it needs."""

READ, WRITE = 1, 2
"""Bits of `nbd_aio_get_direction`."""

FUA, NO_HOLE = 1, 2
"""Flags of commands."""

SIZE_MINIMUM, SIZE_PREFERRED, SIZE_MAXIMUM = 0, 1, 2
"""What `nbd_get_block_size` is asked for."""


class Completion(ctypes.Structure):
    """`nbd_completion_callback`; all zero, there is none."""

    _fields_ = [("callback", c_void_p), ("user_data", c_void_p), ("free", c_void_p)]


NO_COMPLETION: Final = Completion()

_FUNCTIONS: Final[dict[str, tuple[Any, tuple[Any, ...]]]] = {
    "nbd_aio_command_completed": (c_int, (c_void_p, c_uint64)),
    "nbd_aio_connect_uri": (c_int, (c_void_p, c_char_p)),
    "nbd_aio_disconnect": (c_int, (c_void_p, c_uint32)),
    "nbd_aio_flush": (c_int64, (c_void_p, Completion, c_uint32)),
    "nbd_aio_get_direction": (c_uint, (c_void_p,)),
    "nbd_aio_get_fd": (c_int, (c_void_p,)),
    "nbd_aio_is_closed": (c_int, (c_void_p,)),
    "nbd_aio_is_connecting": (c_int, (c_void_p,)),
    "nbd_aio_is_dead": (c_int, (c_void_p,)),
    "nbd_aio_is_ready": (c_int, (c_void_p,)),
    "nbd_aio_notify_read": (c_int, (c_void_p,)),
    "nbd_aio_notify_write": (c_int, (c_void_p,)),
    "nbd_aio_peek_command_completed": (c_int64, (c_void_p,)),
    "nbd_aio_pread": (c_int64, (c_void_p, c_void_p, c_size_t, c_uint64, Completion, c_uint32)),
    "nbd_aio_pwrite": (c_int64, (c_void_p, c_void_p, c_size_t, c_uint64, Completion, c_uint32)),
    "nbd_aio_trim": (c_int64, (c_void_p, c_uint64, c_uint64, Completion, c_uint32)),
    "nbd_aio_zero": (c_int64, (c_void_p, c_uint64, c_uint64, Completion, c_uint32)),
    "nbd_can_flush": (c_int, (c_void_p,)),
    "nbd_can_fua": (c_int, (c_void_p,)),
    "nbd_can_trim": (c_int, (c_void_p,)),
    "nbd_can_zero": (c_int, (c_void_p,)),
    "nbd_close": (None, (c_void_p,)),
    "nbd_create": (c_void_p, ()),
    "nbd_get_block_size": (c_int64, (c_void_p, c_int)),
    "nbd_get_errno": (c_int, ()),
    "nbd_get_error": (c_char_p, ()),
    "nbd_get_size": (c_int64, (c_void_p,)),
    "nbd_is_read_only": (c_int, (c_void_p,)),
    "nbd_set_uri_allow_local_file": (c_int, (c_void_p, c_bool)),
}


class MissingError(ValueError):
    """There is no libnbd here; the message says how to get one."""


@functools.cache
def library() -> ctypes.CDLL:
    """The library, its functions declared. Raises MissingError."""
    try:
        loaded = _load(SONAME)
    except OSError as error:
        raise MissingError(
            "disks of NBD servers need libnbd: apt-get install libnbd0, dnf install libnbd, or"
            f" vfu-images libnbd ({error})"
        ) from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.restype = result
        function.argtypes = arguments
    return loaded


def failure() -> OSError:
    """What the last function that failed on this thread says of it."""
    said = library().nbd_get_error() or b"unknown error"
    # "nbd_connect_uri: what it did: why"; people need no names of functions.
    text = said.decode(errors="replace").partition(": ")[2] or said.decode(errors="replace")
    return OSError(library().nbd_get_errno() or 5, text)


def _load(name: str) -> ctypes.CDLL:
    """One library, the system's first; of ours also those that it needs and the system has not."""
    try:
        return ctypes.CDLL(name)
    except OSError:
        found = [path for folder in UNPACKED for path in sorted(folder.glob(f"*/{name}"))]
        if not found:
            raise
    for _ in range(64):
        try:
            return ctypes.CDLL(os.fspath(found[0]), mode=ctypes.RTLD_GLOBAL)
        except OSError as error:
            needed = re.match(r"(\S+): cannot open shared object file", str(error))
            if needed is None or needed[1] == os.fspath(found[0]):
                raise
            _load(needed[1])
    raise OSError(f"{found[0]} needs too many libraries")
