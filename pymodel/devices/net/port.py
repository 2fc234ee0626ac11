"""What a network device sends its frames to and has them from.

Taps, sockets and the switch are the server's business (`vfu_server`); they implement this Protocol. A frame
is virtio 1.4's "struct virtio_net_hdr" with `num_buffers`, 12 bytes, and an Ethernet frame behind it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pymodel.devices.net.channel import Channel
from pymodel.devices.net.filter import Filter
from pymodel.memory import Bytes

FRAME_MAX: Final = 12 + 14 + 8 + 65535
"""Bytes of the longest frame: headers, two VLAN tags, the longest IPv4 packet. Longer ones are dropped."""


class Port(Protocol):
    """A network function's connection. Called with the function's lock held; nothing here blocks.

    A port tells of frames once, by `wake` or by POLLIN in `waits`, and then stays quiet until `receive` was
    asked and had none: a function without room for a frame keeps it, and asks again when it has room.
    Likewise `receive` ends the wait for room after a refused `send`; one that is refused again waits again.
    """

    @property
    def offloads(self) -> int:
        """Feature bits of the checksum and segmentation offloads that it can carry, both ways."""
        ...

    @property
    def link_up(self) -> bool:
        """Whether there is a carrier."""
        ...

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """File descriptors with events of poll(2): frames to receive, or room to send again.

        Each event calls for a `receive`, and for a `send` of what was refused.
        """
        ...

    def connect(self, wake: Callable[[], None]) -> None:
        """`wake` has the function look for frames and at `link_up`; the port calls it from any thread.

        Called again when a VF is made anew; the last `wake` counts. A port begins as after a reset.
        """
        ...

    def configure(self, features: int, receive: Filter | None) -> None:
        """What the driver agreed to (0 after a reset) and what it wants to receive (None: nothing).

        Of the guest's offloads, `features` has those that are switched on. Called while the device runs, so
        nothing comes in before, and with 0 and None when it is reset.
        """
        ...

    def send(self, frame: Sequence[Bytes]) -> bool:
        """Send one frame, given in parts that are only valid during the call. Copied or gone on return.

        False where it can't be taken now: `waits` then says when to try again. A frame that the port will
        never be able to carry is dropped and counted.
        """
        ...

    def receive(self) -> Bytes | None:
        """The next frame that the filter accepts, to be kept but not written to; None if none waits now."""
        ...

    def at_once(self) -> Channel | None:
        """The port for an engine, until anything else of it is called; None if it has to be asked in Python
        for each frame.
        """
        ...

    def counters(self) -> dict[str, int]:
        """Frames and bytes sent and received, and frames dropped, by name, for the monitor."""
        ...

    def close(self) -> None:
        """Give everything back. Called by whoever made it."""
        ...


@dataclass(frozen=True, slots=True)
class NetBackend:
    """What a network function stands on. Without `mac` its name gives it one; `mtu` may be unsaid."""

    port: Port
    mac: bytes | None = None
    mtu: int | None = None
