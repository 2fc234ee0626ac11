"""A function's thread while there is nothing but kicks: from message to interrupt without the interpreter."""

from collections.abc import Sequence
from typing import Final, Self, final

from pymodel.pci.lane import Lane
from vfu_server.vfio._vfu import Context
from vfu_server.vfio.turn_lock import TurnLock

LANES_MAX: Final[int]
"""Queues that a loop serves; others are the model's alone."""

@final
class Loop:
    """Serves queues with the engines of their device type, as long as nobody else touched the function."""

    def __new__(cls, line: Context, lock: TurnLock) -> Self: ...
    @property
    def armed(self) -> bool:
        """Whether there are lanes, and nobody was seen to have had the lock since."""

    def arm(self, lanes: Sequence[Lane]) -> None:
        """Serve these from now on. To be called with the lock held, at the end of what Python has to do."""

    def run(self, timeout: float | None, also: Sequence[tuple[int, int]] = ()) -> bool:
        """Wait for kicks and serve them, up to `timeout` seconds, or until one of `also` is ready.

        True: the client, the wake or `also` is for `Context.run`. False: the model is to go on with `others`.
        Without lanes that anybody else may have changed it does nothing. Raises ValueError for too many
        descriptors.
        """

    def others(self) -> list[int]:
        """The queues that the model is to look at, since the last call."""
