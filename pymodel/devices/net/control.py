"""The control queue's commands, as a table. virtio 1.4, "Control Virtqueue" of the network device.

A command is its data and the settings before it; it gives the settings after it, or refuses.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final

from pymodel.devices.net.settings import (
    HASH_TYPES,
    RSS_KEY_MAX,
    RSS_TABLE_MAX,
    TABLE_MAX,
    MacTable,
    Rss,
    Settings,
    is_unicast,
)
from pymodel.spec import net

DATA_MAX: Final = 1 << 16
"""Bytes of command-specific-data that a command may have."""

GUEST_OFFLOADS: Final = (
    1 << net.F_GUEST_CSUM
    | 1 << net.F_GUEST_TSO4
    | 1 << net.F_GUEST_TSO6
    | 1 << net.F_GUEST_ECN
    | 1 << net.F_GUEST_UFO
    | 1 << net.F_GUEST_USO4
    | 1 << net.F_GUEST_USO6
)

_RSS_HEAD: Final = struct.Struct("<IHH")
_RSS_TAIL: Final = struct.Struct("<HB")
_HASH_CONFIG: Final = struct.Struct("<I8xB")


class Refused(Exception):
    """A command that is answered with VIRTIO_NET_ERR; nothing was changed."""


@dataclass(frozen=True, slots=True)
class Command:
    """What a handler gets: its command's data, the settings, the driver's features, the device's limits."""

    data: bytes
    settings: Settings
    features: int
    pairs: int
    """Queue pairs that there are."""

    def unpack(self, layout: str) -> int:
        """The data as one number. Raises `Refused` where it is of another length."""
        if len(self.data) != struct.calcsize(layout):
            raise Refused(f"{len(self.data)} bytes of data")
        (value,) = struct.unpack(layout, self.data)
        return int(value)


def _mode(name: str) -> Callable[[Command], Settings]:
    """The command that switches one of the receive modes."""

    def handler(command: Command) -> Settings:
        on = command.unpack("<B")
        if on > 1:
            raise Refused(f"{name} {on}")
        modes = command.settings.modes
        return replace(command.settings, modes=modes | {name} if on else modes - {name})

    return handler


def _mac_table(command: Command) -> Settings:
    unicast, rest = _addresses(command.data, group=False)
    multicast, rest = _addresses(rest, group=True)
    if rest:
        raise Refused(f"{len(rest)} bytes behind the tables")
    return replace(command.settings, unicast=unicast, multicast=multicast)


def _addresses(data: bytes, *, group: bool) -> tuple[MacTable, bytes]:
    """One table of addresses, and what stands behind it."""
    count = int.from_bytes(data[:4], "little")
    end = 4 + count * net.MAC_SIZE
    if len(data) < max(4, end):
        raise Refused(f"{count} addresses in {len(data)} bytes")
    found = frozenset(data[at : at + net.MAC_SIZE] for at in range(4, end, net.MAC_SIZE))
    if any(mac[0] & 1 != group for mac in found):
        raise Refused("an address in the table of the other kind")
    if len(found) > TABLE_MAX:
        return MacTable(overflow=True), data[end:]
    return MacTable(found), data[end:]


def _mac_address(command: Command) -> Settings:
    if not is_unicast(command.data):
        raise Refused("no address that a function can have")
    return replace(command.settings, mac=command.data)


def _vlan(command: Command) -> int:
    vlan = command.unpack("<H")
    if vlan >= net.VLANS:
        raise Refused(f"VLAN {vlan}")
    return vlan


def _vlan_add(command: Command) -> Settings:
    return replace(command.settings, vlans=command.settings.vlans | {_vlan(command)})


def _vlan_del(command: Command) -> Settings:
    return replace(command.settings, vlans=command.settings.vlans - {_vlan(command)})


def _announce_ack(command: Command) -> Settings:
    """The device clears its status bit; no setting tells of it."""
    if command.data:
        raise Refused(f"{len(command.data)} bytes of data")
    return command.settings


def _pairs(command: Command) -> Settings:
    pairs = command.unpack("<H")
    if not 1 <= pairs <= command.pairs:
        raise Refused(f"{pairs} queue pairs")
    return replace(command.settings, pairs=pairs, rss=None)


