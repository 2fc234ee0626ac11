"""The network device's part of a device context: its settings as fields, and back (docs/wire.md)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np

from pymodel.devices.net.control import GUEST_OFFLOADS
from pymodel.devices.net.settings import (
    HASH_TYPES,
    MODES,
    RSS_KEY_MAX,
    RSS_TABLE_MAX,
    TABLE_MAX,
    MacTable,
    Rss,
    Settings,
)
from pymodel.errors import InvalidField
from pymodel.migration.state import DeviceField
from pymodel.spec import context, net

# The layouts of pymodel/spec/context.py.
_MODE: Final = struct.Struct("<6B2s")
_MACS: Final = struct.Struct("<HHB3s")
_PAIRS: Final = struct.Struct("<H6s")
_HASH: Final = struct.Struct("<IB3s40s")
_RSS: Final = struct.Struct("<HH4s")
_OFFLOADS: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class Field:
    """One field: its length, the value for settings, and what a value says of them."""

    length: int
    encode: Callable[[Settings], bytes]
    decode: Callable[[bytes, int], dict[str, Any]]
    """Takes the value, and how many queue pairs there are; gives settings by name. Raises `InvalidField`."""


def encode(settings: Settings) -> list[DeviceField]:
    """All fields of `settings`. The address is not among them: it is in the device configuration."""
    return [
        DeviceField(kind, [np.frombuffer(field.encode(settings), np.uint8)]) for kind, field in FIELDS.items()
    ]


def decode(fields: list[DeviceField], settings: Settings, pairs: int) -> Settings:
    """`settings` with what the fields say, on a device of `pairs` queue pairs. Raises `InvalidField`."""
    found: dict[str, Any] = {}
    for part in fields:
        value = b"".join(buffer.tobytes() for buffer in part.value)
        try:
            found |= FIELDS[part.type].decode(value, pairs)
        except InvalidField as error:
            raise InvalidField(f"field {part.type:#06x}: {error}") from None
    return replace(settings, **found) if found else settings


def _no_reserved(reserved: bytes) -> None:
    if any(reserved):
        raise InvalidField("a reserved word is not 0")


def _encode_modes(settings: Settings) -> bytes:
    return _MODE.pack(*(name in settings.modes for name in MODES), b"")


def _decode_modes(value: bytes, pairs: int) -> dict[str, Any]:
    *modes, reserved = _MODE.unpack(value)
    _no_reserved(reserved)
    if max(modes) > 1:
        raise InvalidField(f"a mode is {max(modes)}")
    return {"modes": frozenset(name for name, on in zip(MODES, modes, strict=True) if on)}


def _encode_macs(settings: Settings) -> bytes:
    tables = settings.unicast, settings.multicast
    flags = sum(1 << bit for bit, table in enumerate(tables) if table.overflow)
    head = _MACS.pack(*(len(table.addresses) for table in tables), flags, b"")
    return head + b"".join(mac for table in tables for mac in sorted(table.addresses))


def _decode_macs(value: bytes, pairs: int) -> dict[str, Any]:
    if len(value) < _MACS.size:
        raise InvalidField(f"length {len(value)} is too short")
    *counts, flags, reserved = _MACS.unpack_from(value)
    _no_reserved(reserved)
    if flags > 3 or max(counts) > TABLE_MAX:
        raise InvalidField(f"flags {flags:#x}, {max(counts)} addresses; there is room for {TABLE_MAX}")
    if len(value) != _MACS.size + net.MAC_SIZE * sum(counts):
        raise InvalidField(f"{sum(counts)} addresses in {len(value)} bytes")
    macs = [value[at : at + net.MAC_SIZE] for at in range(_MACS.size, len(value), net.MAC_SIZE)]
    tables = []
    for bit, found in enumerate((macs[: counts[0]], macs[counts[0] :])):
        overflow = bool(flags >> bit & 1)
        if any(mac[0] & 1 != bit for mac in found):
            raise InvalidField("an address in the table of the other kind")
        if overflow and found:
            raise InvalidField("addresses in a table that overflowed")
        tables.append(MacTable(frozenset(found), overflow))
    return {"unicast": tables[0], "multicast": tables[1]}


def _encode_vlans(settings: Settings) -> bytes:
    return sum(1 << vlan for vlan in settings.vlans).to_bytes(net.VLANS // 8, "little")


def _decode_vlans(value: bytes, pairs: int) -> dict[str, Any]:
    if not any(value):
        return {"vlans": frozenset()}
    bits = np.unpackbits(np.frombuffer(value, np.uint8), bitorder="little")
    return {"vlans": frozenset(np.flatnonzero(bits).tolist())}


def _encode_pairs(settings: Settings) -> bytes:
    return _PAIRS.pack(settings.pairs, b"")


def _decode_pairs(value: bytes, pairs: int) -> dict[str, Any]:
    count, reserved = _PAIRS.unpack(value)
    _no_reserved(reserved)
    if not 1 <= count <= pairs:
        raise InvalidField(f"{count} queue pairs, here there are {pairs}")
    return {"pairs": count}


def _encode_hash(settings: Settings) -> bytes:
    return _HASH.pack(settings.hash_types, len(settings.hash_key), b"", settings.hash_key)


def _decode_hash(value: bytes, pairs: int) -> dict[str, Any]:
    types, length, reserved, key = _HASH.unpack(value)
    _no_reserved(reserved)
    if types & ~HASH_TYPES:
        raise InvalidField(f"hash types {types:#x}")
    if length > RSS_KEY_MAX or any(key[length:]):
        raise InvalidField(f"a key of {length} bytes")
    return {"hash_types": types, "hash_key": key[:length]}


def _encode_rss(settings: Settings) -> bytes:
    rss = settings.rss
    if rss is None:
        return _RSS.pack(0, 0, b"")
    return _RSS.pack(len(rss.table), rss.unclassified, b"") + struct.pack(f"<{len(rss.table)}H", *rss.table)


def _decode_rss(value: bytes, pairs: int) -> dict[str, Any]:
    if len(value) < _RSS.size:
        raise InvalidField(f"length {len(value)} is too short")
    count, unclassified, reserved = _RSS.unpack_from(value)
    _no_reserved(reserved)
    if count > RSS_TABLE_MAX or count & (count - 1) or len(value) != _RSS.size + 2 * count:
        raise InvalidField(f"a table of {count} entries in {len(value)} bytes")
    table = struct.unpack_from(f"<{count}H", value, _RSS.size)
    if max(unclassified, *table, 0) >= pairs or (unclassified and not count):
        raise InvalidField(f"queue pair {max(unclassified, *table, 0)}, here there are {pairs}")
    return {"rss": Rss(unclassified, table) if count else None}


def _encode_offloads(settings: Settings) -> bytes:
    return _OFFLOADS.pack(settings.offloads_off)


def _decode_offloads(value: bytes, pairs: int) -> dict[str, Any]:
    (off,) = _OFFLOADS.unpack(value)
    if off & ~GUEST_OFFLOADS:
        raise InvalidField(f"offloads {off:#x}")
    return {"offloads_off": off}


FIELDS: Final[dict[int, Field]] = {
    context.NET_RX_MODE: Field(context.NET_RX_MODE_VALUE.itemsize, _encode_modes, _decode_modes),
    context.NET_MAC_TABLE: Field(context.LENGTH_VARIES, _encode_macs, _decode_macs),
    context.NET_VLAN_TABLE: Field(context.NET_VLAN_TABLE_VALUE.itemsize, _encode_vlans, _decode_vlans),
    context.NET_QUEUE_PAIRS: Field(context.NET_QUEUE_PAIRS_VALUE.itemsize, _encode_pairs, _decode_pairs),
    context.NET_HASH: Field(context.NET_HASH_VALUE.itemsize, _encode_hash, _decode_hash),
    context.NET_RSS: Field(context.LENGTH_VARIES, _encode_rss, _decode_rss),
    context.NET_OFFLOADS: Field(context.NET_OFFLOADS_VALUE.itemsize, _encode_offloads, _decode_offloads),
}
