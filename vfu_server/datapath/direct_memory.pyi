"""Guest memory for code that is compiled."""

from typing import Self, final

from pymodel.memory import GuestMemory as Memory
from vfu_server.vfio.guest_memory import GuestMemory

@final
class DirectMemory(Memory):
    """What the client of a context mapped, as the rings and engines of the compiled model reach it."""

    def __new__(cls, target: GuestMemory) -> Self: ...
