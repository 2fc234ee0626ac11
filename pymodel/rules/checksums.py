"""Rules about checksums in frames that drivers send. virtio 1.4, "Network Device"."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

import numpy as np

from pymodel.devices.net.device import NetDevice
from pymodel.devices.net.frame_head import TCP, UDP
from pymodel.devices.net.segmentation import CHECKSUM_AT
from pymodel.memory import Buffer
from pymodel.rules.rule import MUST, SHOULD, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import net

_TRANSMISSION: Final = "Network Device / Device Operation / Packet Transmission"

_NAMES: Final[Mapping[int, str]] = {TCP: "TCP", UDP: "UDP"}

_FRAGMENT: Final = 0x3FFF
_FLAGS_AT, _CWR = 13, 0x80
_LEAST: Final = 20
"""Bytes of an IPv4 or TCP header without options; of UDP's less."""


class Checksums(Topic):
    """Holds TCP and UDP in whole IPv4 and IPv6 packets without extension headers against the rules."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "NET-31": Rule(
            SHOULD,
            _TRANSMISSION,
            "send frames with their checksum without CSUM",
            "TCP or UDP with a wrong checksum",
            "sends it all the same",
        ),
        "NET-32": Rule(
            MUST,
            _TRANSMISSION,
            "have all checksums in front of that which NEEDS_CSUM asks for right",
            "a wrong checksum of an IPv4 header",
            "sends it all the same",
        ),
        "NET-33": Rule(
            MUST,
            _TRANSMISSION,
            "put the checksum of the pseudo header into the frame with NEEDS_CSUM",
            "another number in the place of TCP's or UDP's checksum",
            "computes a checksum that is wrong, or leaves that to the receiver",
        ),
        "NET-34": Rule(
            MUST,
            _TRANSMISSION,
            "set the ECN bit of gso_type with HOST_ECN, for TCP with CWR",
            "such a frame to be segmented without the bit",
            "repeats CWR in each segment",
        ),
    }

    def taken(self, buffer: Buffer) -> None:
        """A frame to be sent."""
        transport = self.transport
        device = transport.device
        if not isinstance(device, NetDevice) or transport.legacy:
            return
        if not buffer.queue & 1 or buffer.queue >= device.frame_queues:
            return
        whole = bytes(buffer.readable.read(0, buffer.readable.length))
        packet = _packet(whole[device.header_size :])
        if packet is None:
            return
        flags, gso, _, _, start, offset = struct.unpack_from("<BBHHHH", whole)
        name, at = _NAMES[packet.protocol], CHECKSUM_AT[packet.protocol]
        if not flags & net.HDR_F_NEEDS_CSUM:
            if not transport.negotiated(net.F_CSUM) and not packet.right:
                self.tell_of("NET-31", buffer, f"a checksum of {name} of {packet.checksum:#06x}")
            return
        if not packet.header_right:
            self.tell_of("NET-32", buffer, "a wrong checksum of the IPv4 header")
        if (start, offset) == (packet.transport, at) and packet.checksum % 0xFFFF != packet.pseudo:
            seen = f"{packet.checksum:#06x} as checksum of {name}"
            self.tell_of("NET-33", buffer, seen, expected=f"{packet.pseudo:#06x}")
        segments = gso & ~net.GSO_ECN in {net.GSO_TCPV4, net.GSO_TCPV6}
        if segments and packet.cwr and not gso & net.GSO_ECN and transport.negotiated(net.F_HOST_ECN):
            self.tell_of(
                "NET-34", buffer, f"gso_type {gso:#x}, and TCP with CWR", expected=f"{gso | 0x80:#x}"
            )


@dataclass(frozen=True, slots=True)
class _Packet:
    """What is known of TCP or UDP in a frame; `transport` is where its header begins."""

    protocol: int
    transport: int
    checksum: int
    pseudo: int
    right: bool
    header_right: bool
    cwr: bool


def _packet(frame: bytes) -> _Packet | None:
    """The packet of a frame; None where it is another one, a fragment, or not whole."""
    at = net.ETHERNET_HEADER
    while frame[at - 2 : at] in {b"\x81\x00", b"\x88\xa8"}:
        at += net.VLAN_TAG
    ethertype = int.from_bytes(frame[at - 2 : at])
    header_right = True
    if ethertype == net.ETHERTYPE_IPV4 and len(frame) >= at + _LEAST:
        header = (frame[at] & 0xF) * 4
        fragment, protocol = int.from_bytes(frame[at + 6 : at + 8]) & _FRAGMENT, frame[at + 9]
        length = int.from_bytes(frame[at + 2 : at + 4]) - header
        if frame[at] >> 4 != 4 or header < _LEAST or fragment:
            return None
        addresses = frame[at + 12 : at + 20]
        header_right = _sum(frame[at : at + header]) == 0
    elif ethertype == net.ETHERTYPE_IPV6 and len(frame) >= at + 40:
        header, protocol = 40, frame[at + 6]
        length = int.from_bytes(frame[at + 4 : at + 6])
        addresses = frame[at + 8 : at + 40]
    else:
        return None
    data = frame[at + header :][: max(length, 0)]
    least = {TCP: _LEAST, UDP: 8}.get(protocol)
    if least is None or length < least or len(data) < length:
        return None
    where = CHECKSUM_AT[protocol]
    checksum = int.from_bytes(data[where : where + 2])
    pseudo = (_sum(addresses) + protocol + length) % 0xFFFF
    none = protocol == UDP and ethertype == net.ETHERTYPE_IPV4 and not checksum
    right = none or (pseudo + _sum(data)) % 0xFFFF == 0
    cwr = protocol == TCP and bool(data[_FLAGS_AT] & _CWR)
    return _Packet(protocol, at + header, checksum, pseudo, right, header_right, cwr)


def _sum(data: bytes) -> int:
    """The sum of RFC 1071 of all words, before it is inverted; 0 stands for 0xffff too."""
    return int(np.frombuffer(data + bytes(len(data) % 2), ">u2").sum(dtype=np.uint64)) % 0xFFFF
