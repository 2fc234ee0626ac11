"""Rules about bringing a device up: status, features, reset."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pymodel.host import FUNCTION_ATTACHED, FUNCTION_DETACHED
from pymodel.pci.function import Function
from pymodel.pci.physical_function import PhysicalFunction
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import HINT, MUST, MUST_NOT, SHOULD, SHOULD_NOT, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import virtio
from pymodel.transport.common_config import FEATURE_WORDS
from pymodel.transport.status import describe
from pymodel.watch.access import Access, Piece
from pymodel.watch.names import features

_INITIALIZATION: Final = "Device Initialization"
_STATUS: Final = "Device Status Field"
_FEATURES: Final = "Feature Bits"
_RESERVED: Final = "Reserved Feature Bits"
_COMMON: Final = "Common configuration structure layout"

_SUSPEND: Final = 16
_DRIVERS: Final = (
    virtio.STATUS_ACKNOWLEDGE
    | virtio.STATUS_DRIVER
    | virtio.STATUS_FEATURES_OK
    | virtio.STATUS_DRIVER_OK
    | virtio.STATUS_FAILED
    | _SUSPEND
)
"""Bits that are a driver's to set."""

_ORDER: Final = (
    ("INIT-02", virtio.STATUS_DRIVER, virtio.STATUS_ACKNOWLEDGE),
    ("INIT-03", virtio.STATUS_FEATURES_OK, virtio.STATUS_DRIVER),
    ("INIT-04", virtio.STATUS_DRIVER_OK, virtio.STATUS_FEATURES_OK),
)
"""A rule, the bit that is set too early, and the one that it needs."""

_SHOULD_ACCEPT: Final = (
    ("FEAT-04", virtio.F_ACCESS_PLATFORM, "ACCESS_PLATFORM"),
    ("FEAT-05", virtio.F_RING_PACKED, "RING_PACKED"),
    ("FEAT-06", virtio.F_NOTIF_CONFIG_DATA, "NOTIF_CONFIG_DATA"),
)


