"""Ethernet addresses, and at which member of the switch each is."""

from __future__ import annotations

import secrets
from array import array

# A typed name for what C takes for a negative number.
_WORD = 0xFFFF_FFFF_FFFF_FFFF


class AddressTable:
    """Up to `size` entries, a power of two: an address, the number of a member, and a time. What is added
    where all are used takes the place of the one that was added or touched longest ago.

    Addresses are 48 bits as `Filter` sees them, entries are numbers, -1 for none. An address may have more
    than one. Drivers choose addresses, so where one is kept depends on a number that they don't know.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self.count = 0
        self._factor = secrets.randbits(64) | 1
        self._shift = 64 - (size.bit_length() - 1)
        self._addresses = array("Q", bytes(8 * size))
        self._members = array("I", bytes(4 * size))
        self._times = array("q", bytes(8 * size))
        # By bucket: its first entry. By entry: the next one there, and its neighbours in age. Number `size`
        # is ahead of the oldest and behind the newest.
        self._buckets = array("i", [-1]) * size
        self._next = array("i", [*range(1, size), -1])
        self._free = 0
        self._older = array("i", [*bytes(size), size])
        self._newer = array("i", [*bytes(size), size])

    def first(self, address: int) -> int:
        """An entry of this address."""
        return self.same(self._buckets[self.bucket(address)], address)

    def another(self, entry: int) -> int:
        """The next entry of the same address."""
        return self.same(self._next[entry], self._addresses[entry])

    def member(self, entry: int) -> int:
        """Whose the entry is."""
        return self._members[entry]

    def time(self, entry: int) -> int:
        """When it was added or touched."""
        return self._times[entry]

    def add(self, address: int, member: int, time: int) -> int:
        """Make an entry."""
        if self._free < 0:
            self.remove(self._newer[self.size])
        entry = self._free
        self._free = self._next[entry]
        bucket = self.bucket(address)
        self._next[entry] = self._buckets[bucket]
        self._buckets[bucket] = entry
        self._addresses[entry] = address
        self._members[entry] = member
        self.count += 1
        return self.link(entry, time)

    def touch(self, entry: int, time: int) -> int:
        """It is the newest from now on."""
        self.unlink(entry)
        return self.link(entry, time)

    def remove(self, entry: int) -> int:
        """Free an entry."""
        bucket = self.bucket(self._addresses[entry])
        if self._buckets[bucket] == entry:
            self._buckets[bucket] = self._next[entry]
        else:
            before = self._buckets[bucket]
            while self._next[before] != entry:
                before = self._next[before]
            self._next[before] = self._next[entry]
        self.unlink(entry)
        self._next[entry] = self._free
        self._free = entry
        self.count -= 1
        return 0

    def forget(self, member: int) -> int:
        """Free all entries of a member."""
        entry = self._newer[self.size]
        while entry != self.size:
            after = self._newer[entry]
            if self._members[entry] == member:
                self.remove(entry)
            entry = after
        return 0

    def take_over(self, other: AddressTable) -> int:
        """Add all entries of another one, which has no more than are free here."""
        entry = other._newer[other.size]
        while entry != other.size:
            self.add(other._addresses[entry], other._members[entry], other._times[entry])
            entry = other._newer[entry]
        return 0

    def bucket(self, address: int) -> int:
        """Where entries of an address are to be found."""
        return (address * self._factor & _WORD) >> self._shift

    def same(self, entry: int, address: int) -> int:
        """The first entry of an address from this one on."""
        while entry >= 0 and self._addresses[entry] != address:
            entry = self._next[entry]
        return entry

    def link(self, entry: int, time: int) -> int:
        """Put an entry behind the newest one."""
        self._times[entry] = time
        self._older[entry] = self._older[self.size]
        self._newer[entry] = self.size
        self._newer[self._older[entry]] = entry
        self._older[self.size] = entry
        return entry

    def unlink(self, entry: int) -> int:
        """Take it out of the order."""
        self._newer[self._older[entry]] = self._newer[entry]
        self._older[self._newer[entry]] = self._older[entry]
        return 0
