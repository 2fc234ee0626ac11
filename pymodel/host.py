"""What a function needs of whoever serves it.

The model does no I/O: `vfu_server` implements this Protocol on libvfio-user, tests fake it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

from pymodel.memory import GuestMemory

# What an observer is told of. docs/monitor.md says what comes with each.
FUNCTION_ATTACHED: Final = "FUNCTION_ATTACHED"
FUNCTION_DETACHED: Final = "FUNCTION_DETACHED"
DRIVER_STATUS: Final = "DRIVER_STATUS"
MODE_CHANGED: Final = "MODE_CHANGED"
RULE_BROKEN: Final = "RULE_BROKEN"
FAULT_INJECTED: Final = "FAULT_INJECTED"
VF_BARS_MISPLACED: Final = "VF_BARS_MISPLACED"


class Observer(Protocol):
    """Who wants to know what happens to the functions: the server's monitor."""

    def event(self, function: str, kind: str, data: Mapping[str, Any]) -> None:
        """Something happened. `data` is what JSON can say.

        Called with the function's lock held, on any thread: it must not block, raise, or call back.
        """
        ...


class Nobody:
    """The observer where there is none."""

    def event(self, function: str, kind: str, data: Mapping[str, Any]) -> None:
        """Nothing is done about it."""


NOBODY: Final = Nobody()


class Host(Protocol):
    """The outside of one function, while a client is attached to it.

    All but `wake` are called with the function's lock held, on the thread that serves the function.
    """

    @property
    def memory(self) -> GuestMemory:
        """The guest's memory as this function's client mapped it."""
        ...

    @property
    def memory_in_flux(self) -> bool:
        """Whether the client took memory away a moment ago and may be about to map it anew.

        QEMU does so whenever the guest's firmware moves something in the address space: for that moment
        memory is missing which its guest can never miss.
        """
        ...

    def msix(self, vector: int) -> None:
        """Send the MSI-X message of `vector`. A vector that the client gave no eventfd for is dropped."""
        ...

    def intx(self) -> None:
        """Assert INTx once more (the client deasserts it by itself after each access)."""
        ...

    def post_write(self, address: int, data: bytes) -> None:
        """Have `data` written at an address that need not be memory. Nobody says whether it was."""
        ...

    def wake(self) -> None:
        """Have `Function.service` called soon on the function's own thread. Any thread may call it."""
        ...

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` on the function's own thread, its lock held, in `seconds`; then `Function.service`.

        It is called whether or not a client is still attached.
        """
        ...

    def end(self, reason: str) -> None:
        """Serve this function no more: its client is hung up on, nobody may come."""
        ...
