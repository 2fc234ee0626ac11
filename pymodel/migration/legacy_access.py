"""What a member offers to the owner's commands that stand in for a legacy driver's accesses."""

from __future__ import annotations

from typing import Protocol


class LegacyAccess(Protocol):
    """A member's registers as a legacy driver finds them behind its BAR 0, device configuration apart.

    Offsets and lengths are bytes. What the checks refuse is not to be read or written.
    """

    def check_common(self, offset: int, length: int) -> None:
        """Raise `InvalidField` for what is not inside of one field of the common configuration."""
        ...

    def check_device(self, offset: int, length: int) -> None:
        """The same for the device configuration."""
        ...

    def read_common(self, offset: int, length: int) -> bytes:
        """Read the common configuration, side effects and all."""
        ...

    def write_common(self, offset: int, data: bytes) -> None:
        """Write it. Raises `InvalidCommand` while a driver that is no legacy one has the device."""
        ...

    def read_device(self, offset: int, length: int) -> bytes:
        """Read the device configuration."""
        ...

    def write_device(self, offset: int, data: bytes) -> None:
        """Write it. Raises as `write_common`."""
        ...

    @property
    def notify_address(self) -> tuple[int, int]:
        """The BAR of the member, and the offset in it, where a queue's index notifies that queue."""
        ...
