"""The network device's context fields for people (docs/wire.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import Any, Final

import numpy as np

from pymodel.spec import context, net

NAMES: Final[Mapping[int, str]] = {
    context.NET_RX_MODE: "NET_RX_MODE",
    context.NET_MAC_TABLE: "NET_MAC_TABLE",
    context.NET_VLAN_TABLE: "NET_VLAN_TABLE",
    context.NET_QUEUE_PAIRS: "NET_QUEUE_PAIRS",
    context.NET_HASH: "NET_HASH",
    context.NET_RSS: "NET_RSS",
    context.NET_OFFLOADS: "NET_OFFLOADS",
}


def _mac_table(value: bytes) -> dict[str, Any]:
    unicast, multicast, flags = struct.unpack_from("<HHB", value)
    start = context.NET_MAC_TABLE_HEADER.itemsize
    macs = [value[at : at + net.MAC_SIZE].hex(":") for at in range(start, len(value), net.MAC_SIZE)]
    if len(macs) != unicast + multicast:
        raise ValueError("a table of another length")
    return {"unicast": macs[:unicast], "multicast": macs[unicast:], "flags": flags}


def _vlan_table(value: bytes) -> dict[str, Any]:
    bits = np.unpackbits(np.frombuffer(value, np.uint8), bitorder="little")
    return {"vlans": np.flatnonzero(bits).tolist()}


def _hash(value: bytes) -> dict[str, Any]:
    types, length = struct.unpack_from("<IB", value)
    key = value[context.NET_HASH_VALUE.itemsize - net.RSS_KEY_MIN :][:length]
    return {"types": types, "key": key.hex()}


def _rss(value: bytes) -> dict[str, Any]:
    count, unclassified = struct.unpack_from("<HH", value)
    table = struct.unpack(f"<{count}H", value[context.NET_RSS_HEADER.itemsize :])
    return {"unclassified": unclassified, "table": list(table)} if count else {"steering": "automatic"}


def _offloads(value: bytes) -> dict[str, Any]:
    (off,) = struct.unpack("<Q", value)
    return {"off": [bit for bit in range(64) if off >> bit & 1]}


_DECODERS: Final[Mapping[int, Callable[[bytes], dict[str, Any]]]] = {
    context.NET_MAC_TABLE: _mac_table,
    context.NET_VLAN_TABLE: _vlan_table,
    context.NET_HASH: _hash,
    context.NET_RSS: _rss,
    context.NET_OFFLOADS: _offloads,
}


def members(kind: int, value: bytes) -> dict[str, Any] | None:
    """The value of a field that is no plain structure, taken apart; None where it is another or damaged."""
    decoder = _DECODERS.get(kind)
    try:
        return None if decoder is None else decoder(value)
    except (ValueError, struct.error):
        return None
