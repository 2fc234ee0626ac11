"""The switch inside the server: it joins the functions of a device, and at most one uplink."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Set as AbstractSet
from typing import Final

from pymodel.devices.net import channel as channels
from pymodel.devices.net import frame_head, segmentation
from pymodel.devices.net.frame_head import FrameHead
from pymodel.devices.net.segmentation import Checked
from pymodel.memory import Bytes, GuestMemory, Vectors, place_of
from pymodel.spec import net
from vfu_server.networks.address_table import AddressTable
from vfu_server.networks.inbox import Inbox
from vfu_server.vfio.clock import Clock
from vfu_server.vfio.mutex import Mutex

LEARNED_MAX: Final = 4096
"""Addresses that are remembered; the one unheard of for longest makes room."""

AGE_SECONDS: Final = 300
"""How long an address is remembered (IEEE 802.1Q, "Ageing time", recommended value)."""

GUEST_OFFLOADS: Final = sum(1 << bit for bit in frame_head.OFFLOADS)

# Compiled code has numbers of its own for these.
_DONE, _NOT_NOW = channels.DONE, channels.NOT_NOW
_AGE = AGE_SECONDS * 1_000_000_000
_ADDRESS = (1 << 8 * net.MAC_SIZE) - 1
_REST = _ADDRESS << 16 & 0xFFFF_FFFF_0000
# Targets of a frame: all members.
_ALL = -1

_OWNERS = 64
_TARGETS = 8

# Frames that the process has itself.
_OWN = GuestMemory()


class Member:
    """One that the switch forwards to, and that sends on one thread at a time. The switch makes and keeps it.

    Its `number` says where it is found, as there are no lists of objects without the interpreter: 1 is the
    root of a tree; bit by bit, from the lowest to the highest but one, 0 is to the left and 1 to the right.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.inbox = Inbox()
        self.head = FrameHead()  # of the frame that it sends
        self.left: Member | None = None
        self.right: Member | None = None
        self.addresses: AbstractSet[bytes] = frozenset()  # as the switch knows them
        # Where the frame that it sends goes to: `found` numbers of members.
        self.found = 0
        self.targets = array("I", bytes(4 * _TARGETS))
        self._pieces: Vectors | None = None

    def pieces(self, frame: Bytes) -> Vectors:
        """A frame in one piece, until the next call."""
        if self._pieces is None:
            self._pieces = Vectors()
        self._pieces.clear()
        self._pieces.add(place_of(frame), len(frame))
        return self._pieces

    def to(self) -> list[int]:
        """The numbers of those that the frame goes to, if they are not all."""
        targets = memoryview(self.targets)
        return targets[: self.found].tolist()

    def make_room(self) -> None:
        """Have room for as many targets as were found."""
        self.targets = array("I", bytes(4 * self.found))


