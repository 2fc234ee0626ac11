"""What every driver of one function has in common: the function, and the end of the connection."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from vfu_client.virtio.function import VirtioPci


class Driver:
    """Drives `device` until its context is left, or `close`. `timeout` is in seconds, for each wait."""

    def __init__(self, device: VirtioPci, timeout: float) -> None:
        self.device = device
        self.timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.device.close()
