"""Which frames a network function wants. virtio 1.4, "Packet Receive Filtering" and what follows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pymodel.devices.net.settings import Settings
from pymodel.memory import Bytes
from pymodel.spec import net

BROADCAST: Final = b"\xff" * net.MAC_SIZE
_VLAN_TYPES: Final = (net.ETHERTYPE_VLAN, net.ETHERTYPE_SERVICE_VLAN)
_HEAD: Final = net.ETHERNET_HEADER + net.VLAN_TAG


@dataclass(frozen=True, slots=True)
class ReceiveFilter:
    """Settings as a `Filter`. Tags are only looked at `by_vlan`, where the driver took CTRL_VLAN.

    Promiscuous means all frames, whatever else is set. VLAN 0 is no VLAN: such a tag carries a priority.
    """

    settings: Settings
    by_vlan: bool

    @property
    def addresses(self) -> frozenset[bytes]:
        """The function's own address, and those that it asked for."""
        return self.settings.unicast.addresses | {self.settings.mac}

    def accepts(self, frame: Bytes) -> bool:
        """Whether the function wants an Ethernet frame; none that is shorter than its header."""
        settings, modes = self.settings, self.settings.modes
        head = frame[:_HEAD].tobytes()
        if len(head) < net.ETHERNET_HEADER:
            return False
        if "promisc" in modes:
            return True
        if self.by_vlan and int.from_bytes(head[12:14]) in _VLAN_TYPES:
            vlan = int.from_bytes(head[14:16]) % net.VLANS
            if vlan and vlan not in settings.vlans:
                return False
        to = head[: net.MAC_SIZE]
        if to[0] & 1:
            if to == BROADCAST:
                return "nobcast" not in modes
            if "nomulti" in modes:
                return False
            table = settings.multicast
            return "allmulti" in modes or table.overflow or to in table.addresses
        if "nouni" in modes:
            return False
        table = settings.unicast
        return to == settings.mac or "alluni" in modes or table.overflow or to in table.addresses
