"""What the virtio side of a function needs of its PCI side."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from pymodel.memory import GuestMemory


class Bus(Protocol):
    """The PCI function under a transport."""

    @property
    def memory(self) -> GuestMemory:
        """Guest memory; every access passes the function's gate and its write record."""
        ...

    @property
    def msix_vectors(self) -> int:
        """How many MSI-X vectors there are: vector numbers from there on cannot be mapped."""
        ...

    @property
    def may_fetch(self) -> bool:
        """Whether buffers may be taken: the DMA gate is open and nobody is waiting for it to close."""
        ...

    @property
    def may_access(self) -> bool:
        """Whether the DMA gate is open."""
        ...

    @property
    def frozen(self) -> bool:
        """Whether nothing that the device itself does may change its context (DEV-20)."""
        ...

    @property
    def memory_in_flux(self) -> bool:
        """Whether memory that is missing now may be back in a moment."""
        ...

    def interrupts_owed(self) -> None:
        """Something is owed, or may now be delivered."""
        ...

    def wake(self) -> None:
        """Have the function serviced soon."""
        ...

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` after `seconds`, then service the function; at once if `seconds` is 0."""
        ...

    def device_was_reset(self) -> None:
        """A device reset is over."""
        ...

    def reset_function(self) -> None:
        """Reset the function, as a function-level reset does."""
        ...

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell who observes this function (`pymodel.host.Observer`)."""
        ...