def _rss_config(command: Command) -> Settings:
    data = command.data
    if len(data) < _RSS_HEAD.size:
        raise Refused(f"{len(data)} bytes of data")
    types, mask, unclassified = _RSS_HEAD.unpack_from(data)
    size = mask + 1
    if size & mask or size > RSS_TABLE_MAX:
        raise Refused(f"an indirection table of {size} entries")
    at = _RSS_HEAD.size + 2 * size
    if len(data) < at + _RSS_TAIL.size:
        raise Refused(f"{len(data)} bytes of data for {size} entries")
    table = struct.unpack_from(f"<{size}H", data, _RSS_HEAD.size)
    pairs, length = _RSS_TAIL.unpack_from(data, at)
    key = _hash_key(types, length, data[at + _RSS_TAIL.size :])
    if not 1 <= pairs <= command.pairs:
        raise Refused(f"{pairs} transmit queues")
    # An entry is a queue's index less its lowest bit: of a receive queue, the number of its pair.
    if max(unclassified, *table) >= command.pairs:
        raise Refused("a receive queue that does not exist")
    rss = Rss(unclassified, table)
    return replace(command.settings, hash_types=types, hash_key=key, pairs=pairs, rss=rss)


def _hash_config(command: Command) -> Settings:
    """The reserved words are ignored: Linux leaves its own count of queues in them."""
    if len(command.data) < _HASH_CONFIG.size:
        raise Refused(f"{len(command.data)} bytes of data")
    types, length = _HASH_CONFIG.unpack_from(command.data)
    key = _hash_key(types, length, command.data[_HASH_CONFIG.size :])
    return replace(command.settings, hash_types=types, hash_key=key)


def _hash_key(types: int, length: int, rest: bytes) -> bytes:
    """The key at the start of `rest`. Linux 7.3 sends its structure with a byte of padding behind the key."""
    if types & ~HASH_TYPES:
        raise Refused(f"hash types {types:#x}")
    if length > RSS_KEY_MAX or length > len(rest):
        raise Refused(f"a key of {length} bytes in {len(rest)}")
    return rest[:length]


def _offloads(command: Command) -> Settings:
    offloads = command.unpack("<Q")
    taken = command.features & GUEST_OFFLOADS
    if offloads & ~taken:
        raise Refused(f"offloads {offloads:#x}")
    return replace(command.settings, offloads_off=taken & ~offloads)


Handler = Callable[[Command], Settings]

# By class and command: the feature that it belongs to, and what it does.
COMMANDS: Final[dict[tuple[int, int], tuple[int, Handler]]] = {
    (net.CTRL_RX, net.CTRL_RX_PROMISC): (net.F_CTRL_RX, _mode("promisc")),
    (net.CTRL_RX, net.CTRL_RX_ALLMULTI): (net.F_CTRL_RX, _mode("allmulti")),
    (net.CTRL_RX, net.CTRL_RX_ALLUNI): (net.F_CTRL_RX_EXTRA, _mode("alluni")),
    (net.CTRL_RX, net.CTRL_RX_NOMULTI): (net.F_CTRL_RX_EXTRA, _mode("nomulti")),
    (net.CTRL_RX, net.CTRL_RX_NOUNI): (net.F_CTRL_RX_EXTRA, _mode("nouni")),
    (net.CTRL_RX, net.CTRL_RX_NOBCAST): (net.F_CTRL_RX_EXTRA, _mode("nobcast")),
    (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): (net.F_CTRL_RX, _mac_table),
    (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): (net.F_CTRL_MAC_ADDR, _mac_address),
    (net.CTRL_VLAN, net.CTRL_VLAN_ADD): (net.F_CTRL_VLAN, _vlan_add),
    (net.CTRL_VLAN, net.CTRL_VLAN_DEL): (net.F_CTRL_VLAN, _vlan_del),
    (net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK): (net.F_GUEST_ANNOUNCE, _announce_ack),
    (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): (net.F_MQ, _pairs),
    (net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG): (net.F_RSS, _rss_config),
    (net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG): (net.F_HASH_REPORT, _hash_config),
    (net.CTRL_GUEST_OFFLOADS, net.CTRL_GUEST_OFFLOADS_SET): (net.F_CTRL_GUEST_OFFLOADS, _offloads),
}


def carry_out(kind: tuple[int, int], command: Command) -> Settings:
    """The settings after a command. Raises `Refused`, also for one that the driver's features don't have."""
    if len(command.data) > DATA_MAX:
        raise Refused(f"more than {DATA_MAX} bytes of data")
    feature, handler = COMMANDS.get(kind, (None, None))
    if feature is None or handler is None:
        raise Refused("no such command")
    if not command.features >> feature & 1:
        raise Refused(f"feature {feature} was not negotiated")
    return handler(command)
