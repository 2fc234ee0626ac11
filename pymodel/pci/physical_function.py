"""The physical function: what every function has, the admin queue, SR-IOV, ARI, INTx, and its VFs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pymodel.admin.queue import AdminQueue
from pymodel.admin.rules import Rules
from pymodel.devices.device import Device
from pymodel.host import NOBODY, Observer
from pymodel.migration.member import Member
from pymodel.pci.function import Function
from pymodel.pci.sriov import AriCapability, SriovCapability
from pymodel.pci.virtual_function import VirtualFunction
from pymodel.spec import virtio, virtio_pci

ADMIN_QUEUE_SIZE = 64


class PhysicalFunction(Function):
    """The owner of the SR-IOV group.

    `make_vf` builds VF n; `vfs` holds those that VF Enable and NumVFs call for. `on_vfs_changed` is called
    after `vfs` changed, with this function's lock held.
    """

    has_intx = True

    def __init__(
        self,
        device: Device,
        lock: AbstractContextManager[Any],
        *,
        make_vf: Callable[[int], VirtualFunction],
        vfs: int,
        total_vfs: int,
        vf_bars: Mapping[int, int],
        context_opcodes: int | None,
        strict: bool,
        without: Iterable[str] = (),
        observer: Observer = NOBODY,
        rules: Rules | None = None,
    ) -> None:
        self._make_vf = make_vf
        self.vfs: dict[int, VirtualFunction] = {}
        self._members: dict[int, Member] = {}
        self.on_vfs_changed: Callable[[], None] | None = None
        self.admin = AdminQueue(self, self.wake, context_opcodes=context_opcodes, strict=strict, rules=rules)
        self._sriov = (
            SriovCapability(
                total_vfs,
                vfs,
                virtio_pci.DEVICE_ID_BASE + device.virtio_id,
                dict(vf_bars),
                self._vfs_changed,
            )
            if total_vfs
            else None
        )
        super().__init__(
            "pf",
            device,
            lock,
            admin=self.admin,
            admin_queue_size=ADMIN_QUEUE_SIZE,
            features=1 << virtio.F_SR_IOV if self._sriov else 0,
            without=without,
            strict=strict,
            extended=(AriCapability(), self._sriov) if self._sriov else (),
            is_member=False,
            observer=observer,
            rules=rules,
        )
        self._vfs_changed()

    # -- the owner, as the admin queue sees it ------------------------------------------------------------

    @property
    def sriov(self) -> bool:
        """Whether the SR-IOV capability exists."""
        return self._sriov is not None

    @property
    def vf_enabled(self) -> bool:
        """VF Enable."""
        return self._sriov is not None and self._sriov.vf_enable

    @property
    def members(self) -> Mapping[int, Member]:
        """The members by VF number."""
        return self._members

    @property
    def vf_memory(self) -> bool:
        """VF Memory Space Enable."""
        return self._sriov is not None and self._sriov.vf_memory

    def _vfs_changed(self) -> None:
        wanted = self._sriov.enabled_vfs if self._sriov else 0
        if wanted == len(self.vfs):
            return
        if wanted < len(self.vfs):
            self.admin.members_leave()
        self.log.info("%d VFs enabled", wanted)
        for number in sorted(self.vfs, reverse=True):
            if number > wanted:
                del self._members[number]
                self.vfs.pop(number).remove()
        for number in range(len(self.vfs) + 1, wanted + 1):
            vf = self.vfs[number] = self._make_vf(number)
            self._members[number] = vf.as_member
        if self.on_vfs_changed is not None:
            self.on_vfs_changed()

    # -- resets --------------------------------------------------------------------------------------------

    def device_reset(self) -> None:
        """VFIO's DEVICE_RESET: as at power-on; VFs that were there and are again keep their state (A-30)."""
        super().device_reset()
        if self._sriov is not None:
            self._sriov.power_on()
            self._vfs_changed()

    def _start_flr(self) -> None:
        super()._start_flr()
        if self._sriov is not None:
            self._sriov.reset()
            self._vfs_changed()