class Initialization(Topic):
    """The order of things, from reset to DRIVER_OK, and what ends a device's life."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "INIT-01": Rule(
            MUST,
            _INITIALIZATION,
            "reset the device before it initializes it",
            "a status bit that is set while 0 was not written since the last driver",
            "takes the status all the same",
        ),
        "INIT-02": Rule(
            MUST,
            _INITIALIZATION,
            "set ACKNOWLEDGE before DRIVER",
            "DRIVER in a write of device_status, and ACKNOWLEDGE is not set",
            "takes the bit; with --strict it does not",
        ),
        "INIT-03": Rule(
            MUST,
            _INITIALIZATION,
            "set DRIVER before FEATURES_OK",
            "FEATURES_OK in a write of device_status, and DRIVER is not set",
            "takes the bit; with --strict it does not",
        ),
        "INIT-04": Rule(
            MUST,
            _INITIALIZATION,
            "set FEATURES_OK before DRIVER_OK",
            "DRIVER_OK in a write of device_status, and FEATURES_OK is not set",
            "leaves DRIVER_OK clear, and serves no queue",
        ),
        "INIT-05": Rule(
            MUST,
            _INITIALIZATION,
            "read device_status again after it set FEATURES_OK",
            "DRIVER_OK, or a queue set up, without such a read",
            "does what it is asked for",
        ),
        "INIT-06": Rule(
            MUST_NOT,
            _INITIALIZATION,
            "write device configuration before FEATURES_OK",
            "such a write",
            "ignores the write, or takes it where the field may be written",
        ),
        "INIT-07": Rule(
            MUST_NOT,
            _INITIALIZATION,
            "accept new features after FEATURES_OK",
            "a write of driver_feature that adds bits",
            "ignores the write",
        ),
        "INIT-08": Rule(
            MUST,
            _INITIALIZATION,
            "set up its queues before DRIVER_OK",
            "queue_enable after DRIVER_OK, of a queue that was not reset by itself",
            "enables the queue",
        ),
        "INIT-09": Rule(
            MUST_NOT,
            _INITIALIZATION,
            "go on when its features were refused",
            "DRIVER_OK, or a queue set up, after FEATURES_OK did not stay set",
            "ignores it",
        ),
        "INIT-10": Rule(
            MUST_NOT,
            _INITIALIZATION,
            "notify before DRIVER_OK",
            "a notification while DRIVER_OK is not set",
            "looks at the queue once DRIVER_OK is set",
        ),
        "INIT-11": Rule(
            MUST,
            _INITIALIZATION,
            "set up its queues after FEATURES_OK",
            "a register of a queue that is written before",
            "ignores the write",
        ),
        "STAT-01": Rule(
            MUST_NOT,
            _STATUS,
            "clear a bit of device_status, but by a reset",
            "a write of device_status, not 0, without a bit that is set",
            "leaves the bit set",
        ),
        "STAT-02": Rule(
            MUST,
            _STATUS,
            "reset the device before it initializes it again after FAILED",
            "a status bit that is set while FAILED is",
            "takes the bit",
        ),
        "STAT-03": Rule(
            SHOULD_NOT,
            _STATUS,
            "rely on a device that needs a reset",
            "a notification after DEVICE_NEEDS_RESET was read",
            "uses no buffer any more",
        ),
        "STAT-04": Rule(
            SHOULD_NOT,
            "Device Suspend",
            "set SUSPEND where VIRTIO_F_SUSPEND was not negotiated",
            "SUSPEND, of value 16, in a write of device_status",
            "ignores the bit",
        ),
        "STAT-05": Rule(
            HINT,
            _STATUS,
            "sets bits of device_status that are not a driver's",
            "such a bit in a write",
            "ignores the bit",
        ),
        "RESET-01": Rule(
            MUST,
            _COMMON,
            "wait until device_status reads 0 after a reset",
            "something else that is written before",
            "takes the write if the reset is over, else ignores it",
        ),
        "FEAT-01": Rule(
            MUST_NOT,
            _FEATURES,
            "accept a feature that was not offered",
            "such a bit in driver_feature when FEATURES_OK is set",
            "leaves FEATURES_OK clear",
        ),
        "FEAT-02": Rule(
            MUST_NOT,
            _FEATURES,
            "accept a feature without those that it requires",
            "such features when FEATURES_OK is set",
            "leaves FEATURES_OK clear",
        ),
        "FEAT-03": Rule(
            MUST,
            _RESERVED,
            "accept VIRTIO_F_VERSION_1 if it is offered",
            "FEATURES_OK without it",
            "leaves FEATURES_OK clear",
        ),
        "FEAT-04": Rule(
            SHOULD,
            _RESERVED,
            "accept VIRTIO_F_ACCESS_PLATFORM if it is offered",
            "FEATURES_OK without it",
            "does without it",
        ),
        "FEAT-05": Rule(
            SHOULD,
            _RESERVED,
            "accept VIRTIO_F_RING_PACKED if it is offered",
            "FEATURES_OK without it",
            "does without it",
        ),
        "FEAT-06": Rule(
            SHOULD,
            _RESERVED,
            "accept VIRTIO_F_NOTIF_CONFIG_DATA if it is offered",
            "FEATURES_OK without it",
            "does without it",
        ),
        "FEAT-07": Rule(
            MUST,
            _RESERVED,
            "negotiate VIRTIO_F_SR_IOV before it enables VFs",
            "VF Enable set by a driver that never did",
            "enables the VFs",
        ),
        "FEAT-08": Rule(
            MUST,
            _FEATURES,
            "look at the features that are offered",
            "FEATURES_OK, and device_feature was not read since the reset",
            "takes the features if it can",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        self._owner = function if isinstance(function, PhysicalFunction) else None
        self._had_sriov = False
        self._sriov_enabled = False
        self._anew()

    def _anew(self) -> None:
        """Another driver comes, or may."""
        # Whether this driver ever wrote 0.
        self._did_reset = False
        # Whether it has to see the reset's end.
        self._awaits_reset = False
        self._begin()

    def _begin(self) -> None:
        """As after a reset."""
        self._looked_at_features = False
        # Whether the driver read that the device needs a reset.
        self._knows_of_trouble = False
        # Whether FEATURES_OK is being set.
        self._agrees = False
        # Whether device_status is to be read, and whether the features were refused.
        self._unchecked = False
        self._refused = False
        # Queues that a driver may enable after DRIVER_OK.
        self._reset_queues: set[int] = set()

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """A client came or left: the next driver begins anew."""
        if kind in {FUNCTION_ATTACHED, FUNCTION_DETACHED}:
            self._breaches.begin(self.function.name)
            self._anew()

    # -- status ------------------------------------------------------------------------------------------

    def reads_device_status(self, piece: Piece) -> None:
        """The driver looks what became of a reset, or of its features."""
        if piece.value == 0:
            self._awaits_reset = False
        self._unchecked = False
        self._knows_of_trouble = bool(piece.value & virtio.STATUS_DEVICE_NEEDS_RESET)

    def writing_device_status(self, piece: Piece) -> None:
        """A reset, or bits."""
        value, status = piece.value, self.transport.status
        if value == 0:
            return
        wrote = f"{describe(value)} ({value:#04x}) written to device_status, which was {describe(status)}"
        added = value & ~status
        cleared = status & ~value & ~virtio.STATUS_DEVICE_NEEDS_RESET
        self._wait_for_reset(wrote)
        if not self._did_reset:
            self.tell("INIT-01", f"{wrote}; no reset since this driver came", register="device_status")
        elif cleared and value in {1, 3}:
            self.tell("INIT-01", f"{wrote}: another initialization without a reset", register="device_status")
        elif cleared:
            self.tell("STAT-01", f"{wrote}: without {describe(cleared)}", register="device_status")
        if added and status & virtio.STATUS_FAILED:
            self.tell("STAT-02", wrote, register="device_status")
        for rule, bit, needed in _ORDER:
            if added & bit and not (status | value) & needed:
                self.tell(rule, wrote, expected=f"{describe(needed)} to be set", register="device_status")
        self._agrees = bool(added & virtio.STATUS_FEATURES_OK)
        if self._agrees:
            self._check_features()
        if added & virtio.STATUS_DRIVER_OK:
            self._check_goes_on(wrote)
        if added & _SUSPEND:
            self.tell("STAT-04", wrote, register="device_status")
        if added & ~_DRIVERS:
            self.tell("STAT-05", f"{wrote}: bits {added & ~_DRIVERS:#04x}", register="device_status")

    def wrote_device_status(self, piece: Piece) -> None:
        """What became of it."""
        if piece.value == 0:
            self._begin()
            self._did_reset = self._awaits_reset = True
        elif self._agrees:
            if self.transport.status & virtio.STATUS_FEATURES_OK:
                self._unchecked = True
                self._refused = False
                self._had_sriov |= self.transport.negotiated(virtio.F_SR_IOV)
            else:
                self._refused = True

    def _wait_for_reset(self, wrote: str) -> None:
        if self._awaits_reset:
            self.tell("RESET-01", f"{wrote}, and it was not read since 0 was written to it")
            self._awaits_reset = False

    def _check_goes_on(self, what: str) -> None:
        """The driver goes on after FEATURES_OK: it must know that this stayed set."""
        if self._refused:
            self.tell("INIT-09", what)
        elif self._unchecked and self.transport.status & virtio.STATUS_FEATURES_OK:
            self.tell("INIT-05", what, expected="a read of device_status")
            self._unchecked = False

    # -- features ----------------------------------------------------------------------------------------

    def reads_device_feature(self, _piece: Piece) -> None:
        """The driver looks at what is offered."""
        self._looked_at_features = True

    def writing_driver_feature(self, piece: Piece) -> None:
        """The driver says what it accepts."""
        word = self.transport.driver_feature_select
        given = piece.shifted
        if word >= FEATURE_WORDS:
            if given:
                self.tell(
                    "FEAT-01", f"bits {given:#x} of driver_feature word {word}", register="driver_feature"
                )
            return
        more = (given << 32 * word) & ~self.transport.accepted
        if self.transport.status & virtio.STATUS_FEATURES_OK and more:
            self.tell(
                "INIT-07",
                f"features {more:#x}, {_lowest(self.transport.device.virtio_id, more)}",
                register="driver_feature",
            )

    def _check_features(self) -> None:
        """FEATURES_OK is about to be set."""
        transport = self.transport
        accepted, offered = transport.accepted, transport.offered
        extra = accepted & ~offered
        if not self._looked_at_features:
            self.tell("FEAT-08", f"{accepted:#x} accepted", expected=f"a look at {offered:#x}")
        if extra:
            self.tell(
                "FEAT-01",
                f"features {extra:#x}, {_lowest(self.transport.device.virtio_id, extra)}",
                expected=f"some of {offered:#x}",
            )
        if not accepted >> virtio.F_VERSION_1 & 1:
            self.tell("FEAT-03", f"features {accepted:#x}", expected="VERSION_1 (bit 32)")
        elif not extra:
            reason = transport.device.acceptable(accepted)
            if reason:
                self.tell("FEAT-02", f"features {accepted:#x}: {reason}")
        for rule, bit, name in _SHOULD_ACCEPT:
            if offered >> bit & 1 and not accepted >> bit & 1:
                self.tell(rule, f"features {accepted:#x}, without {name} (bit {bit})")

    # -- queues and notifications --------------------------------------------------------------------------

    def writing_queue_enable(self, piece: Piece) -> None:
        """A queue is enabled."""
        queue = self.transport.queue_select
        self._sets_up(piece)
        late = self.transport.status & virtio.STATUS_DRIVER_OK and queue not in self._reset_queues
        if late and piece.value == 1 and queue in self.transport.queues:
            self.tell("INIT-08", f"queue_enable of queue {queue} after DRIVER_OK", queue=queue)

    def writing_queue_reset(self, piece: Piece) -> None:
        """A queue may be enabled once more."""
        if piece.value == 1:
            self._reset_queues.add(self.transport.queue_select)

    def _sets_up(self, piece: Piece) -> None:
        queue = self.transport.queue_select
        what = f"{piece.shifted:#x} written to {piece.name} of queue {queue}"
        self._wait_for_reset(what)
        self._check_goes_on(what)
        if not self.transport.status & virtio.STATUS_FEATURES_OK and not self._refused:
            self.tell(
                "INIT-11",
                f"{what} at status {describe(self.transport.status)}",
                queue=queue,
                register=piece.name,
            )

    writing_queue_size = writing_queue_desc = writing_queue_driver = writing_queue_device = _sets_up

    def writing_notification(self, access: Access) -> None:
        """A driver may notify a device that runs."""
        status = self.transport.status
        queue = access.offset // 4
        what = f"a notification at status {describe(status)}"
        if not status & virtio.STATUS_DRIVER_OK:
            self.tell("INIT-10", what, queue=queue)
        elif self._knows_of_trouble:
            self.tell("STAT-03", what, queue=queue)

    def writing_device(self, access: Access) -> None:
        """Device configuration may be written after FEATURES_OK."""
        if not self.transport.status & virtio.STATUS_FEATURES_OK:
            self.tell("INIT-06", f"{access.value:#x} written to {access.describe()}")

    # -- SR-IOV ------------------------------------------------------------------------------------------

    def writing_config(self, _access: Access) -> None:
        """VF Enable may be about to change."""
        self._sriov_enabled = self._owner is not None and self._owner.vf_enabled

    def wrote_config(self, _access: Access) -> None:
        """VF Enable was set, perhaps."""
        if self._owner is None or self._sriov_enabled or not self._owner.vf_enabled or self._had_sriov:
            return
        self.tell("FEAT-07", "VF Enable set, and SR_IOV (bit 37) was never negotiated")


def _lowest(virtio_id: int, bits: int) -> str:
    """The lowest of these features, by name."""
    lowest = bits & -bits
    number = lowest.bit_length() - 1
    name = features(virtio_id, lowest)[0]
    return f"bit {number}" if name == f"bit{number}" else f"{name} (bit {number})"
