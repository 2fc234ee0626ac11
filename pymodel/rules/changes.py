"""Rules about what a driver does once it was told that its configuration changed.

virtio 1.4, "Block Device" and "Network Device".
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar, Final, NamedTuple

from pymodel.devices.net.device import NetDevice
from pymodel.memory import Buffer
from pymodel.pci.function import Function
from pymodel.rules.breaches import Breaches
from pymodel.rules.rule import MUST, SHOULD, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import net, virtio, virtio_pci
from pymodel.watch.access import Access, Piece
from pymodel.watcher import INTX

_BLOCK: Final = "Block Device / Device Operation"
_LAYOUT: Final = "Network Device / Device configuration layout"
_ANNOUNCING: Final = "Network Device / Control Virtqueue / Gratuitous Packet Sending"

ANSWER_SECONDS: Final = 3.0
"""How long a driver may take."""


class _Reading(NamedTuple):
    """A field that a driver of this type is to read after a change, with this feature."""

    virtio_id: int
    feature: int | None
    name: str
    rule: str


_READINGS: Final = (
    _Reading(virtio.ID_BLOCK, None, "capacity", "CHANGE-01"),
    _Reading(virtio.ID_NET, net.F_STATUS, "status", "CHANGE-02"),
    _Reading(virtio.ID_NET, net.F_SPEED_DUPLEX, "speed", "CHANGE-03"),
    _Reading(virtio.ID_NET, net.F_SPEED_DUPLEX, "duplex", "CHANGE-03"),
)

_PEERS, _ACK = "an announcement", "ANNOUNCE_ACK"
_ANNOUNCE: Final[Mapping[str, str]] = {_PEERS: "CHANGE-04", _ACK: "CHANGE-05"}
"""What a driver is to send that was asked to announce itself."""

_ANNOUNCING_IS: Final = {_PEERS: "a frame to a group address", _ACK: "the command"}


class Changes(Topic):
    """Awaits the answers to configuration changes."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "CHANGE-01": Rule(
            SHOULD,
            _BLOCK,
            "read capacity when it is told of a configuration change",
            f"no such read for {ANSWER_SECONDS:g} s",
            "answers IOERR to requests beyond its capacity",
        ),
        "CHANGE-02": Rule(
            SHOULD,
            _LAYOUT,
            "read the link's state from status with STATUS",
            f"a frame to send before status was read, or no such read for {ANSWER_SECONDS:g} s after a"
            " configuration change",
            "drops frames while the link is down",
        ),
        "CHANGE-03": Rule(
            SHOULD,
            _LAYOUT,
            "read speed and duplex again after a configuration change with SPEED_DUPLEX",
            f"no such read for {ANSWER_SECONDS:g} s",
            "does without it",
        ),
        "CHANGE-04": Rule(
            SHOULD,
            _ANNOUNCING,
            "tell its peers where it is once it sees ANNOUNCE in status",
            f"no frame to a group address for {ANSWER_SECONDS:g} s",
            "has announced the function's address itself",
        ),
        "CHANGE-05": Rule(
            MUST,
            _ANNOUNCING,
            "send ANNOUNCE_ACK once it sees ANNOUNCE in status",
            f"no such command for {ANSWER_SECONDS:g} s",
            "leaves the bit set",
        ),
    }

    def __init__(self, function: Function, breaches: Breaches) -> None:
        super().__init__(function, breaches)
        # Whether the driver read status since its reset, and whether it began here without that.
        self._status_read = self._status_unread = False
        # What a driver is to read or send, each with what tells it from the same thing later on.
        self._awaited: dict[str, object] = {}

    def was_reset(self) -> None:
        """Another driver, perhaps, that was told nothing."""
        self._status_read = self._status_unread = False
        self._awaited.clear()

    def writing_device_status(self, piece: Piece) -> None:
        """A driver that begins; one that was moved here began elsewhere."""
        if piece.value & ~self.transport.status & virtio.STATUS_DRIVER_OK:
            self._status_unread = not self._status_read and self.transport.negotiated(net.F_STATUS)

    # -- what it is told ---------------------------------------------------------------------------------

    def interrupt(self, vector: int) -> None:
        """That the configuration changed."""
        transport = self.transport
        if vector == INTX:
            changed = bool(transport.isr & virtio_pci.ISR_CONFIG)
        else:
            changed = transport.config_owed and vector == transport.config_vector
        if not changed or not transport.running or transport.legacy:
            return
        for type_, feature, name, rule in _READINGS:
            if type_ == transport.device.virtio_id and (feature is None or transport.negotiated(feature)):
                self._await(rule, name, f"told of a configuration change, and {name} was not read")

    def reads_device(self, access: Access) -> None:
        """What it reads. In status it may see that it is to announce itself."""
        for piece in access.pieces:
            self._awaited.pop(piece.name, None)
            if piece.name == "status" and isinstance(self.transport.device, NetDevice):
                self._status_read, self._status_unread = True, False
                if piece.value & net.S_ANNOUNCE and self.transport.negotiated(net.F_GUEST_ANNOUNCE):
                    for what, rule in _ANNOUNCE.items():
                        self._await(rule, what, f"ANNOUNCE read in status, and {what} was not sent")

    # -- what it does ------------------------------------------------------------------------------------

    def taken(self, buffer: Buffer) -> None:
        """A frame, or ANNOUNCE_ACK."""
        device = self.transport.device
        if not isinstance(device, NetDevice) or self.transport.legacy:
            return
        if buffer.queue == device.control_queue:
            if buffer.readable.read(0, 2) == bytes((net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK)):
                self._awaited.pop(_ACK, None)
        elif buffer.queue & 1:
            if self._status_unread:
                self._status_unread = False
                self.tell_of("CHANGE-02", buffer, "a frame, and status was not read", register="status")
            if _PEERS in self._awaited and _to_a_group(buffer.readable.read(device.header_size, 1)):
                del self._awaited[_PEERS]

    # -- what it does not do -----------------------------------------------------------------------------

    def _await(self, rule: str, what: str, seen: str) -> None:
        """Tell of `rule` unless the driver does `what` in time."""
        if what not in self._awaited:
            token = self._awaited[what] = object()
            self.later(ANSWER_SECONDS, partial(self._overdue, rule, what, seen, token))

    def _overdue(self, rule: str, what: str, seen: str, token: object) -> None:
        if self._awaited.get(what) is not token:
            return
        del self._awaited[what]
        if self.transport.running and self.function.may_fetch:
            expected = _ANNOUNCING_IS.get(what, f"a read of {what}")
            self.tell(rule, f"{seen} for {ANSWER_SECONDS:g} s", subject=what, expected=expected)


def _to_a_group(destination: bytes) -> bool:
    return bool(destination and destination[0] & 1)
