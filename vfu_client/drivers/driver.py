"""What every driver of one function has in common: the function, from its initialization to the hang-up."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, Self

from pymodel.spec import virtio
from vfu_client.vfio.connection import DEFAULT_TIMEOUT
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci


class Driver:
    """Drives `device` until its context is left, or `close`. `timeout` is in seconds, for each wait.

    The constructor goes as far as FEATURES_OK, and raises as `VirtioPci.initialize`; that of a device type
    makes the queues and lets the device run.
    """

    def __init__(
        self,
        device: VirtioPci,
        *,
        wanted: Iterable[int],
        required: Iterable[int] = (virtio.F_VERSION_1,),
        use_msix: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        self.device = device
        self.timeout = timeout
        device.initialize(wanted=wanted, required=required, use_msix=use_msix, timeout=timeout)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        memory: GuestMemory | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        negotiation_timeout: float | None = None,
        posted_writes: bool = False,
        **settings: Any,
    ) -> Self:
        """Connect to a function's socket and drive it; `settings` are the constructor's.

        Raises as `VirtioPci.open` and the constructor do; then nothing is left open.
        """
        device = VirtioPci.open(
            path,
            memory=memory,
            timeout=timeout,
            negotiation_timeout=negotiation_timeout,
            posted_writes=posted_writes,
        )
        try:
            return cls(device, timeout=timeout, **settings)
        except BaseException:
            device.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up."""
        self.device.close()
