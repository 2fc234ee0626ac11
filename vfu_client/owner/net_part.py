"""The network device's part for people: what a command of its control queue had set (virtio 1.4)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

from pymodel.spec import net

Decoder = Callable[[bytes], dict[str, Any]]


def _switch(value: bytes) -> dict[str, Any]:
    (on,) = struct.unpack("<B", value)
    return {"on": on}


def _macs(value: bytes) -> tuple[list[str], bytes]:
    """A table of addresses, and what is behind it."""
    (count,) = struct.unpack_from("<I", value)
    end = 4 + count * net.MAC_SIZE
    if end > len(value):
        raise ValueError("a table that is cut")
    return [value[at : at + net.MAC_SIZE].hex(":") for at in range(4, end, net.MAC_SIZE)], value[end:]


def _mac_table(value: bytes) -> dict[str, Any]:
    unicast, rest = _macs(value)
    multicast, rest = _macs(rest)
    return {"unicast": unicast, "multicast": multicast, **_behind(rest)}


def _mac(value: bytes) -> dict[str, Any]:
    if len(value) != net.MAC_SIZE:
        raise ValueError("no address")
    return {"mac": value.hex(":")}


def _vlans(value: bytes) -> dict[str, Any]:
    return {"vlans": list(struct.unpack(f"<{len(value) // 2}H", value))}


def _nothing(value: bytes) -> dict[str, Any]:
    return _behind(value)


def _pairs(value: bytes) -> dict[str, Any]:
    (pairs,) = struct.unpack("<H", value)
    return {"pairs": pairs}


def _rss(value: bytes) -> dict[str, Any]:
    types, mask, unclassified = struct.unpack_from("<IHH", value)
    table = struct.unpack_from(f"<{mask + 1}H", value, 8)
    most, key_length = struct.unpack_from("<HB", value, 8 + 2 * len(table))
    key = value[11 + 2 * len(table) :]
    return {
        "types": types,
        "unclassified": unclassified,
        "table": list(table),
        "max_tx_vq": most,
        "key": key[:key_length].hex(),
        **_behind(key[key_length:]),
    }


def _hash(value: bytes) -> dict[str, Any]:
    types, key_length = struct.unpack_from("<I8xB", value)
    key = value[13:]
    return {"types": types, "key": key[:key_length].hex(), **_behind(key[key_length:])}


def _behind(rest: bytes) -> dict[str, Any]:
    """What should not be there; Linux and we fill nothing up, others may."""
    return {"behind": rest.hex()} if rest else {}


_SELECTORS: Final[Mapping[tuple[int, int], tuple[str, Decoder]]] = {
    (net.CTRL_RX, net.CTRL_RX_PROMISC): ("RX_PROMISC", _switch),
    (net.CTRL_RX, net.CTRL_RX_ALLMULTI): ("RX_ALLMULTI", _switch),
    (net.CTRL_RX, net.CTRL_RX_ALLUNI): ("RX_ALLUNI", _switch),
    (net.CTRL_RX, net.CTRL_RX_NOMULTI): ("RX_NOMULTI", _switch),
    (net.CTRL_RX, net.CTRL_RX_NOUNI): ("RX_NOUNI", _switch),
    (net.CTRL_RX, net.CTRL_RX_NOBCAST): ("RX_NOBCAST", _switch),
    (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): ("MAC_TABLE_SET", _mac_table),
    (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): ("MAC_ADDR_SET", _mac),
    (net.CTRL_VLAN, net.CTRL_VLAN_ADD): ("VLAN_ADD", _vlans),
    (net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK): ("ANNOUNCE_ACK", _nothing),
    (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): ("MQ_VQ_PAIRS_SET", _pairs),
    (net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG): ("MQ_RSS_CONFIG", _rss),
    (net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG): ("MQ_HASH_CONFIG", _hash),
}


def name(kind: int, command: int) -> str:
    """The command of the control queue, or its class and number where it has no name here."""
    found = _SELECTORS.get((kind, command))
    return f"{kind}/{command}" if found is None else found[0]


def members(kind: int, command: int, value: bytes) -> dict[str, Any] | None:
    """What the command's data say; None where it is another command, or they are damaged."""
    found = _SELECTORS.get((kind, command))
    try:
        return None if found is None else found[1](value)
    except (ValueError, struct.error):
        return None
