"""What a network device offers: its features, what they need of each other, and its configuration."""

from __future__ import annotations

from typing import Final

import numpy as np

from pymodel.devices.net.control import GUEST_OFFLOADS
from pymodel.devices.net.port import NetBackend
from pymodel.devices.net.settings import HASH_TYPES, RSS_KEY_MAX, RSS_TABLE_MAX, is_unicast
from pymodel.errors import InvalidField
from pymodel.spec import net

SPEED: Final = 10_000
"""Mbit/s that the configuration claims. Nothing holds the device to it."""

_OFFLOADS: Final = (
    GUEST_OFFLOADS
    | 1 << net.F_CSUM
    | 1 << net.F_HOST_TSO4
    | 1 << net.F_HOST_TSO6
    | 1 << net.F_HOST_ECN
    | 1 << net.F_HOST_UFO
    | 1 << net.F_HOST_USO
)
_ALWAYS: Final = (
    net.F_MAC,
    net.F_STATUS,
    net.F_MRG_RXBUF,
    net.F_CTRL_VQ,
    net.F_CTRL_RX,
    net.F_CTRL_RX_EXTRA,
    net.F_CTRL_VLAN,
    net.F_CTRL_MAC_ADDR,
    net.F_GUEST_ANNOUNCE,
    net.F_HASH_REPORT,
    net.F_SPEED_DUPLEX,
)


def features(backend: NetBackend, pairs: int) -> int:
    """The features of a device on `backend`. Raises ValueError for what no device can have."""
    if backend.mac is not None and not is_unicast(backend.mac):
        raise ValueError(f"{backend.mac.hex(':')} is no address that a function can have")
    if backend.mtu is not None and not net.MTU_MIN <= backend.mtu <= net.MTU_MAX:
        raise ValueError(f"an MTU of {backend.mtu}: it must be from {net.MTU_MIN} to {net.MTU_MAX}")
    offloads = backend.port.offloads & _OFFLOADS
    bits = list(_ALWAYS)
    if backend.mtu is not None:
        bits.append(net.F_MTU)
    if pairs > 1:
        bits += [net.F_MQ, net.F_RSS]
    if offloads & GUEST_OFFLOADS:
        bits.append(net.F_CTRL_GUEST_OFFLOADS)
    return sum(1 << bit for bit in bits) | offloads


def missing(taken: int) -> str | None:
    """What a driver's features lack ("Feature bit requirements"); None if nothing."""
    for feature, needed in net.REQUIRES:
        if taken >> feature & 1 and not any(taken >> bit & 1 for bit in needed):
            return f"bit {feature} needs bit {' or '.join(map(str, needed))}"
    return None


def configuration(mac: bytes, status: int, pairs: int, mtu: int | None) -> bytes:
    """The configuration structure."""
    config = np.zeros((), net.CONFIG)
    config["mac"] = list(mac)
    config["status"] = status
    config["max_virtqueue_pairs"] = pairs
    config["mtu"] = mtu or 0
    config["speed"] = SPEED
    config["duplex"] = net.DUPLEX_FULL
    config["rss_max_key_size"] = RSS_KEY_MAX
    # The field "only exists if VIRTIO_NET_F_RSS is set". Linux up to 6.8 goes by it with HASH_REPORT alone,
    # and then sends its key where no device looks for it.
    config["rss_max_indirection_table_length"] = RSS_TABLE_MAX if pairs > 1 else 0
    config["supported_hash_types"] = HASH_TYPES
    return config.tobytes()


def variable(config: bytes) -> tuple[bytes, int]:
    """What of a configuration may change: address and status."""
    taken = np.frombuffer(config, net.CONFIG)[0]
    return taken["mac"].tobytes(), int(taken["status"])


def check_configuration(config: bytes, here: bytes) -> None:
    """Raise `InvalidField` where the device that is `here` cannot have this configuration."""
    taken, present = (np.frombuffer(raw, net.CONFIG)[0] for raw in (config, here))
    for name in net.CONFIG.names or ():
        if name not in {"mac", "status"} and taken[name] != present[name]:
            raise InvalidField(f"{name} {taken[name]}, here it is {present[name]}")
    mac, status = variable(config)
    if not is_unicast(mac):
        raise InvalidField(f"{mac.hex(':')} is no address that a function can have")
    if status & ~(net.S_LINK_UP | net.S_ANNOUNCE):
        raise InvalidField(f"status {status:#x}")
