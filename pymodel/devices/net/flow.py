"""Flows: what of a frame says to which conversation it belongs, and the Toeplitz hash of it.

virtio 1.4, "Hash calculation for incoming packets". IPv6 extension headers are passed over; there are no hash
types for what stands in them.
"""

from __future__ import annotations

from array import array
from typing import Final

import numpy as np

from pymodel.spec import net

HEAD: Final = 192
"""Bytes of a frame that are looked at."""

TCP: Final = 6
UDP: Final = 17

# Compiled code has numbers of its own for these.
_HEAD = HEAD
_TCP, _UDP = TCP, UDP
_HOP_BY_HOP, _ROUTING, _DESTINATION, _FRAGMENT = 0, 43, 60, 44
_VLAN, _SERVICE_VLAN, _TAG = net.ETHERTYPE_VLAN, net.ETHERTYPE_SERVICE_VLAN, net.VLAN_TAG
_IPV4, _IPV6 = net.ETHERTYPE_IPV4, net.ETHERTYPE_IPV6
_NONE = net.HASH_REPORT_NONE
_TYPE_AT = 2 * net.MAC_SIZE
# Two IPv6 addresses and two ports.
_INPUT = 36


class Flow:
    """The flow of one frame after the other. `data` has source and destination, `size` bytes in all, and the
    ports, as the frame has them.

    `version` is that of IP, 0 where there is no flow: not IP, or cut short. `protocol` is 0 where there are
    no ports. The first bytes of a frame are expected in `head`, at `head_at` in the process's memory.
    """

    def __init__(self) -> None:
        head = array("B", bytes(_HEAD))
        self.head = head
        self.head_at = head.buffer_info()[0]
        self._bytes = memoryview(head)
        self.data = array("B", bytes(_INPUT))
        self.version = 0
        self.protocol = 0
        self.size = 0

    def load(self, head: bytes) -> Flow:
        """Read the flow of a frame that begins with `head`."""
        head = head[:_HEAD]
        self._bytes[: len(head)] = head
        self.read(len(head))
        return self

    @property
    def key(self) -> bytes:
        """What tells flows apart."""
        return bytes(self.data[: self.size + 4 * bool(self.protocol)])

    @property
    def reverse_key(self) -> bytes:
        """The key of what comes back."""
        half = self.size // 2
        ports = self.key[self.size :]
        return bytes(self.data[half : self.size]) + bytes(self.data[:half]) + ports[2:] + ports[:2]

    def read(self, length: int) -> int:
        """Find the flow in the first `length` bytes of `head`. Whether there is one."""
        self.version = self.protocol = self.size = 0
        at = _TYPE_AT
        kind = self.word(at, length)
        while kind in (_VLAN, _SERVICE_VLAN) and at < _TYPE_AT + 2 * _TAG:
            at += _TAG
            kind = self.word(at, length)
        at += 2
        if kind == _IPV4:
            return self.ipv4(at, length)
        return self.ipv6(at, length) if kind == _IPV6 else 0

    def word(self, at: int, length: int) -> int:
        """A number of 16 bits in network order; 0 behind the end."""
        return self.head[at] << 8 | self.head[at + 1] if at + 2 <= length else 0

    def ipv4(self, at: int, length: int) -> int:
        """See `read`, of an IPv4 header."""
        if length < at + 20 or self.head[at] >> 4 != 4:
            return 0
        # A fragment has no ports, or only the first one has.
        protocol = 0 if self.word(at + 6, length) & 0x3FFF else self.head[at + 9]
        return self.found(4, protocol, at + 12, 8, at + (self.head[at] & 0xF) * 4, length)

    def ipv6(self, at: int, length: int) -> int:
        """See `read`, of an IPv6 header."""
        if length < at + 40 or self.head[at] >> 4 != 6:
            return 0
        protocol = self.head[at + 6]
        payload = at + 40
        while protocol in (_HOP_BY_HOP, _ROUTING, _DESTINATION) and payload + 2 <= length:
            protocol = self.head[payload]
            payload += 8 * (self.head[payload + 1] + 1)
        return self.found(6, 0 if protocol == _FRAGMENT else protocol, at + 8, 32, payload, length)

    def found(self, version: int, protocol: int, addresses: int, size: int, payload: int, length: int) -> int:
        """Note the flow."""
        self.version = version
        self.size = size
        number = 0
        while number < size:
            self.data[number] = self.head[addresses + number]
            number += 1
        if protocol in (_TCP, _UDP) and payload + 4 <= length:
            self.protocol = protocol
            while number < size + 4:
                self.data[number] = self.head[payload + number - size]
                number += 1
        return 1


class Toeplitz:
    """The hash with one key and a set of enabled types. A key that is too short goes on with zeros.

    `value` and `report` are what `of` found: the hash value, and which type it is of.
    """

    def __init__(self, key: bytes, types: int) -> None:
        self._types = types
        self.value = 0
        self.report = net.HASH_REPORT_NONE
        bits = np.unpackbits(np.frombuffer(key.ljust(_INPUT + 4, b"\0"), np.uint8))
        windows = np.lib.stride_tricks.sliding_window_view(bits, 32)[: 8 * _INPUT]
        # For each bit of the input the 32 bits of the key that begin there.
        words = windows.astype(np.uint64) @ (1 << np.arange(31, -1, -1, dtype=np.uint64))
        # For each byte of the input what each of its values adds.
        values = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.uint64)
        self._tables = np.concatenate(
            [
                np.bitwise_xor.reduce(values * words[8 * place : 8 * place + 8], axis=1)
                for place in range(_INPUT)
            ]
        ).astype(np.uint32)

    def of(self, flow: Flow) -> int:
        """Hash a flow by the first enabled type, its protocol's or its addresses'. Whether there is one."""
        self.value = 0
        self.report = _NONE
        # "HASH_TYPE_XXX = 1 << (HASH_REPORT_XXX - 1)", in the order IPv4, TCPv4, UDPv4, IPv6, TCPv6, UDPv6.
        plain = 0 if flow.version == 4 else 3
        if flow.protocol and self._types >> (plain + 1 + (flow.protocol == _UDP)) & 1:
            self.report = plain + 2 + (flow.protocol == _UDP)
            self.value = self.hash(flow, flow.size + 4)
        elif flow.version and self._types >> plain & 1:
            self.report = plain + 1
            self.value = self.hash(flow, flow.size)
        return self.report != _NONE

    def hash(self, flow: Flow, length: int) -> int:
        """The hash of the first bytes of a flow's data."""
        value = 0
        number = 0
        while number < length:
            value ^= self._tables[number << 8 | flow.data[number]]
            number += 1
        return value
