"""What happens to the guest and those around it: a table of kinds, and what may become of the guest."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


class Victim(enum.Enum):
    """Who gets the signal."""

    NOBODY = "nobody"
    MIGRATE = "vfu-migrate"
    AGENT = "the destination's agent"
    WAY = "the connection between the hosts"
    SOURCE_SERVER = "a server at the source"
    DESTINATION_SERVER = "a server at the destination"
    SOURCE_QEMU = "QEMU at the source"
    DESTINATION_QEMU = "QEMU at the destination"
    CLIENT = "a client of another VF, and of the PF"


@dataclass(frozen=True)
class Kind:
    """`weight` is how often it comes, of the sum of all; `moves` whether the guest is about to move."""

    victim: Victim
    weight: int
    moves: bool = True
    gentle: bool = False
    """SIGTERM, not SIGKILL."""

    @property
    def takes_guest(self) -> bool:
        """Whether the guest cannot live on without the victim, unless it has moved away from it."""
        return self.victim in {Victim.SOURCE_SERVER, Victim.SOURCE_QEMU}

    @property
    def takes_destination(self) -> bool:
        """Whether the guest cannot live on where it moves to."""
        return self.victim in {Victim.DESTINATION_SERVER, Victim.DESTINATION_QEMU}


KINDS: Final[Mapping[str, Kind]] = {
    "move": Kind(Victim.NOBODY, 12),
    "stop vfu-migrate": Kind(Victim.MIGRATE, 3, gentle=True),
    "kill vfu-migrate": Kind(Victim.MIGRATE, 4),
    "kill agent": Kind(Victim.AGENT, 3),
    "cut connection": Kind(Victim.WAY, 3),
    "kill source's server": Kind(Victim.SOURCE_SERVER, 1),
    "kill destination's server": Kind(Victim.DESTINATION_SERVER, 2),
    "kill source's QEMU": Kind(Victim.SOURCE_QEMU, 1),
    "kill destination's QEMU": Kind(Victim.DESTINATION_QEMU, 3),
    "kill server, no move": Kind(Victim.SOURCE_SERVER, 1, moves=False),
    "kill QEMU, no move": Kind(Victim.SOURCE_QEMU, 1, moves=False),
    "kill client, no move": Kind(Victim.CLIENT, 3, moves=False),
}

MOVED, STAYED, LOST = "moved", "stayed", "lost"
"""Where the guest is afterwards: at the destination, at the source, nowhere (a new one is booted)."""


class BrokenError(Exception):
    """What must hold does not; the message says what."""


@dataclass(frozen=True)
class Found:
    """How it is after a move: which of the two guests runs and has all its devices, and what was said."""

    struck: bool
    """Whether the victim lived until it was killed: a move may have been over before."""
    source: bool
    destination: bool
    both_run: bool = False
    """Two guests run, whatever became of their devices."""
    moved: bool | None = None
    """What vfu-migrate said; None where it said nothing, as it was killed."""
    state: str = ""
    """Where it said that the guest has not moved: in which state it is."""


def verdict(kind: Kind, found: Found) -> str:
    """MOVED, STAYED or LOST. Raises BrokenError where that must not be."""
    if found.both_run:
        raise BrokenError("two guests run")
    if found.source:
        if found.moved:
            raise BrokenError("vfu-migrate said that the guest has moved, and it runs at the source")
        return STAYED
    if found.destination:
        if found.moved is False and "not known" not in found.state:
            raise BrokenError(f"vfu-migrate did not say that the guest has moved, but: {found.state}")
        return MOVED
    if not found.struck or not (kind.takes_guest or kind.takes_destination):
        raise BrokenError(f"the guest runs nowhere, and has not lost what it needs: {found.state}")
    if kind.takes_destination and "runs at the source as before" in found.state:
        raise BrokenError(f"the guest does not run, though vfu-migrate said: {found.state}")
    return LOST
