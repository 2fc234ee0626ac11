"""A function's virtio side: status, features, queues, configuration, and what they owe the driver.

virtio 1.4, "Basic Facilities of a Virtio Device" and "Virtio Over PCI Bus".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from pymodel.devices.device import Device, Linked
from pymodel.errors import BrokenQueue, MemoryFault
from pymodel.host import DRIVER_STATUS
from pymodel.migration.state import FunctionState
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import virtio, virtio_pci
from pymodel.transport import status as machine
from pymodel.transport.bus import Bus
from pymodel.transport.faults import KINDS, Failing, Fault, Faults
from pymodel.transport.features import ring_features
from pymodel.transport.scheduler import Scheduler

# How long to wait before looking again for memory that the client is about to map anew.
FLUX_SECONDS = 0.005

# Words beyond those offered that are remembered: a driver that selects ever new ones would fill our memory.
MAX_UNKNOWN_WORDS = 64


class Transport:
    """Everything that a device reset resets. `admin` is the PF's admin queue, after the device's queues.

    `without` names features of the rings that are not offered. `strict` refuses a status that a driver builds
    up in another order than the standard's; otherwise that is taken. `transitional`: legacy drivers may come
    too. Raises ValueError for an unknown name.

    `legacy` says that one has, from its first write on until a reset. It does without FEATURES_OK, and may
    use queues before DRIVER_OK (`used_early`).
    """

    def __init__(
        self,
        device: Device,
        bus: Bus,
        *,
        admin: Failing | None = None,
        admin_queue_size: int = 0,
        features: int = 0,
        without: Iterable[str] = (),
        strict: bool = False,
        transitional: bool = False,
        io_delay: float = 0,
        reset_delay: float = 0,
        log: logging.Logger,
    ) -> None:
        self.device = device
        self.bus = bus
        self.log = log
        self.transitional = transitional
        self._reset_delay = reset_delay
        self._prerequisites = machine.STRICT if strict else machine.LENIENT
        self._departure_told = False
        self.num_queues = len(device.queue_sizes)
        self.admin_index = self.num_queues
        self.has_admin = admin is not None
        self._of_rings = ring_features(without, in_order=device.in_order) | features
        if admin is not None:
            self._of_rings |= 1 << virtio.F_ADMIN_VQ
        self.offered = device.features | self._of_rings
        self._successor: Device | None = None
        self._scheduler = Scheduler(
            device, bus, log, admin=admin, admin_queue_size=admin_queue_size, io_delay=io_delay
        )
        self.queues = self._scheduler.queues
        device.connect(self)
        self._resetting: object | None = None
        # A fault on purpose reset the function, and its driver has not been at device_status since.
        self.reset_unasked = False
        # What happened in Freeze and joins the context when that is left: changes by name, so that
        # their number is bounded, and why the device needs a reset.
        self._changes: dict[str, Callable[[], None]] = {}
        self._breaking: str | None = None
        self.status = 0
        self.reset()

    # -- life ------------------------------------------------------------------------------------------

    def _clear(self, features: int = 0) -> None:
        self._resetting = None
        self.status = 0
        self.legacy = False
        self.used_early = False
        # Whether work stopped for memory that may be there in a moment.
        self._lacks_memory = False
        # What the driver selected in the common configuration.
        self.device_feature_select = 0
        self.driver_feature_select = 0
        self.queue_select = 0
        self.accepted = features
        self._unknown_words: set[int] = set()
        self.config_vector = virtio_pci.NO_VECTOR
        self.config_owed = False
        self.generation = 0
        self._config_read = False
        self.isr = 0
        self._scheduler.reset(features)

    def reset(self) -> None:
        """Device reset, finished at once: rings forgotten, nothing owed, status 0."""
        before = self.status
        self._drop_held()
        self._clear()
        self._scheduler.reset_consumers()
        if self._successor is not None:
            self.device, self._successor = self._successor, None
            self.offered = self.device.features | self._of_rings
            self._scheduler.succeed(self.device)
            self.device.connect(self)
        self.bus.device_was_reset()
        self._tell_status(before)

    def check_successor(self, device: Device) -> None:
        """Raise ValueError where a driver that is there could see that `device` is another one."""
        for name in ("virtio_id", "class_code", "queue_sizes", "config_length", "in_order"):
            now, then = getattr(self.device, name), getattr(device, name)
            if now != then:
                raise ValueError(f"{name} was {now} and is {then}: restart the server")

    def succeed(self, device: Device) -> None:
        """Have another device in the place of the present one, from the next device reset on."""
        self._successor = device
        if not self.status:
            self.reset()

    @property
    def resetting(self) -> bool:
        """Whether a device reset is under way."""
        return self._resetting is not None

    @property
    def outstanding(self) -> int:
        """Buffers taken and not completed."""
        return sum(queue.outstanding for queue in self.queues.values())

    def write_status(self, value: int) -> None:
        """What a write of device_status does: 0 starts a reset, else bits are added as the table allows."""
        self.reset_unasked = False
        if self._resetting is not None:
            return
        if value == 0:
            # A reset of a device that was reset already is immediate.
            self._begin_reset(self._reset_delay if self.status else 0)
            return
        before = self.status
        added = machine.settable(self.status, value, machine.LEGACY if self.legacy else self._prerequisites)
        if not self.legacy:
            self._look_for_departure(value, added)
        if added & virtio.STATUS_FEATURES_OK and not self._acceptable():
            added &= ~(virtio.STATUS_FEATURES_OK | virtio.STATUS_DRIVER_OK)
        self.status |= added
        if added & virtio.STATUS_FEATURES_OK:
            self.agree(self.accepted)
        if self.status != before:
            self.log.info("driver status %s, features %#x", machine.describe(self.status), self.accepted)
            self._tell_status(before)
        if added & virtio.STATUS_DRIVER_OK:
            self.device.started()
            self.rescan()

    def _look_for_departure(self, value: int, added: int) -> None:
        """Tell, once, of a driver that sets bits of the status in another order than it must."""
        wanted = value & ~self.status & sum(machine.STRICT)
        if wanted == machine.settable(self.status, value, machine.STRICT) or self._departure_told:
            return
        self._departure_told = True
        taken = f"taken: {machine.describe(added)}" if added else "refused"
        self.log.warning(
            "the driver wrote %s to device_status where it was %s, which is not the order that the standard"
            " demands (%s); this is told once",
            machine.describe(value),
            machine.describe(self.status),
            taken,
        )

    def legal_status(self, status: int, *, legacy: bool) -> bool:
        """Whether a driver can have brought this function's status to that, DEVICE_NEEDS_RESET aside."""
        return machine.legal(status, machine.LEGACY if legacy else self._prerequisites)

    def _begin_reset(self, delay: float) -> None:
        if self.status:
            self.log.info("device reset")
        if not delay:
            self.reset()
            return
        mark = self._resetting = object()
        self._scheduler.halt()

        def finish() -> None:
            if self._resetting is mark:
                self.reset()

        self.bus.after(delay, finish)

    def _tell_status(self, before: int) -> None:
        """Tell the observer of a status other than `before`."""
        if self.status != before:
            names = machine.describe(self.status).split("|") if self.status else []
            self.bus.event(DRIVER_STATUS, {"status": self.status, "names": names})

    # -- features --------------------------------------------------------------------------------------

    def negotiated(self, bit: int) -> bool:
        """Whether a feature was agreed."""
        return bool(self.status & virtio.STATUS_FEATURES_OK and self.accepted >> bit & 1)

    def accept(self, features: int) -> None:
        """Take what the driver writes as its features, until it sets FEATURES_OK."""
        if not self.status & virtio.STATUS_FEATURES_OK and not self.legacy:
            self.accepted = features

    def agree(self, features: int) -> None:
        """The features are settled. No queue is enabled yet."""
        self.accepted = features
        self.device.negotiated(self.accepted)
        for queue in self.queues.values():
            queue.negotiated(self.accepted)

    def accept_unknown(self, word: int, value: int) -> None:
        """Take a word that no feature is in: while any of those is not 0, FEATURES_OK will not hold."""
        if not value:
            self._unknown_words.discard(word)
        elif len(self._unknown_words) < MAX_UNKNOWN_WORDS:
            self._unknown_words.add(word)

    def _acceptable(self) -> bool:
        """Whether FEATURES_OK may be set: a subset of what is offered, with VERSION_1, that fits together."""
        extra = self.accepted & ~self.offered
        modern = self.accepted >> virtio.F_VERSION_1 & 1
        if extra or not modern or self._unknown_words:
            reason = f"{extra:#x} was not offered" if extra else "VERSION_1 is missing"
            if self._unknown_words:
                reason = f"word {min(self._unknown_words)} has bits that were not offered"
        else:
            reason = self.device.acceptable(self.accepted) or ""
        if reason:
            self.log.warning("features %#x refused: %s", self.accepted, reason)
        return not reason

    # -- vectors ---------------------------------------------------------------------------------------

    def map_configuration(self, vector: int) -> None:
        """Have configuration changes signalled by an MSI-X vector. One that does not exist cannot be mapped,
        which reads back as NO_VECTOR.
        """
        self.config_vector = self._existing(vector)
        self.bus.interrupts_owed()

    def map_queue(self, queue: Virtqueue, vector: int) -> None:
        """The same for a queue."""
        queue.vector = self._existing(vector)
        self.bus.interrupts_owed()

    def _existing(self, vector: int) -> int:
        return vector if vector < self.bus.msix_vectors else virtio_pci.NO_VECTOR

    # -- faults on purpose -------------------------------------------------------------------------------

    @property
    def faults(self) -> Faults | None:
        """What is to go wrong, where anything was asked for."""
        return self._scheduler.faults

    def inject(self, fault: Fault) -> None:
        """Have something go wrong. Raises ValueError for what cannot go wrong here."""
        if fault.kind not in KINDS:
            raise ValueError(f"fault {fault.kind!r}; there are: {', '.join(KINDS)}")
        if fault.queue is not None and fault.queue not in self.queues:
            raise ValueError(f"queue {fault.queue}; there are 0 to {max(self.queues)}")
        if fault.kind == "link-flap" and not isinstance(self.device, Linked):
            raise ValueError("no network device: it has no link")
        if fault.count < 0 or not 0 < fault.chance <= 1 or fault.ms < 0 or not 0 <= fault.value < 1 << 32:
            raise ValueError("count and ms are 0 or more, chance is above 0 and at most 1, value has 32 bits")
        faults = self.faults or Faults(self._tell_of_fault)
        faults.asked.append(fault)
        self._scheduler.happens = {"reset": self._reset_by_fault, "link-flap": self._flap}
        self._scheduler.set_faults(faults)

    def end_faults(self) -> None:
        """Nothing goes wrong on purpose any more. What is held by one still comes."""
        self._scheduler.set_faults(None)

    def _tell_of_fault(self, kind: str, data: Mapping[str, Any]) -> None:
        self.log.info("injected: %s", ", ".join(f"{name} {value}" for name, value in data.items()))
        self.bus.event(kind, data)

    def _reset_by_fault(self, _: Fault) -> None:
        def reset() -> None:
            self.reset_unasked = True
            self.bus.reset_function()

        self.bus.after(0.001, reset)

    def _flap(self, fault: Fault) -> None:
        device = self.device
        if isinstance(device, Linked):
            self.config_changed("link", partial(device.set_link, False))
            again = partial(self.config_changed, "link", partial(device.set_link, True))
            self.bus.after(max(fault.ms, 1) / 1000, again)

    # -- queues ----------------------------------------------------------------------------------------

    def enable(self, queue: Virtqueue) -> None:
        """Enable a queue; one whose rings cannot be used breaks the device."""
        trouble = queue.trouble()
        if trouble is not None:
            self.broken(trouble)
            return
        queue.enable()
        self._scheduler.resume(queue.index)
        self.bus.wake()

    def reset_queue(self, queue: Virtqueue) -> None:
        """Queue reset ("Virtqueue Reset"): the queue is as after a device reset when this returns."""
        self._scheduler.reset_queue(queue, self.accepted)

    def kick(self, index: int, data: bytes) -> None:
        """A driver notification: see `Scheduler`."""
        self._scheduler.kick(index, data, by_name=self.negotiated(virtio.F_NOTIF_CONFIG_DATA))

    def has_turn(self, index: int) -> bool:
        """Whether a queue will be looked at, soon or when that is possible."""
        return self._scheduler.has_turn(index)

    @property
    def notifications(self) -> int:
        """Notifications of queues that exist, ever."""
        return self._scheduler.notifications

    def engines(self) -> list[tuple[Engine, bool]]:
        """Queues that can be served without this for a while: see `Scheduler.engines`."""
        if not self.running or self.legacy or not self.bus.may_fetch or self._lacks_memory:
            return []
        return self._scheduler.engines()

    def go_on(self, queues: Iterable[int]) -> None:
        """Look at these queues again."""
        for index in queues:
            self._scheduler.resume(index)

    def rescan(self) -> None:
        """Look at every enabled queue as if it had been kicked (A-18, A-31)."""
        self._scheduler.rescan()
        self.bus.wake()

    def went_on(self) -> None:
        """The function became Active: what comes in is for its driver from now on, if one runs it."""
        if self.running:
            self.device.started()

    @property
    def running(self) -> bool:
        """Whether the driver has set the device going and nothing broke since."""
        begun = self.used_early or self.status & virtio.STATUS_DRIVER_OK
        return bool(begun) and not self.status & virtio.STATUS_DEVICE_NEEDS_RESET and self._resetting is None

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """File descriptors whose events call for `service`: see `Device`."""
        return self.device.waits if self.running and self.bus.may_fetch else ()

    def wake(self) -> None:
        """See `Notifier`."""
        self.bus.wake()

    def enabled(self, queue: int) -> bool:
        """See `Notifier`."""
        return self.queues[queue].enabled

    def resume(self, queue: int) -> None:
        """See `Notifier`."""
        self._scheduler.resume(queue)

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """See `Notifier`."""
        self.bus.after(seconds, call)

    def service(self) -> None:
        """Work on the queues that were kicked, as far as the gate allows."""
        self._lacks_memory = False
        if self.running and self.bus.may_access:
            try:
                self._scheduler.work()
            except MemoryFault as fault:
                if self.bus.memory_in_flux:
                    self.log.debug("waiting for memory: %s", fault)
                    self._lacks_memory = True
                    self._scheduler.rescan()
                    self.bus.after(FLUX_SECONDS, self.bus.wake)
                else:
                    self.broken(str(fault))
            except BrokenQueue as error:
                self.broken(str(error))
            except MemoryError:
                self.broken("the server has no memory for what is in a queue")
        if self.config_owed or any(queue.owed for queue in self.queues.values()):
            self.bus.interrupts_owed()

    def broken(self, reason: str) -> None:
        """The driver broke a rule: DEVICE_NEEDS_RESET, and a configuration change if it is running."""
        if self.bus.frozen:
            self._breaking = reason
            return
        self.log.error("device needs reset: %s", reason)
        before = self.status
        self.status |= virtio.STATUS_DEVICE_NEEDS_RESET
        self._tell_status(before)
        self._scheduler.abandon()
        if self.status & virtio.STATUS_DRIVER_OK:
            self.config_changed()

    # -- device configuration, ISR -----------------------------------------------------------------------

    def read_config(self, offset: int, length: int) -> bytes:
        """Read device configuration."""
        self._config_read = True
        data = self.device.read_config(offset, length)
        if self.faults is not None and self.faults.meets("config-change"):
            self.config_changed()
        return data

    def config_changed(self, name: str = "", change: Callable[[], None] | None = None) -> None:
        """The configuration changed, or is now, by `change`: a new generation if the old one was seen, and a
        notification if a driver runs the device.

        In Freeze all that is held apart until it is left, of each `name` the last one (DEV-20, A-21).
        """
        if self.bus.frozen:
            self._changes[name] = change or _nothing
            return
        if change is not None:
            change()
        self.config_set()
        if self.status & virtio.STATUS_DRIVER_OK:
            self.config_owed = True
            # Sent by `service`, on the function's own thread: an owner that thaws and stops it at once must
            # not be answered before (DEV-23).
            self.bus.wake()

    def config_set(self) -> None:
        """See `Notifier`: a new generation if the old one was seen ("Device Configuration Space")."""
        if self._config_read:
            self.generation = (self.generation + 1) & 0xFF
            self._config_read = False

    def thaw(self) -> None:
        """Freeze was left: what happened meanwhile joins the context."""
        changes, self._changes = self._changes, {}
        for name, change in changes.items():
            self.config_changed(name, change)
        reason, self._breaking = self._breaking, None
        if reason is not None:
            self.broken(reason)

    def _drop_held(self) -> None:
        """A reset: the configuration has changed, but there is no driver any more to be told."""
        changes, self._changes = self._changes, {}
        for change in changes.values():
            change()
        self._breaking = None

    def config_told(self) -> None:
        """The configuration change is no longer owed."""
        self.config_owed = False

    def read_isr(self) -> int:
        """Read the ISR status, which clears it."""
        isr, self.isr = self.isr, 0
        return isr

    # -- state -------------------------------------------------------------------------------------------

    def restore(self, state: FunctionState) -> None:
        """Take over a state that `check` accepted. Nothing is done about it until the gate opens.

        What happened in Freeze stays held: it is this function's own, and joins the written context.
        Raises MemoryError, nothing changed.
        """
        self.device.reserve(state.device)
        before = self.status
        self._clear(state.driver_features)
        self.status = state.device_status
        self.legacy = state.legacy
        self.device_feature_select = state.device_feature_select
        self.driver_feature_select = state.driver_feature_select
        self.queue_select = state.queue_select
        self.config_vector = state.config_msix_vector
        self.generation = state.config_generation
        # The driver may have read the configuration where the state comes from.
        self._config_read = True
        self.isr = state.isr
        self.config_owed = state.config_changed
        for entry in state.queues:
            self.queues[entry.index].restore(entry)
        self.device.negotiated(self.accepted)
        self.device.restore(state.device_config, state.device)
        self._tell_status(before)

    @property
    def config_length(self) -> int:
        """Bytes of the device configuration structure."""
        return self.device.config_length


def _nothing() -> None:
    """A change that has happened already."""
