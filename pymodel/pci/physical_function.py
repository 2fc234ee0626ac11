"""The physical function: what every function has, the admin queue, SR-IOV, ARI, INTx, and its VFs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from pymodel.admin.queue import AdminQueue
from pymodel.devices.device import Device
from pymodel.host import NOBODY, Observer
from pymodel.migration.member import Member
from pymodel.pci.capability import Capability
from pymodel.pci.function import Function
from pymodel.pci.sriov import ecam
from pymodel.pci.sriov.capability import OWNER_ROUTING, AriCapability, SriovCapability, guest_routing
from pymodel.pci.sriov.ecam import Ecam
from pymodel.pci.sriov.placement import Placement
from pymodel.pci.sriov.snapshot import as_snapshot
from pymodel.pci.sriov.vf_slot import VfSlot, VfSlots
from pymodel.pci.virtual_function import VirtualFunction
from pymodel.spec import pci, virtio, virtio_pci

ADMIN_QUEUE_SIZE = 1024


class PhysicalFunction(Function):
    """The owner of the SR-IOV group.

    `make_vf` builds VF n, with a legacy interface if `legacy` is set; `vfs` holds those that VF Enable and
    NumVFs call for. `on_vfs_changed` is called after `served` changed, with this function's lock held.

    With `slots` SR-IOV is for a guest: clients of VFs are there before the VFs are. `ecam_address` is where
    the guest's ECAM is, 0 to find that out, None not to use it.
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
        legacy: bool,
        strict: bool,
        slots: VfSlots | None = None,
        ecam_address: int | None = None,
        without: Iterable[str] = (),
        observer: Observer = NOBODY,
    ) -> None:
        self._make_vf = make_vf
        self._slots = slots
        self.vfs: dict[int, VirtualFunction] = {}
        self._members: dict[int, Member] = {}
        self.on_vfs_changed: Callable[[], None] | None = None
        routing = guest_routing(total_vfs) if slots else OWNER_ROUTING
        self._ecam = Ecam(ecam_address or None, self) if slots and ecam_address is not None else None
        self.admin = AdminQueue(
            self, self.wake, context_opcodes=context_opcodes, legacy=legacy, strict=strict
        )
        self._sriov = (
            SriovCapability(
                total_vfs,
                vfs,
                virtio_pci.DEVICE_ID_BASE + device.virtio_id,
                vf_bars,
                self._vfs_changed,
                routing=routing,
                seats=slots,
            )
            if total_vfs
            else None
        )
        self.placement = (
            Placement(self._sriov, slots, routing, self._ecam, self) if self._sriov and slots else None
        )
        if slots:
            slots.on_bars_moved(self.wake)
        super().__init__(
            "pf",
            device,
            lock,
            admin=self.admin,
            admin_queue_size=ADMIN_QUEUE_SIZE,
            features=1 << virtio.F_SR_IOV if self._sriov else 0,
            without=without,
            strict=strict,
            extended=self._extended_capabilities(),
            is_member=False,
            observer=observer,
        )
        self._vfs_changed()

    def _extended_capabilities(self) -> dict[int, Capability]:
        """By offset. QEMU overwrites the one at 100h of those that it sees."""
        if self._sriov is None:
            return {}
        if self._slots is None:
            return {pci.EXTENDED_START: AriCapability(), pci.EXTENDED_START + 0x10: self._sriov}
        return {pci.EXTENDED_START: self._sriov, **({ecam.AT: self._ecam} if self._ecam else {})}

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

    @property
    def served(self) -> Mapping[int, VirtualFunction | VfSlot]:
        """What clients may attach to, by VF number: each VF, or where each VF may be."""
        return self._slots.by_number if self._slots else self.vfs

    def _vfs_changed(self) -> None:
        wanted = self._sriov.enabled_vfs if self._sriov else 0
        if wanted != len(self.vfs):
            self._enable_vfs(wanted)
        for vf in self.vfs.values():
            vf.memory_changed()
        if self.placement is not None and wanted and self.vf_memory:
            self.placement.check()

    def _enable_vfs(self, wanted: int) -> None:
        if wanted < len(self.vfs):
            self.admin.members_leave([member for number, member in self._members.items() if number > wanted])
        self.log.info("%d VFs enabled", wanted)
        for number in sorted(self.vfs, reverse=True):
            if number > wanted:
                del self._members[number]
                vf = self.vfs.pop(number)
                if self._slots is None:
                    vf.remove()
                else:
                    self._slots.by_number[number].close()
        for number in range(len(self.vfs) + 1, wanted + 1):
            vf = self._make_vf(number) if self._slots is None else self._slots.by_number[number].open()
            self.vfs[number] = vf
            self._members[number] = vf.as_member
        if self.on_vfs_changed is not None:
            self.on_vfs_changed()

    # -- the client ---------------------------------------------------------------------------------------

    def config_read(self, offset: int, length: int) -> bytes:
        """See `Function`; a guest is shown what its client would hide."""
        data = super().config_read(offset, length)
        return as_snapshot(offset, data) if self._slots else data

    def post_write(self, address: int, data: bytes) -> None:
        """Have `data` written at an address of the client's, if the function may do so."""
        if self._host is not None and self.may_access:
            self._host.post_write(address, data)

    def _gate_changed(self) -> None:
        was_open = self.may_access
        super()._gate_changed()
        if self._slots is not None and self.may_access and not was_open:
            self._tell_of_missing(self._slots)
        if self._ecam is not None and self.placement is not None and self.may_access:
            self._ecam.prepare()
            self.placement.prepare()

    def _tell_of_missing(self, slots: VfSlots) -> None:
        """A driver begins, which finds fewer VFs than there could be: a hole is hardly meant."""
        count = slots.attached
        if count < len(slots.by_number):
            self.log.log(
                logging.WARNING if slots.has_hole else logging.INFO,
                "TotalVFs is %d of %d: vf%d has no client",
                count,
                len(slots.by_number),
                count + 1,
            )

    def service(self) -> None:
        """See `Function`; also called where a client moved BARs of VFs."""
        super().service()
        if self.placement is not None:
            self.placement.bars_moved()

    # -- resets --------------------------------------------------------------------------------------------

    def device_reset(self) -> None:
        """VFIO's DEVICE_RESET: as at power-on; VFs that were there and are again keep their state (A-30)."""
        super().device_reset()
        self._power_on()

    def detach(self) -> None:
        """See `Function`. A guest's VFs go with it; an owner's stay, as owners come and go."""
        super().detach()
        if self._slots is not None:
            self._power_on()

    def _power_on(self) -> None:
        if self._ecam is not None:
            self._ecam.reset()
        if self.placement is not None:
            self.placement.forget()
        if self._sriov is not None:
            self._sriov.power_on()
            self._vfs_changed()

    def _start_flr(self) -> None:
        super()._start_flr()
        if self._sriov is not None:
            self._sriov.reset()
            self._vfs_changed()
