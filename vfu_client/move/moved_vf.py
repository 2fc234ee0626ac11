"""Which VFs a move takes along, and where to."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Vf:
    """A VF on one side of a move: its number, and the name of its server there if that has one."""

    number: int
    server: str = ""

    def __str__(self) -> str:
        return f"VF {self.number}" + (f" of {self.server}" if self.server else "")


@dataclass(frozen=True)
class MovedVf:
    """One VF of the guest: what it is at the source and at the destination, and its device id in each QEMU.

    An id that is None is found by the socket that QEMU's device is connected to.
    """

    source: Vf
    destination: Vf
    source_device: str | None = None
    destination_device: str | None = None
