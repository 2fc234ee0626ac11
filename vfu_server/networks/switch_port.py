"""A function's port of the switch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pymodel.devices.net.filter import Filter
from pymodel.memory import Bytes
from pymodel.spec import net
from vfu_server.networks.frame_port import FramePort, joined
from vfu_server.networks.switch import GUEST_OFFLOADS, Switch
from vfu_server.networks.switch_channel import SwitchChannel

OFFLOADS: Final = GUEST_OFFLOADS | sum(
    1 << bit for bit in (net.F_CSUM, net.F_HOST_TSO4, net.F_HOST_TSO6, net.F_HOST_ECN, net.F_HOST_USO)
)


class SwitchPort(FramePort):
    """The link is always up; all offloads are carried. Raises OSError."""

    offloads = OFFLOADS

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self._switch = switch
        self._member = switch.join()
        self._channel = SwitchChannel(switch, self._member)

    def configure(self, features: int, receive: Filter | None) -> None:
        """See `Port`."""
        inbox = self._member.inbox
        wanted = features & GUEST_OFFLOADS
        if receive is None or wanted != inbox.features:
            # No frame comes in after this that was meant for the features before.
            self._channel.dropped_receiving += inbox.clear(wanted)
        self._switch.own(self._member, frozenset() if receive is None else receive.addresses)
        inbox.want(receive)
        super().configure(features, receive)

    def counters(self) -> dict[str, int]:
        """See `Port`."""
        found = super().counters()
        found["dropped-receiving"] += self._member.inbox.lost
        return found

    def close(self) -> None:
        """Take nothing any more."""
        self._channel.fd = -1
        self._member.inbox.close()

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        return ((self._channel.fd, events),) if events and self._channel.fd >= 0 else ()

    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        return self._switch.forward(self._member, joined(frame))

    def _read(self) -> Bytes | None:
        return self._member.inbox.take()
