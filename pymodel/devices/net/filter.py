"""Which frames a network function wants. virtio 1.4, "Packet Receive Filtering" and what follows it."""

from __future__ import annotations

from array import array
from collections.abc import Set as AbstractSet

from pymodel.devices.net.settings import MODES, Settings
from pymodel.memory import Bytes
from pymodel.spec import net

BROADCAST = b"\xff" * net.MAC_SIZE

# Compiled code has numbers of its own for these. Types are as they stand in a word that was loaded.
_ETHERNET = net.ETHERNET_HEADER
_VLAN = net.ETHERTYPE_VLAN >> 8 | (net.ETHERTYPE_VLAN & 0xFF) << 8
_SERVICE = net.ETHERTYPE_SERVICE_VLAN >> 8 | (net.ETHERTYPE_SERVICE_VLAN & 0xFF) << 8
_VLANS = net.VLANS
_PROMISC, _ALLMULTI, _ALLUNI, _NOMULTI, _NOUNI, _NOBCAST = (1 << number for number in range(len(MODES)))
_BROADCAST = (1 << 8 * net.MAC_SIZE) - 1

HEAD = 16
"""Bytes of a frame that are looked at."""


class Filter:
    """Which frames a function, or whoever it is, wants: all of them here. Immutable: any thread may ask it.

    `addresses` are the unicast addresses that are its own, 6 bytes each. A switch need not learn these.
    """

    def __init__(self, addresses: AbstractSet[bytes] = frozenset()) -> None:
        self.addresses = frozenset(addresses)

    def accepts(self, frame: Bytes) -> bool:
        """Whether an Ethernet frame (without the virtio header) is wanted: `wants`, for Python."""
        head = frame[:HEAD].tobytes()
        if len(head) < _ETHERNET:
            return False
        head = head.ljust(HEAD, b"\0")
        return bool(self.wants(int.from_bytes(head[:8], "little"), int.from_bytes(head[8:], "little")))

    def wants(self, first: int, second: int) -> int:
        """Whether a frame that begins with these 16 bytes is wanted: two words, loaded as little-endian.

        It has an Ethernet header at least. Compiled to run without the interpreter.
        """
        return 1


class ReceiveFilter(Filter):
    """Settings as a `Filter`. Tags are only looked at `by_vlan`, where the driver took CTRL_VLAN.

    Promiscuous means all frames, whatever else is set. VLAN 0 is no VLAN: such a tag carries a priority.
    """

    def __init__(self, settings: Settings, by_vlan: bool) -> None:
        super().__init__(settings.unicast.addresses | {settings.mac})
        self._by_vlan = by_vlan
        self._modes = sum(1 << MODES.index(mode) for mode in settings.modes)
        if settings.unicast.overflow:
            self._modes |= _ALLUNI
        if settings.multicast.overflow:
            self._modes |= _ALLMULTI
        self._unicast = _words(self.addresses)
        self._multicast = _words(settings.multicast.addresses)
        # A bit for each of them.
        vlans = [1] + [0] * (_VLANS // 64 - 1)
        for vlan in settings.vlans:
            vlans[vlan >> 6] |= 1 << (vlan & 63)
        self._vlans = array("Q", vlans)

    def wants(self, first: int, second: int) -> int:
        """See `Filter`."""
        if self._modes & _PROMISC:
            return 1
        if self._by_vlan:
            kind = second >> 32 & 0xFFFF
            vlan = (second >> 48 & 0xFF) << 8 | second >> 56
            vlan %= _VLANS
            if (kind in (_VLAN, _SERVICE)) and not self._vlans[vlan >> 6] >> (vlan & 63) & 1:
                return 0
        to = first & _BROADCAST
        if not to & 1:
            if self._modes & _NOUNI:
                return 0
            return self._modes & _ALLUNI or among(to, self._unicast)
        if to == _BROADCAST:
            return not self._modes & _NOBCAST
        if self._modes & _NOMULTI:
            return 0
        return self._modes & _ALLMULTI or among(to, self._multicast)


def among(address: int, addresses: array[int]) -> int:
    """Whether an address is one of these."""
    number = 0
    while number < len(addresses):
        if addresses[number] == address:
            return 1
        number += 1
    return 0


def _words(addresses: AbstractSet[bytes]) -> array[int]:
    """Addresses as `wants` sees them."""
    return array("Q", [int.from_bytes(address, "little") for address in addresses])
