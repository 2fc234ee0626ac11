"""What one client may take of what all functions of the process share.

A process has so many file descriptors, memory mappings and addresses, and each client can ask for them
without end. Every function has an equal share, so that no client can take what another one needs.
"""

from __future__ import annotations

import contextlib
import os
import resource
from pathlib import Path
from typing import Final, NamedTuple

from vfu_server.vfio.guest_memory import BYTES_MAX, MAPPINGS_MAX

DESCRIPTORS_KEPT: Final = 64
"""For what no function has to itself: the monitor's clients, an uplink, the standard streams."""

DESCRIPTORS_OF_A_FUNCTION: Final = 40
"""Beside eventfds: 2 of its socket, 2 of a connection, 16 with each of 2 messages, its disk or port."""

DESCRIPTORS_LEAST: Final = 4
"""Beside eventfds and what is open at the start, as ports are: those of the socket and of a connection."""

EVENTFDS_MIN: Final = 16
"""What a client may have even where there are too few for all."""

MAPPINGS_KEPT: Final = 8192
"""For libraries and the heap."""

MAPPINGS_OF_A_THREAD: Final = 3
"""Its stack, the page that guards that, and what the interpreter has for it."""

MAPPINGS_OF_A_FILE: Final = 2
"""A file that is cut short under its mapping leaves two."""

ADDRESS_SPACE: Final = 96 << 40
"""Bytes, of the 128 TiB that a process on x86-64 has."""

_MAX_MAP_COUNT: Final = Path("/proc/sys/vm/max_map_count")


class TooFewError(Exception):
    """The process may not have the file descriptors that all functions take; the message says what to do."""


class Budget(NamedTuple):
    """The share of one client."""

    eventfds: int = 0x7FFF_FFFF
    mappings: int = MAPPINGS_MAX
    """Of files of guest memory."""
    address_space: int = BYTES_MAX
    """Bytes for those."""


def raise_descriptor_limit() -> int:
    """Raise the process's soft limit of file descriptors to its hard one. Returns what it is now."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(
        ValueError, OSError
    ):  # where the system's own limit was lowered below the hard one
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def check(functions: int, vectors: int, descriptors: int) -> None:
    """Raise TooFewError where some of `functions` could not be served while all the others have a client.

    A client gives an eventfd for each of the `vectors` that a driver uses, up to `EVENTFDS_MIN`. The process
    may have `descriptors`, those open now included.
    """
    fixed = _open_descriptors() + DESCRIPTORS_KEPT
    each = DESCRIPTORS_LEAST + min(vectors, EVENTFDS_MIN)
    needed = fixed + functions * each
    if needed > descriptors:
        vfs = max((descriptors - fixed) // each - 1, 0)
        raise TooFewError(
            f"{functions} with a client each take {needed} file descriptors at least, and the hard limit of"
            f" {descriptors} is enough for {vfs} VFs: raise it (as root: ulimit -n {needed}; a systemd unit:"
            f" LimitNOFILE={needed}), or have fewer VFs"
        )


def share(functions: int, descriptors: int) -> Budget:
    """What each of `functions` may take where the process may have `descriptors`, those open now included."""
    left = descriptors - _open_descriptors() - DESCRIPTORS_KEPT
    kept = MAPPINGS_KEPT + functions * MAPPINGS_OF_A_THREAD
    mappings = max(int(_MAX_MAP_COUNT.read_text()) - kept, 0) // MAPPINGS_OF_A_FILE
    return Budget(
        eventfds=max(left // functions - DESCRIPTORS_OF_A_FUNCTION, EVENTFDS_MIN),
        mappings=max(min(mappings, MAPPINGS_MAX) // functions, 1),
        address_space=ADDRESS_SPACE // functions,
    )


def _open_descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
