"""The first bytes of a frame of a driver, and whether its header is true.

A frame begins with "struct virtio_net_hdr" (virtio 1.4, "Device Operation" of the network device), as a
driver wrote it: nothing in it is trusted. A frame that contradicts itself is no frame, and dropped.
"""

from __future__ import annotations

from array import array
from typing import Final

from pymodel.devices.net import filter as net_filter
from pymodel.devices.net import header as net_header
from pymodel.memory import Bytes
from pymodel.spec import net

HEAD: Final = 512
"""Bytes of a frame in which all of its headers must be."""

TCP: Final = 6
UDP: Final = 17

SEGMENTS_MAX: Final = 1366
"""Segments of one frame: 64 KiB at the smallest segment that Linux sends, 48 bytes. More is an attack."""

OFFLOADS: Final = (
    net.F_GUEST_CSUM,
    net.F_GUEST_TSO4,
    net.F_GUEST_TSO6,
    net.F_GUEST_ECN,
    net.F_GUEST_USO4,
    net.F_GUEST_USO6,
)
"""Feature bits of a receiver that a frame may need."""

# Compiled code has numbers of its own for these.
_HEADER, _ETHERNET, _TAG = net_header.SIZE, net.ETHERNET_HEADER, net.VLAN_TAG
_HEAD, _SEGMENTS_MAX = HEAD, SEGMENTS_MAX
_TCP, _UDP, _HOP_BY_HOP, _DESTINATION = TCP, UDP, 0, 60
_IPV4, _IPV6, _VLAN, _SERVICE_VLAN = (
    net.ETHERTYPE_IPV4,
    net.ETHERTYPE_IPV6,
    net.ETHERTYPE_VLAN,
    net.ETHERTYPE_SERVICE_VLAN,
)
_NEEDS_CSUM, _GSO_NONE, _GSO_ECN = net.HDR_F_NEEDS_CSUM, net.GSO_NONE, net.GSO_ECN
_GSO_TCPV4, _GSO_TCPV6, _GSO_UDP_L4 = net.GSO_TCPV4, net.GSO_TCPV6, net.GSO_UDP_L4
_CSUM, _TSO4, _TSO6, _ECN, _USO4, _USO6 = (1 << bit for bit in OFFLOADS)
_OPTIONS_MAX = 8
_TCP_LEAST, _UDP_LEAST = 20, 8
_TCP_CHECKSUM, _UDP_CHECKSUM = 16, 6

# What is ahead of a frame here, so that its Ethernet header begins a word.
_PAD = 4
# What a filter looks at.
_LOOK = net_filter.HEAD


