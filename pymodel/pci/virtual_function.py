"""A virtual function: made by VF Enable, gone with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any

from pymodel.devices.device import Device
from pymodel.host import FUNCTION_DETACHED, NOBODY, Observer
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
        strict: bool = False,
        transitional: bool = False,
        observer: Observer = NOBODY,
    ) -> None:
        self._vf_memory = vf_memory
        self._removed = False
        super().__init__(
            f"vf{number}",
            device,
            lock,
            delays=delays,
            without=without,
            strict=strict,
            transitional=transitional,
            observer=observer,
        )
        assert self.member is not None
        self.as_member: Member = self.member

    @property
    def memory_space(self) -> bool:
        """Whether the BARs answer: not while the PF's VF MSE is clear."""
        return self._vf_memory() and super().memory_space

    def memory_changed(self) -> None:
        """VF MSE may be another: whoever serves the VF by itself finds that it was touched."""
        with self.lock:
            pass

    def detach(self) -> None:
        """The client left. Of a VF that was removed nothing is left to reset."""
        if self._removed:
            self.event(FUNCTION_DETACHED, {})
        else:
            super().detach()

    def config_write(self, offset: int, data: bytes) -> None:
        """See `Function`; ignored by a VF that was removed."""
        if not self._removed:
            super().config_write(offset, data)

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """See `Function`; ignored by a VF that was removed."""
        if not self._removed:
            super().bar_write(bar, offset, data)

    def device_reset(self) -> None:
        """See `Function`; ignored by a VF that was removed."""
        if not self._removed:
            super().device_reset()

    def enable(self) -> None:
        """VF Enable was set: reset state, whatever a client wrote before."""
        self._finish_flr()

    def remove(self) -> None:
        """VF Enable was cleared: forget everything, and let commands that wait for this VF end.

        Its client may be there for a while; the disk or port may be another VF's by then, so this one does
        nothing to it any more.
        """
        with self.lock:
            self.gate.client = None
            self._finish_flr()
            self.as_member.settled()
            self._removed = True
