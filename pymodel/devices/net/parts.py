"""The network device's device parts: its settings as the control commands that make them, and back.

virtio 1.4, "Network Device", "Device Parts". The value of a part is the data of a command of the control
queue, but for the VLANs, which are told all at once.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pymodel.devices.net import context as net_context
from pymodel.devices.net.control import COMMANDS, Command, Refused, carry_out
from pymodel.devices.net.settings import Settings
from pymodel.errors import InvalidField
from pymodel.migration.parts import Part
from pymodel.migration.state import FunctionState
from pymodel.spec import net, parts

Kind = tuple[int, int]

_SELECTOR: Final = struct.Struct("<BB6x")
_COUNT: Final = struct.Struct("<I")
_MAC: Final = slice(0, net.MAC_SIZE)
"""Where the address is in the device configuration."""


def _mode(name: str) -> Callable[[Settings], bytes]:
    return lambda settings: bytes((name in settings.modes,))


def _mac_table(settings: Settings) -> bytes | None:
    """None where there were more addresses than a command could tell."""
    tables = settings.unicast, settings.multicast
    if any(table.overflow for table in tables):
        return None
    return b"".join(_COUNT.pack(len(table.addresses)) + b"".join(sorted(table.addresses)) for table in tables)


def _vlans(settings: Settings) -> bytes:
    return struct.pack(f"<{len(settings.vlans)}H", *sorted(settings.vlans))


def _rss(settings: Settings) -> bytes | None:
    rss = settings.rss
    if rss is None:
        return None
    head = struct.pack("<IHH", settings.hash_types, len(rss.table) - 1, rss.unclassified)
    table = struct.pack(f"<{len(rss.table)}H", *rss.table)
    return head + table + struct.pack("<HB", settings.pairs, len(settings.hash_key)) + settings.hash_key


def _hash(settings: Settings) -> bytes:
    return struct.pack("<I8xB", settings.hash_types, len(settings.hash_key)) + settings.hash_key


# By class and command of the control queue, in the standard's order; None: there is nothing to tell.
_ENCODERS: Final[dict[Kind, Callable[[Settings], bytes | None]]] = {
    (net.CTRL_RX, net.CTRL_RX_PROMISC): _mode("promisc"),
    (net.CTRL_RX, net.CTRL_RX_ALLMULTI): _mode("allmulti"),
    (net.CTRL_RX, net.CTRL_RX_ALLUNI): _mode("alluni"),
    (net.CTRL_RX, net.CTRL_RX_NOMULTI): _mode("nomulti"),
    (net.CTRL_RX, net.CTRL_RX_NOUNI): _mode("nouni"),
    (net.CTRL_RX, net.CTRL_RX_NOBCAST): _mode("nobcast"),
    (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): _mac_table,
    (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): lambda settings: settings.mac,
    (net.CTRL_VLAN, net.CTRL_VLAN_ADD): _vlans,
    # Whether a driver has yet to announce itself is in the configuration, and a command cannot say it.
    (net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK): lambda _: None,
    (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): lambda settings: (
        settings.pairs.to_bytes(2, "little") if settings.rss is None else None
    ),
    (net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG): _rss,
    (net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG): lambda settings: (
        _hash(settings) if settings.rss is None else None
    ),
}

# By selector, where in that order a part stands.
_RANK: Final = {_SELECTOR.pack(*kind): rank for rank, kind in enumerate(_ENCODERS)}


def encode(state: FunctionState, pairs: int) -> list[Part]:
    """The parts of a device of `pairs` queue pairs, for the commands that its driver could give."""
    settings = _settings(state, pairs)
    found = []
    for kind, encoder in _ENCODERS.items():
        value = encoder(settings) if state.driver_features >> COMMANDS[kind][0] & 1 else None
        if value is not None:
            found.append(Part(parts.NET_CVQ_CFG, _SELECTOR.pack(*kind), value))
    return found


def decode(found: list[Part], state: FunctionState, pairs: int) -> None:
    """Change `state` to what it is when the parts were carried out as commands, in the standard's order
    whatever theirs is: some undo what others did.

    Raises `InvalidField`, nothing changed.
    """
    if not found:
        return
    settings = _settings(state, pairs)
    for part in sorted(found, key=lambda part: _RANK.get(part.selector, len(_RANK))):
        kind: Kind = _SELECTOR.unpack(part.selector)
        if kind not in _ENCODERS or part.selector != _SELECTOR.pack(*kind):
            if part.optional:
                continue
            raise InvalidField(f"part {part.type:#06x}: no such command, {part.selector.hex()}")
        try:
            settings = _carry_out(kind, part.value, settings, state.driver_features, pairs)
        except Refused as refused:
            raise InvalidField(f"part {part.type:#06x}, command {kind[0]}/{kind[1]}: {refused}") from None
    state.device = net_context.encode(settings)
    state.device_config = settings.mac + state.device_config[_MAC.stop :]


def _carry_out(kind: Kind, data: bytes, settings: Settings, features: int, pairs: int) -> Settings:
    if kind != (net.CTRL_VLAN, net.CTRL_VLAN_ADD):
        return carry_out(kind, Command(data, settings, features, pairs))
    if len(data) % 2:
        raise Refused(f"VLANs in {len(data)} bytes")
    vlans = frozenset(struct.unpack(f"<{len(data) // 2}H", data))
    if vlans:
        # One command tells whether all would be carried out; each of them copies the table.
        carry_out(kind, Command(max(vlans).to_bytes(2, "little"), settings, features, pairs))
    return replace(settings, vlans=vlans)


def _settings(state: FunctionState, pairs: int) -> Settings:
    return net_context.decode(state.device, Settings(mac=state.device_config[_MAC]), pairs)
