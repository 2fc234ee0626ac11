"""What a function needs of whoever serves it.

The model does no I/O: `vfu_server` implements this Protocol on libvfio-user, tests fake it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from pymodel.memory import GuestMemory


class Host(Protocol):
    """The outside of one function, while a client is attached to it.

    All but `wake` are called with the function's lock held, on the thread that serves the function.
    """

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory as this function's client mapped it."""
        ...

    def msix(self, vector: int) -> None:
        """Send the MSI-X message of `vector`. A vector that the client gave no eventfd for is dropped."""
        ...

    def intx(self) -> None:
        """Assert INTx once more (the client deasserts it by itself after each access)."""
        ...

    def wake(self) -> None:
        """Have `Function.service` called soon on the function's own thread. Any thread may call it."""
        ...

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` on the function's own thread, its lock held, in `seconds`; then `Function.service`.

        It is called whether or not a client is still attached.
        """
        ...
