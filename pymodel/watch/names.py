"""Numbers of the standard by name, for people."""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType
from typing import Final

from pymodel.spec import block, net, virtio


def _names(module: ModuleType, prefix: str) -> dict[int, str]:
    """The constants of a module that begin with `prefix`, by value and without it."""
    return {
        value: name.removeprefix(prefix) for name, value in vars(module).items() if name.startswith(prefix)
    }


FEATURES: Final[Mapping[int, Mapping[int, str]]] = {
    virtio.ID_BLOCK: _names(block, "F_") | _names(virtio, "F_"),
    virtio.ID_NET: _names(net, "F_") | _names(virtio, "F_"),
}
"""Features by device type and bit."""

BLOCK_REQUESTS: Final[Mapping[int, str]] = _names(block, "T_")
BLOCK_STATUSES: Final[Mapping[int, str]] = _names(block, "S_")
NET_ANSWERS: Final[Mapping[int, str]] = {net.OK: "OK", net.ERR: "ERR"}

NET_COMMANDS: Final[Mapping[tuple[int, int], str]] = {
    (net.CTRL_RX, net.CTRL_RX_PROMISC): "RX_PROMISC",
    (net.CTRL_RX, net.CTRL_RX_ALLMULTI): "RX_ALLMULTI",
    (net.CTRL_RX, net.CTRL_RX_ALLUNI): "RX_ALLUNI",
    (net.CTRL_RX, net.CTRL_RX_NOMULTI): "RX_NOMULTI",
    (net.CTRL_RX, net.CTRL_RX_NOUNI): "RX_NOUNI",
    (net.CTRL_RX, net.CTRL_RX_NOBCAST): "RX_NOBCAST",
    (net.CTRL_MAC, net.CTRL_MAC_TABLE_SET): "MAC_TABLE_SET",
    (net.CTRL_MAC, net.CTRL_MAC_ADDR_SET): "MAC_ADDR_SET",
    (net.CTRL_VLAN, net.CTRL_VLAN_ADD): "VLAN_ADD",
    (net.CTRL_VLAN, net.CTRL_VLAN_DEL): "VLAN_DEL",
    (net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK): "ANNOUNCE_ACK",
    (net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET): "MQ_VQ_PAIRS_SET",
    (net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG): "MQ_RSS_CONFIG",
    (net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG): "MQ_HASH_CONFIG",
    (net.CTRL_GUEST_OFFLOADS, net.CTRL_GUEST_OFFLOADS_SET): "GUEST_OFFLOADS_SET",
}
"""Commands of a network device's control queue, by class and command."""


def features(device_type: int, bits: int) -> list[str]:
    """Features by name, or as bitN where there is none."""
    names = FEATURES.get(device_type, {})
    return [names.get(bit, f"bit{bit}") for bit in range(bits.bit_length()) if bits >> bit & 1]


def command(kind: tuple[int, int]) -> str:
    """A control command, by class and command."""
    return NET_COMMANDS.get(kind, f"class {kind[0]}, command {kind[1]}")
