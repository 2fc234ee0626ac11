"""What a driver can set at a network device, as one value: a command makes a new one, or changes nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

from pymodel.spec import net

TABLE_MAX: Final = 64
"""MAC addresses of each kind that are told apart; with more than that all of the kind are received."""

RSS_TABLE_MAX: Final = net.RSS_TABLE_MIN
"""As QEMU's. Linux up to 6.11 has room for no more and doesn't look: a longer one overwrites its memory."""

RSS_KEY_MAX: Final = net.RSS_KEY_MIN
HASH_TYPES: Final = (
    net.HASH_TYPE_IPV4
    | net.HASH_TYPE_TCPV4
    | net.HASH_TYPE_UDPV4
    | net.HASH_TYPE_IPV6
    | net.HASH_TYPE_TCPV6
    | net.HASH_TYPE_UDPV6
)

MODES: Final = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast")
"""The receive modes, in the order of the commands that switch them."""


@dataclass(frozen=True, slots=True)
class MacTable:
    """The addresses of one kind, unicast or multicast. `overflow`: there were more than can be told apart."""

    addresses: frozenset[bytes] = frozenset()
    overflow: bool = False


@dataclass(frozen=True, slots=True)
class Rss:
    """Receive-side scaling: queue pairs, counted from 0. The table's length is a power of two."""

    unclassified: int
    table: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Settings:
    """The state that control commands change. The defaults are those after a reset.

    A device starts promiscuous, as QEMU's does: a driver that knows no CTRL_RX has no other way to get
    multicast, and Linux does not repeat its receive mode when it resumes.
    """

    mac: bytes
    modes: frozenset[str] = frozenset({"promisc"})
    """Those of `MODES` that are on."""
    unicast: MacTable = MacTable()
    multicast: MacTable = MacTable()
    vlans: frozenset[int] = frozenset()
    pairs: int = 1
    """Queue pairs in use."""
    hash_types: int = 0
    hash_key: bytes = b""
    rss: Rss | None = None
    """None: automatic receive steering."""
    offloads_off: int = 0
    """Offloads of the guest that it switched off, as feature bits."""


def default_mac(name: str) -> bytes:
    """A locally administered address: each function's own, the same wherever a function of that name runs."""
    return b"\x02" + hashlib.sha256(b"pymodel " + name.encode()).digest()[:5]


def is_unicast(mac: bytes) -> bool:
    """Whether a function can have this address: neither a group's, nor none."""
    return len(mac) == net.MAC_SIZE and not mac[0] & 1 and any(mac)
