"""One PCI function: its configuration space, its BARs, its gate, its interrupts, its resets.

BAR 0 holds the virtio structures (BAR 4 where legacy drivers may come), BAR 2 the MSI-X table and pending
bits. The owner's `lock` is held in every call; nothing here blocks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from pymodel.devices.device import Device, Transitional
from pymodel.host import FUNCTION_ATTACHED, FUNCTION_DETACHED, NOBODY, Host, Observer
from pymodel.migration.legacy_access import LegacyAccess
from pymodel.migration.member import Member
from pymodel.migration.parts import PartsOfType
from pymodel.migration.state import FunctionState, Mark
from pymodel.pci.capability import Capability
from pymodel.pci.config_space import ConfigSpace, Identity
from pymodel.pci.express import Express
from pymodel.pci.gate import Gate
from pymodel.pci.interrupts import Interrupts
from pymodel.pci.lane import Lane
from pymodel.pci.legacy_interface import LegacyInterface
from pymodel.pci.msix import MsiX
from pymodel.pci.power import D0, PowerManagement
from pymodel.pci.virtio_bar import VirtioBar
from pymodel.pci.virtio_capabilities import PciCfgCapability
from pymodel.spec import context, pci, virtio_pci
from pymodel.transport import saved_state
from pymodel.transport.faults import Failing
from pymodel.transport.transport import Transport
from pymodel.watcher import Watcher

MSIX_BAR = 2

_COMMAND_WRITABLE = pci.COMMAND_MEMORY | pci.COMMAND_MASTER | pci.COMMAND_PARITY | pci.COMMAND_SERR


@dataclass(frozen=True, slots=True)
class Delays:
    """How long, in seconds, operations of a function take after they were started."""

    flr: float = 0
    reset: float = 0
    power: float = 0
    io: float = 0


class Function:
    """A function with a virtio device: a VF as it stands, a PF with what `PhysicalFunction` adds.

    `member` is set for a VF: its mode is part of the gate. With
    `transitional` legacy drivers may come too; raises ValueError for a device type that they do not know.
    """

    has_intx = False

    def __init__(
        self,
        name: str,
        device: Device,
        lock: AbstractContextManager[Any],
        *,
        delays: Delays = Delays(),
        admin: Failing | None = None,
        admin_queue_size: int = 0,
        features: int = 0,
        without: Iterable[str] = (),
        strict: bool = False,
        extended: Mapping[int, Capability] = MappingProxyType({}),
        is_member: bool = True,
        transitional: bool = False,
        observer: Observer = NOBODY,
    ) -> None:
        self.name = name
        self.lock = lock
        self.log = logging.getLogger(f"virtio.{name}")
        self._delays = delays
        self._observer = observer
        self.watcher: Watcher | None = None
        self._host: Host | None = None
        # One for each queue, and one for configuration changes.
        needed = self.vectors_needed = len(device.queue_sizes) + 1 + (admin is not None)
        self.msix = MsiX(needed, MSIX_BAR, self.interrupts_owed, lambda: self.interrupts.pending())  # noqa: PLW0108 - made later
        self.msix_vectors = self.msix.vectors
        self.member = Member(self, lock, name, self.event) if is_member else None
        self._power = PowerManagement(self._change_power)
        self.gate = Gate(self._power, self.member)
        self.memory = self.gate.memory
        self.transport = Transport(
            device,
            self,
            admin=admin,
            admin_queue_size=admin_queue_size,
            features=features,
            without=without,
            strict=strict,
            transitional=transitional,
            io_delay=delays.io,
            reset_delay=delays.reset,
            log=self.log,
        )
        self.interrupts = Interrupts(self.transport, self.msix, self.gate, has_intx=self.has_intx)
        self._legacy: LegacyInterface | None = None
        if transitional:
            if not isinstance(device, Transitional):
                raise ValueError(f"there are no legacy drivers for devices of type {device.virtio_id} here")
            self._legacy = LegacyInterface(
                self.transport, device, device.config_layout, self.msix, self._power
            )
        self._virtio = VirtioBar(self.transport, self._legacy.notify if self._legacy else None)
        self.bars = {self._virtio.index: self._virtio.size, MSIX_BAR: self.msix.bar_size}
        self._express = Express(self._start_flr)
        self._window = PciCfgCapability(self)
        self.config = ConfigSpace(
            Identity(
                vendor_id=virtio_pci.VENDOR_ID,
                device_id=virtio_pci.DEVICE_ID_BASE + device.virtio_id,
                subsystem_vendor_id=virtio_pci.VENDOR_ID,
                subsystem_id=virtio_pci.DEVICE_ID_BASE + device.virtio_id,
                revision=1,
                class_code=device.class_code,
                interrupt_pin=int(self.has_intx),
            ),
            self.bars,
            self,
            (self._power, self.msix, self._express, *self._virtio.capabilities(), self._window),
            extended,
        )

    def watch(self, watcher: Watcher | None) -> None:
        """Tell `watcher` of all that passes from now on, or nobody. Meanwhile there are no `lanes`."""
        self.watcher = self.interrupts.watcher = watcher
        for queue in self.transport.queues.values():
            queue.watcher = watcher

    # -- the client ------------------------------------------------------------------------------------

    def attach(self, host: Host) -> None:
        """A client came."""
        self.connect(host)
        self.event(FUNCTION_ATTACHED, {})

    def connect(self, host: Host) -> None:
        """Have what a client offers."""
        self._host = self.interrupts.host = host
        self.transport.reset_unasked = False
        self.gate.client = host.memory
        self.gate.refresh()

    def detach(self) -> None:
        """The client left: virtio and PCI state are reset, mode and context position stay (A-29).

        A function-level reset that was under way is over with it.
        """
        if self.gate.flr is not None:
            self._finish_flr()
        self.gate.client = None
        self._reset_registers()
        self.event(FUNCTION_DETACHED, {})

    @property
    def window(self) -> tuple[int, int, int]:
        """What the PCI_CFG capability is set to: BAR, offset, length."""
        return self._window.place

    @property
    def structures(self) -> tuple[tuple[int, int], ...]:
        """Offset and length in `virtio_bar` of the structures that capabilities tell of."""
        return self._virtio.structures

    @property
    def virtio_bar(self) -> int:
        """Which BAR has the virtio structures."""
        return self._virtio.index

    @property
    def attached(self) -> bool:
        """Whether a client is attached."""
        return self.gate.client is not None

    @property
    def power_state(self) -> int:
        """The D state: 0 or 3."""
        return self._power.state

    # -- the gate --------------------------------------------------------------------------------------

    @property
    def frozen(self) -> bool:
        """See `Gate`."""
        return self.gate.frozen

    @property
    def may_access(self) -> bool:
        """See `Gate`."""
        return self.gate.may_access

    @property
    def may_fetch(self) -> bool:
        """See `Gate`."""
        return self.gate.may_fetch

    def _gate_changed(self) -> None:
        """The gate may have opened: look for work and send what is owed (A-31)."""
        self.gate.refresh()
        if self.may_access:
            self.transport.rescan()
        self.interrupts_owed()

    # -- what the transport needs ------------------------------------------------------------------------

    def interrupts_owed(self) -> None:
        """Something is owed, or may now be delivered."""
        self.interrupts.deliver()

    def wake(self) -> None:
        """Have `service` called soon."""
        if self._host is not None:
            self._host.wake()

    @property
    def memory_in_flux(self) -> bool:
        """Whether memory that is missing now may be back in a moment."""
        return self._host is not None and self._host.memory_in_flux

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` after `seconds`, then `service`; at once if no time is asked for."""
        if seconds and self._host is not None:
            self._host.after(seconds, call)
        else:
            call()

    def device_was_reset(self) -> None:
        """See `Bus`."""
        if self.member is not None:
            self.member.device_reset()
        if self.watcher is not None:
            self.watcher.was_reset()

    def mapping_changed(self, address: int, length: int, *, there: bool, writable: bool) -> None:
        """The client mapped guest memory, or took it away."""
        if self.watcher is not None:
            self.watcher.mapped(address, length, there=there, writable=writable)

    @property
    def watched(self) -> bool:
        """Whether somebody watches."""
        return self.watcher is not None

    def memory_lost(self, reason: str) -> None:
        """Memory that the driver counts on cannot be had: what was read from it is not to be trusted."""
        self.transport.broken(reason)

    def end(self, reason: str) -> None:
        """Have the function served no more."""
        if self._host is not None:
            self._host.end(reason)

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """Tell the observer."""
        self._observer.event(self.name, kind, data)
        if self.watcher is not None:
            self.watcher.event(kind, data)

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """File descriptors, each with events of poll(2), that call for `service`."""
        return self.transport.waits

    def service(self) -> None:
        """Work on the queues, send what is owed, and tell the owner if it waits for this function."""
        self.transport.service()
        if self.member is not None:
            self.member.settled()

    def lanes(self) -> list[Lane]:
        """The queues that the function's thread may serve by itself until somebody else has the lock."""
        if not self.memory_space or self.watcher is not None:
            return []
        found = []
        for engine, kicked in self.transport.engines():
            queue = engine.queue
            name = queue.notif_config_data or queue.index
            at = self._virtio.notify_at(queue.index)
            found.append(Lane(engine, self._virtio.index, at, name, self.interrupts.direct(queue), kicked))
        return found

    def go_on(self, queues: Iterable[int]) -> None:
        """The function's thread did what it could: these queues are to be looked at."""
        self.transport.go_on(queues)

    def work_unlocked(self) -> bool:
        """What may wait for a moment, called after `service` without the lock. Whether to service again."""
        return self.transport.device.work_unlocked()

    # -- configuration space -----------------------------------------------------------------------------

    def config_read(self, offset: int, length: int) -> bytes:
        """Read configuration space; the same in every mode (DEV-18)."""
        data = self.config.read(offset, length)
        if self.watcher is not None:
            self.watcher.config_read(offset, data)
        return data

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space; ignored while a function-level reset is under way."""
        if self.watcher is not None:
            self.watcher.config_write(offset, data)
        if self.gate.flr is None:
            self.config.write(offset, data)
        if self.watcher is not None:
            self.watcher.config_wrote(offset, data)

    def read_status(self) -> int:
        """Status: a list of capabilities, and the level of INTx."""
        return pci.STATUS_CAP_LIST | (pci.STATUS_INTERRUPT if self.interrupts.intx_level else 0)

    def read_command(self) -> int:
        """Command."""
        return self.gate.command

    def write_command(self, value: int) -> None:
        """Command: Bus Master Enable opens and closes the gate, INTx Disable masks INTx."""
        writable = _COMMAND_WRITABLE | (pci.COMMAND_INTX_DISABLE if self.has_intx else 0)
        before, self.gate.command = self.gate.command, value & writable
        if (before ^ self.gate.command) & (pci.COMMAND_MASTER | pci.COMMAND_INTX_DISABLE):
            self._gate_changed()

    # -- BARs --------------------------------------------------------------------------------------------

    @property
    def memory_space(self) -> bool:
        """Whether the BARs answer at all: D0, and for a VF the PF's VF MSE."""
        return self._power.state == D0

    def window_write(self) -> bool:
        """Whether a write to the PCI_CFG capability is taken (DEV-27)."""
        return not self.frozen

    def bar_read(self, bar: int, offset: int, length: int) -> bytes:
        """Read a BAR; all ones where nothing answers."""
        data = self._bar_read(bar, offset, length)
        if self.watcher is not None:
            self.watcher.bar_read(bar, offset, data)
        return data

    def _bar_read(self, bar: int, offset: int, length: int) -> bytes:
        if not self.memory_space:
            return b"\xff" * length
        if bar == MSIX_BAR:
            return self.msix.bar_read(offset, length)
        if bar != self._virtio.index:
            return b"\xff" * length
        data = self._virtio.read(offset, length)
        # The client lowers INTx after each access; it is still high if the ISR was not read.
        self.interrupts.assert_intx()
        return data

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Write a BAR. In Freeze the virtio structures take nothing (DEV-25), MSI-X as always (DEV-18)."""
        if self.watcher is not None:
            self.watcher.bar_write(bar, offset, data)
        self._bar_write(bar, offset, data)
        if self.watcher is not None:
            self.watcher.bar_wrote(bar, offset, data)

    def _bar_write(self, bar: int, offset: int, data: bytes) -> None:
        if not self.memory_space or self.gate.flr is not None:
            return
        if bar == MSIX_BAR:
            self.msix.bar_write(offset, data)
        elif bar == self._virtio.index:
            self._virtio.write(offset, data, frozen=self.frozen)
            self.interrupts.assert_intx()

    # -- resets and power --------------------------------------------------------------------------------

    def _reset_registers(self) -> None:
        """All that a function-level reset resets."""
        self.gate.reset()
        self.config.reset()
        self.msix.reset()
        self._express.reset()
        self._power.reset()
        self._window.reset()
        self.gate.refresh()
        self.transport.reset()

    def device_reset(self) -> None:
        """VFIO's DEVICE_RESET: a function-level reset that takes no time (A-29)."""
        self.log.info("reset by the client")
        self._finish_flr()

    def reset_function(self) -> None:
        """See `Bus`."""
        self._start_flr()

    def _start_flr(self) -> None:
        self.log.info("function-level reset")
        mark = self.gate.flr = object()
        self.gate.refresh()
        # What was fetched is forgotten now; the rest is reset when the time is over.
        self.transport.reset()

        def finish() -> None:
            if self.gate.flr is mark:
                self._finish_flr()

        self.after(self._delays.flr, finish)

    def _finish_flr(self) -> None:
        self._reset_registers()
        if self.member is not None:
            self.member.function_reset()

    def _change_power(self, state: int) -> None:
        mark = self.gate.power_change = object()
        self.gate.refresh()

        def finish() -> None:
            if self.gate.power_change is mark:
                self.gate.power_change = None
                self._power.state = state
                self._gate_changed()

        self.after(self._delays.power, finish)

    # -- what a member needs ------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """See `Migratable`."""
        return self.transport.device.mark()

    def capture(self, since: Mark | None = None, *, own_fields: bool = True) -> FunctionState:
        """See `Migratable`."""
        return saved_state.capture(self.transport, since, own_fields=own_fields)

    def check(self, state: FunctionState) -> None:
        """See `Migratable`."""
        saved_state.check(self.transport, state)

    def restore(self, state: FunctionState) -> None:
        """See `Migratable`."""
        self.transport.restore(state)

    def device_fields(self) -> dict[int, int]:
        """See `Migratable`."""
        return self.transport.device.field_lengths()

    @property
    def parts_of_type(self) -> PartsOfType:
        """See `Migratable`."""
        return self.transport.device

    @property
    def content_size(self) -> int:
        """See `Migratable`."""
        return self.transport.device.content_size

    @property
    def legacy(self) -> LegacyAccess | None:
        """See `Migratable`."""
        return self._legacy

    @property
    def in_transition(self) -> bool:
        """See `Migratable`."""
        return self.gate.flr is not None or self.gate.power_change is not None or self.transport.resetting

    @property
    def outstanding(self) -> int:
        """See `Migratable`. Behind a gate that the driver closed nothing can be completed, so none counts."""
        return self.transport.outstanding if self.may_access else 0

    def expect_quiesce(self, *, soon: bool) -> None:
        """See `Migratable`."""
        self.transport.device.expect_quiesce(soon=soon)

    def quiesce(self) -> bool:
        """See `Migratable`."""
        return self.transport.device.quiesce()

    def mode_changed(self) -> None:
        """See `Migratable`. What the gate lets through happens on the function's own thread."""
        self.gate.refresh()
        if not self.frozen:
            self.transport.thaw()
        if self.gate.mode == context.MODE_ACTIVE:
            # Not left to the function's own thread, as MODE_SET may be answered before that has a turn.
            self.transport.went_on()
        # Where nothing may be fetched there is nothing to do, as what is outstanding ends by itself; waking a
        # thread for it would cost its owner's time.
        if self.may_fetch:
            self.transport.rescan()