class Switch:
    """Forwards frames between its members. `forward` and `pass_on` are called by any of their threads.

    A caller may hold a function's lock; none is taken here. The mutex is for the tables, and nothing is taken
    under it. Members are only ever added, so the tree needs none.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self._clock = clock or Clock()
        self._mutex = Mutex()
        self._changing = threading.Lock()  # of whoever joins, or owns other addresses
        self._members: list[Member] = []
        self._root: Member | None = None
        self._owners = AddressTable(_OWNERS)
        self._learned = AddressTable(LEARNED_MAX)

    def join(self) -> Member:
        """A new member."""
        with self._changing:
            member = Member(len(self._members) + 1)
            self._members.append(member)
            if self._root is None:
                self._root = member
                return member
            at, path = self._members[0], member.number
            while path > 3:
                side = at.right if path & 1 else at.left
                assert side is not None
                at, path = side, path >> 1
            if path & 1:
                at.right = member
            else:
                at.left = member
            return member

    def own(self, member: Member, addresses: AbstractSet[bytes]) -> None:
        """These are the member's addresses from now on. Without any, what was learned of it is forgotten.

        Raises MemoryError with nothing changed.
        """
        with self._changing:
            gone, new = _words(member.addresses - addresses), _words(addresses - member.addresses)
            owners = self._owners
            size = owners.size
            while size < owners.count + len(new):
                size *= 2
            if size != owners.size:
                # Only who holds the lock changes it, so it can be read.
                owners = AddressTable(size)
                owners.take_over(self._owners)
            member.addresses = frozenset(addresses)
            before = self._owners
            self._mutex.take()
            self._owners = owners
            self._mutex.give()
            del before  # only now, when nobody looks there any more
            self._change(member.number, gone, new, not addresses)

    def forward(self, source: Member, frame: Bytes) -> bool:
        """Deliver a frame of `source`, which nobody else writes to. False, and nothing done, if it is bad."""
        checked = segmentation.check(frame, source.head)
        if checked is None:
            return False
        pieces = source.pieces(frame)
        while self.pass_on(source, _OWN, pieces, 0, len(frame)) == _NOT_NOW:
            if source.found > len(source.targets):
                source.make_room()
                continue
            numbers = range(1, len(self._members) + 1) if source.found == _ALL else source.to()
            for number in numbers:
                if number != source.number:
                    self._deliver(checked, source, self._members[number - 1].inbox)
            break
        return True

    def _deliver(self, checked: Checked, source: Member, inbox: Inbox) -> None:
        """Put a frame, as its receiver takes it, into an inbox."""
        head = checked.head
        if not inbox.wants(head):
            return
        try:
            parts = checked.carried(inbox.features)
        except MemoryError:
            inbox.lose(1)
            return
        for part in parts:
            needed = head.needed if part is checked.frame else 0
            inbox.put(head, needed, _OWN, source.pieces(part), 0, len(part))

    # -- without the interpreter --------------------------------------------------------------------------

    def pass_on(self, source: Member, memory: GuestMemory, frame: Vectors, piece: int, length: int) -> int:
        """Put a frame into the inboxes of those that it goes to. It has `length` bytes, which are in pieces
        from number `piece` on, and its head is `source.head`, checked.

        `NOT_NOW`, and nothing done, where it is not for all of them as it is, or there are more than fit into
        `source.targets`.
        """
        self.route(source)
        if source.found > len(source.targets):
            return _NOT_NOW
        if source.head.needed and not self.each(source, memory, frame, piece, 0):
            return _NOT_NOW
        self.each(source, memory, frame, piece, length)
        return _DONE

    def route(self, source: Member) -> int:
        """Find the targets of a frame, and learn where it came from."""
        to = source.head.first & _ADDRESS
        origin = source.head.first >> 48 | (source.head.second << 16 & _REST)
        now = self._clock.now()
        self._mutex.take()
        if self._owners.first(origin) < 0:
            self.learn(source, origin, now)
        source.found = _ALL
        if not to & 1:
            entry = self._owners.first(to)
            if entry >= 0:
                source.found = 0
                while entry >= 0:
                    if source.found < len(source.targets):
                        source.targets[source.found] = self._owners.member(entry)
                    source.found += 1
                    entry = self._owners.another(entry)
            else:
                entry = self._learned.first(to)
                if entry >= 0 and now - self._learned.time(entry) < _AGE:
                    source.found = 1
                    source.targets[0] = self._learned.member(entry)
        self._mutex.give()
        return 0

    def learn(self, source: Member, origin: int, now: int) -> int:
        """Remember where an address is that is no function's own.

        A function is believed where it would take what is sent there, so that it can't silence a neighbour.
        Only its own thread replaces its filter.
        """
        known = self._learned.first(origin)
        if known >= 0 and self._learned.member(known) == source.number:
            return self._learned.touch(known, now)
        if source.inbox.filter is None:
            return -1
        if not source.inbox.filter.wants((source.head.first & ~_ADDRESS) | origin, source.head.second):
            return -1
        if known >= 0:
            self._learned.remove(known)
        return self._learned.add(origin, source.number, now)

    def each(self, source: Member, memory: GuestMemory, frame: Vectors, piece: int, length: int) -> int:
        """Give a frame to all that were found; with `length` 0 ask only whether all take it as it is."""
        if source.found == _ALL:
            return self.give_all(self._root, source, memory, frame, piece, length)
        number = 0
        while number < source.found:
            if not self.give_one(self._root, source.targets[number], source, memory, frame, piece, length):
                return 0
            number += 1
        return 1

    def give_all(
        self,
        member: Member | None,
        source: Member,
        memory: GuestMemory,
        frame: Vectors,
        piece: int,
        length: int,
    ) -> int:
        """The same for a member and all below it."""
        if member is None:
            return 1
        if not self.give(member, source, memory, frame, piece, length):
            return 0
        if not self.give_all(member.left, source, memory, frame, piece, length):
            return 0
        return self.give_all(member.right, source, memory, frame, piece, length)

    def give_one(
        self,
        member: Member | None,
        path: int,
        source: Member,
        memory: GuestMemory,
        frame: Vectors,
        piece: int,
        length: int,
    ) -> int:
        """The same for the one at the end of this path."""
        if member is None:
            return 1
        if path == 1:
            return self.give(member, source, memory, frame, piece, length)
        if path & 1:
            return self.give_one(member.right, path >> 1, source, memory, frame, piece, length)
        return self.give_one(member.left, path >> 1, source, memory, frame, piece, length)

    def give(
        self,
        member: Member,
        source: Member,
        memory: GuestMemory,
        frame: Vectors,
        piece: int,
        length: int,
    ) -> int:
        """The same for one; a frame does not go back to where it came from."""
        if member is source:
            return 1
        if not length:
            return member.inbox.takes(source.head)
        member.inbox.put(source.head, source.head.needed, memory, frame, piece, length)
        return 1

    def _change(self, number: int, gone: array[int], new: array[int], forget: bool) -> int:
        """`own`, where there is room for all."""
        at = 0
        self._mutex.take()
        while at < len(gone):
            entry = self._owners.first(gone[at])
            while entry >= 0 and self._owners.member(entry) != number:
                entry = self._owners.another(entry)
            if entry >= 0:
                self._owners.remove(entry)
            at += 1
        at = 0
        while at < len(new):
            self._owners.add(new[at], number, 0)
            at += 1
        if forget:
            self._learned.forget(number)
        self._mutex.give()
        return 0


def _words(addresses: AbstractSet[bytes]) -> array[int]:
    """Addresses as a `Filter` sees them."""
    return array("Q", [int.from_bytes(address, "little") for address in addresses])
