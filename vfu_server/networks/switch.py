"""The switch inside the server: it joins the functions of a device, and at most one uplink."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from typing import Final

import numpy as np

from pymodel.devices.net import segmentation
from pymodel.devices.net.filter import Filter
from pymodel.devices.net.segmentation import Checked
from pymodel.memory import Bytes
from pymodel.spec import net
from vfu_server.networks.frame_port import HEADER, FramePort, joined
from vfu_server.networks.inbox import Inbox

LEARNED_MAX: Final = 4096
"""Addresses that are remembered; the one unheard of for longest makes room."""

AGE_SECONDS: Final = 300.0
"""How long an address is remembered (IEEE 802.1Q, "Ageing time", recommended value)."""

GUEST_OFFLOADS: Final = sum(
    1 << bit
    for bit in (
        net.F_GUEST_CSUM,
        net.F_GUEST_TSO4,
        net.F_GUEST_TSO6,
        net.F_GUEST_ECN,
        net.F_GUEST_USO4,
        net.F_GUEST_USO6,
    )
)
OFFLOADS: Final = GUEST_OFFLOADS | sum(
    1 << bit for bit in (net.F_CSUM, net.F_HOST_TSO4, net.F_HOST_TSO6, net.F_HOST_ECN, net.F_HOST_USO)
)


class Member:
    """One that the switch forwards to. `features` are the guest's offloads that it takes."""

    def __init__(self) -> None:
        self.inbox = Inbox()
        self.features = 0
        self.filter: Filter | None = None
        self.addresses: AbstractSet[bytes] = frozenset()  # as the switch knows them

    def deliver(self, frame: Checked) -> None:
        """Put a frame, as it takes it, into its inbox. Any thread may call it."""
        wanted = self.filter
        if wanted is not None and wanted.accepts(frame.frame[HEADER:]):
            try:
                frames = frame.carried(self.features)
            except MemoryError:
                self.inbox.lose(1)
                return
            self.inbox.put(frames)


class Switch:
    """Forwards frames between its members. `forward` is called by any of their threads.

    The lock is for the tables only, and what it guards is replaced, not changed, so that it can be read on.
    A caller may hold a function's lock; none is taken here.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._members: tuple[Member, ...] = ()
        self._owners: dict[bytes, tuple[Member, ...]] = {}
        self._learned: dict[bytes, tuple[Member, float]] = {}  # heard of last comes last

    def join(self, member: Member) -> None:
        """Add a member."""
        with self._lock:
            self._members += (member,)

    def own(self, member: Member, addresses: AbstractSet[bytes]) -> None:
        """These are the member's addresses from now on. Without any, what was learned of it is forgotten."""
        with self._lock:
            for address in member.addresses - addresses:
                others = tuple(owner for owner in self._owners.pop(address) if owner is not member)
                if others:
                    self._owners[address] = others
            for address in addresses - member.addresses:
                self._owners[address] = (*self._owners.get(address, ()), member)
            member.addresses = frozenset(addresses)
            if not addresses:
                self._learned = {at: found for at, found in self._learned.items() if found[0] is not member}

    def forward(self, source: Member, frame: Bytes) -> bool:
        """Deliver a frame of `source`, which nobody else writes to. False, and nothing done, if it is none.

        `frame` has at least a virtio header and an Ethernet header.
        """
        head = frame[HEADER : HEADER + 2 * net.MAC_SIZE].tobytes()
        to, origin = head[: net.MAC_SIZE], head[net.MAC_SIZE :]
        checked = None if origin[0] & 1 else segmentation.check(frame)
        if checked is None:
            return False
        frame.flags.writeable = False  # its receivers share it
        with self._lock:
            if origin not in self._owners:
                self._learn(source, origin, frame[HEADER:])
            targets = self._targets(to)
        for target in targets:
            if target is not source:
                target.deliver(checked)
        return True

    def _learn(self, source: Member, origin: bytes, frame: Bytes) -> None:
        """Remember where an address is that is no function's own.

        A function is believed where it would take what is sent there, so that it can't silence a neighbour.
        """
        known = self._learned.get(origin)
        if known is None or known[0] is not source:
            reply = frame[: net.ETHERNET_HEADER + net.VLAN_TAG].copy()
            reply[: net.MAC_SIZE] = np.frombuffer(origin, np.uint8)
            if source.filter is None or not source.filter.accepts(reply):
                return
        self._learned.pop(origin, None)
        if len(self._learned) >= LEARNED_MAX:
            del self._learned[next(iter(self._learned))]
        self._learned[origin] = source, self._clock()

    def _targets(self, to: bytes) -> tuple[Member, ...]:
        if to[0] & 1:
            return self._members
        owners = self._owners.get(to)
        if owners is not None:
            return owners
        known = self._learned.get(to)
        if known is not None and self._clock() - known[1] < AGE_SECONDS:
            return (known[0],)
        return self._members


class SwitchPort(FramePort):
    """A function's port of the switch. The link is always up; all offloads are carried."""

    offloads = OFFLOADS

    def __init__(self, switch: Switch) -> None:
        super().__init__()
        self._switch = switch
        self._member = Member()
        switch.join(self._member)

    def connect(self, wake: Callable[[], None]) -> None:
        """See `Port`."""
        self._member.inbox.wake = wake
        super().connect(wake)

    def configure(self, features: int, receive: Filter | None) -> None:
        """See `Port`."""
        member = self._member
        wanted = features & GUEST_OFFLOADS
        if receive is None or wanted != member.features:
            # No frame comes in after this that was meant for the features before.
            member.filter = None
            member.features = wanted
            self._channel.dropped_receiving += member.inbox.clear()
        self._switch.own(member, frozenset() if receive is None else receive.addresses)
        member.filter = receive
        super().configure(features, receive)

    def receive(self) -> Bytes | None:
        """See `Port`."""
        frame = self._read()
        if frame is not None:
            self._channel.received += 1
            self._channel.received_bytes += len(frame) - HEADER
        return frame

    def counters(self) -> dict[str, int]:
        """See `Port`."""
        found = super().counters()
        found["dropped-receiving"] += self._member.inbox.lost
        return found

    def close(self) -> None:
        """Take nothing any more."""
        self._member.filter = None

    def _poll(self, events: int, refused: bool) -> Sequence[tuple[int, int]]:
        return ()

    def _write(self, frame: Sequence[Bytes]) -> bool | None:
        return self._switch.forward(self._member, joined(frame))

    def _read(self) -> Bytes | None:
        return self._member.inbox.take()
