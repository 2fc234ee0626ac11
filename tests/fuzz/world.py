"""What a fuzz target attacks: a PF with three VFs, reached through connections, and what must hold of it.

VF 1 is attacked, VF 2 has another disk, VF 3 is the neighbour that must not notice anything.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from pymodel.migration.writing import STAGING_SLACK
from pymodel.spec.context import MAX_FIELD_LENGTH
from vfu_client.vfio.connection import Connection

MIB: Final = 1 << 20
DISKS: Final = {"pf": MIB, "vf1": MIB, "vf2": MIB // 2, "vf3": MIB}

# How long a command or request may take until it is answered, on a machine that does other things too.
PATIENCE: Final = 20.0
# How long any function but the one attacked may take to answer, and one call into the model.
STALL: Final = 1.0


class Finding(AssertionError):
    """Something that must never happen did."""


class Reachable(Protocol):
    """A device that clients connect to."""

    def connect(self, function: str) -> Connection:
        """A new client of `pf`, `vf1` or `vf2`; the one before must have been closed."""
        ...

    def wait(self, condition: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Let the device work until `condition` holds. Whether it does, in time."""
        ...


class World(Reachable, Protocol):
    """A device under attack."""

    def renew_vfs(self, disable: Callable[[], None], enable: Callable[[], None]) -> None:
        """Have all VFs go and new ones come, by these; nobody uses one meanwhile."""
        ...

    def check(self) -> None:
        """Raise `Finding` where something besides the attacked function suffered."""
        ...

    def close(self) -> None:
        """End it. Raises `Finding` where it does not end cleanly."""
        ...


def memory_bound() -> int:
    """Bytes of its own that a server may hold above what it had when idle (docs/limits.md).

    The disks of all functions; for each VF that is read or written (VF 1 here) a snapshot of its disk, and
    two times what a context may stage: the contexts that ended in a command, and the one that follows.
    """
    content = DISKS["vf1"]
    staged = 2 * content + STAGING_SLACK
    return sum(DISKS.values()) + content + 2 * (staged + MAX_FIELD_LENGTH) + 64 * MIB
