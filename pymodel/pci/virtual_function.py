"""A virtual function: made by VF Enable, gone with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from pymodel.admin.rules import Rules
from pymodel.devices.device import Device
from pymodel.host import NOBODY, Observer
from pymodel.migration.member import Member
from pymodel.pci.function import Delays, Function


class VirtualFunction(Function):
    """A VF as its client sees it: real ids and BARs, MSI-X only, no INTx.

    `vf_memory` tells the PF's VF Memory Space Enable. A new VF is in reset state and Active.
    """

    def __init__(
        self,
        number: int,
        device: Device,
        lock: AbstractContextManager[Any],
        *,
        delays: Delays,
        vf_memory: Callable[[], bool],
        without: Iterable[str] = (),
        observer: Observer = NOBODY,
        rules: Rules | None = None,
    ) -> None:
        self._vf_memory = vf_memory
        super().__init__(
            f"vf{number}", device, lock, delays=delays, without=without, observer=observer, rules=rules
        )
        assert self.member is not None
        self.as_member: Member = self.member

    @property
    def memory_space(self) -> bool:
        """Whether the BARs answer: not while the PF's VF MSE is clear."""
        return self._vf_memory() and super().memory_space

    def remove(self) -> None:
        """VF Enable was cleared: forget everything, and let commands that wait for this VF end."""
        with self.lock:
            self._memory = None
            self._finish_flr()
            self.as_member.settled()
