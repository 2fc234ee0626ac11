"""What a move needs of the commands that carry the state of VFs, whichever they are."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from vfu_client.move.progress import silent
from vfu_client.owner.context import Field
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import Bytes


class Carrier(ABC):
    """Stops the VFs of one owner, and carries what they hold. Everything here raises as `OwnerDriver` does.

    Modes are those of `pymodel.spec.context`, whatever the commands call them.
    """

    def __init__(self, owner: OwnerDriver) -> None:
        self.owner = owner

    @abstractmethod
    def needed(self) -> frozenset[int]:
        """The opcodes that a device must list for its VFs."""

    @abstractmethod
    def obstacle(self, vf: int) -> str:
        """Why a VF cannot be moved by these commands, in words; empty where it can."""

    @abstractmethod
    def unfit(self, source: Sequence[Field], destination: Sequence[Field]) -> list[str]:
        """What keeps a device from taking another's state, in words; nothing where it fits."""

    @abstractmethod
    def mode_set(self, vf: int, mode: int, *, timeout: float | None = None) -> None:
        """Change the mode of a VF. What was written before is in force when it runs."""

    @abstractmethod
    def peek(self, vf: int) -> list[Field]:
        """The common fields of a VF's present state."""

    @abstractmethod
    def fields(self, state: Sequence[Bytes]) -> list[Field]:
        """The same of a state that was read."""

    @abstractmethod
    def read(self, vf: int, progress: Callable[[int, int], None] = silent) -> list[Bytes]:
        """All of a VF's state, whatever was read before. `progress` hears of bytes, and of how many."""

    @abstractmethod
    def freeze_and_read_rest(self, vf: int) -> list[Bytes]:
        """Have a VF stand still; what is new in its state since `read`, or all where they can't tell."""

    @abstractmethod
    def write(self, vf: int, state: Sequence[Bytes], progress: Callable[[int, int], None] = silent) -> None:
        """Give a VF that stands still a state. Raises `AdminError` where it does not take it."""

    @abstractmethod
    def write_reset(self, vf: int) -> None:
        """Give a VF that stands still the state after a reset; what it holds for its user stays."""