class FrameHead:
    """The head of one frame after the other: its first `HEAD` bytes, or all, are expected at `place` in the
    process's memory.

    `needed` are the feature bits that a receiver must have agreed to for the frame as it is, `first` and
    `second` the words that a `Filter` wants to see. For a frame to be cut, others have `protocol` 0: the
    `version` of IP; where the headers of IP and transport and the `payload` are, in bytes from the virtio
    header on; and `size`, how many bytes of payload a segment has.
    """

    def __init__(self) -> None:
        words = array("Q", bytes(_PAD + _HEAD + 4))
        self._words = words
        self._bytes = self._all = memoryview(words).cast("B")
        self.place = words.buffer_info()[0] + _PAD
        self.needed = 0
        self.first = 0
        self.second = 0
        self.protocol = 0
        self.version = 0
        self.network = 0
        self.transport = 0
        self.payload = 0
        self.size = 0

    def load(self, frame: Bytes) -> int:
        """`check` of a frame, for Python."""
        head = frame[:_HEAD]
        self._all[_PAD : _PAD + len(head)] = head.data
        return self.check(len(frame))

    @property
    def header(self) -> bytes:
        """The header as it is now."""
        return bytes(self._all[_PAD : _PAD + _HEADER])

    def check(self, length: int) -> int:
        """Check the head of a frame of `length` bytes, and put its header in order for a receiver. 0 for one
        to be dropped.

        `hdr_len` is only a hint, so it is replaced by the truth.
        """
        self.needed = 0
        self.protocol = 0
        if length < _HEADER + _ETHERNET:
            return 0
        number = length
        while number < _HEADER + _LOOK:
            self.put(number, 0)
            number += 1
        self.first = self._words[2]
        self.second = self._words[3]
        if self.byte(_HEADER + 6) & 1:
            # Sent by a group.
            return 0
        needs_csum = self.byte(0) & _NEEDS_CSUM
        gso = self.byte(1)
        size = self.byte(4) | self.byte(5) << 8
        start = self.byte(6) | self.byte(7) << 8
        offset = self.byte(8) | self.byte(9) << 8
        # What else may stand there is for frames to a driver.
        number = 0
        while number < _HEADER:
            self.put(number, 0)
            number += 1
        if not needs_csum:
            return gso == _GSO_NONE
        if start < _ETHERNET or _HEADER + start + offset + 2 > length:
            return 0
        self.needed = _CSUM
        if gso != _GSO_NONE:
            if not self.segmentable(length, gso, size) or self.transport != _HEADER + start:
                return 0
            if offset != (_TCP_CHECKSUM if self.protocol == _TCP else _UDP_CHECKSUM):
                return 0
            self.put(1, gso)
            self.put(2, (self.payload - _HEADER) & 0xFF)
            self.put(3, (self.payload - _HEADER) >> 8)
            self.put(4, size & 0xFF)
            self.put(5, size >> 8)
        self.put(0, _NEEDS_CSUM)
        self.put(6, start & 0xFF)
        self.put(7, start >> 8)
        self.put(8, offset & 0xFF)
        self.put(9, offset >> 8)
        return 1

    def segmentable(self, length: int, gso: int, size: int) -> int:
        """Find the headers of a frame that is to be cut. 0 where they do not fit it or each other."""
        within = min(length, _HEAD)
        kind = gso & ~_GSO_ECN
        self.size = size
        self.find_network(within)
        if kind == _GSO_TCPV4 and self.version == 4:
            self.needed |= _TSO4
        elif kind == _GSO_TCPV6 and self.version == 6:
            self.needed |= _TSO6
        elif kind == _GSO_UDP_L4 and self.version:
            self.needed |= _USO4 if self.version == 4 else _USO6
        else:
            return 0
        if not size:
            return 0
        if gso & _GSO_ECN:
            if kind == _GSO_UDP_L4:
                return 0
            self.needed |= _ECN
        protocol = _UDP if kind == _GSO_UDP_L4 else _TCP
        least = _UDP_LEAST if kind == _GSO_UDP_L4 else _TCP_LEAST
        if not self.find_transport(within, protocol) or self.transport + least > within:
            return 0
        self.payload = self.transport + least
        if protocol == _TCP:
            self.payload = self.transport + (self.byte(self.transport + 12) >> 4) * 4
        if self.payload < self.transport + least or self.payload > within:
            return 0
        self.protocol = protocol
        return length - self.payload <= size * _SEGMENTS_MAX

    def find_network(self, within: int) -> int:
        """Where the IP header is, and its version as the Ethernet header has it; 0 for another protocol."""
        at = _HEADER + _ETHERNET - 2
        tags = 0
        while tags < 2 and at + 6 <= within and self.word(at) in (_VLAN, _SERVICE_VLAN):
            at += _TAG
            tags += 1
        self.network = at + 2
        self.version = 0
        if at + 2 + 20 <= within and self.word(at) == _IPV4 and self.byte(at + 2) >> 4 == 4:
            self.version = 4
        elif at + 2 + 40 <= within and self.word(at) == _IPV6 and self.byte(at + 2) >> 4 == 6:
            self.version = 6
        return 0

    def find_transport(self, within: int, protocol: int) -> int:
        """Where the header of this protocol is. 0 where there is none."""
        if self.version == 4:
            at = self.network + (self.byte(self.network) & 15) * 4
            found = self.byte(self.network + 9)
            if at < self.network + 20 or self.word(self.network + 6) & 0x3FFF:
                # The latter is a fragment of a larger one.
                return 0
        else:
            at = self.network + 40
            found = self.byte(self.network + 6)
            count = 0
            while count < _OPTIONS_MAX and found in (_HOP_BY_HOP, _DESTINATION) and at + 8 <= within:
                found = self.byte(at)
                at += (self.byte(at + 1) + 1) * 8
                count += 1
        self.transport = at
        return found == protocol

    def byte(self, at: int) -> int:
        """One byte of the frame."""
        return self._bytes[_PAD + at]

    def word(self, at: int) -> int:
        """Two of them, in network order."""
        return self._bytes[_PAD + at] << 8 | self._bytes[_PAD + at + 1]

    def put(self, at: int, value: int) -> int:
        """Replace a byte of the frame."""
        self._bytes[_PAD + at] = value
        return 0
