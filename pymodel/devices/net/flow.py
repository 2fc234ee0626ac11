"""Flows: what of a frame says to which conversation it belongs, and the Toeplitz hash of it.

virtio 1.4, "Hash calculation for incoming packets". IPv6 extension headers are passed over; there are no hash
types for what stands in them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np

from pymodel.spec import net

HEAD: Final = 192
"""Bytes of a frame that are looked at."""

TCP: Final = 6
UDP: Final = 17
_OPTIONS: Final = frozenset({0, 43, 60})  # hop-by-hop, routing, destination
_FRAGMENT: Final = 44
_VLAN_TYPES: Final = (net.ETHERTYPE_VLAN, net.ETHERTYPE_SERVICE_VLAN)

# By version of IP and protocol: the hash types that apply, the first one that is enabled counts, and whether
# the ports belong to it.
_HASHES: Final = {
    (4, TCP): ((net.HASH_TYPE_TCPV4, True), (net.HASH_TYPE_IPV4, False)),
    (4, UDP): ((net.HASH_TYPE_UDPV4, True), (net.HASH_TYPE_IPV4, False)),
    (4, 0): ((net.HASH_TYPE_IPV4, False),),
    (6, TCP): ((net.HASH_TYPE_TCPV6, True), (net.HASH_TYPE_IPV6, False)),
    (6, UDP): ((net.HASH_TYPE_UDPV6, True), (net.HASH_TYPE_IPV6, False)),
    (6, 0): ((net.HASH_TYPE_IPV6, False),),
}


@dataclass(frozen=True, slots=True)
class Flow:
    """Addresses and ports as the frame has them. `protocol` is 0 where there are no ports."""

    version: int
    protocol: int
    source: bytes
    destination: bytes
    ports: bytes

    @property
    def key(self) -> bytes:
        """What tells flows apart."""
        return self.source + self.destination + self.ports

    @property
    def reverse_key(self) -> bytes:
        """The key of what comes back."""
        return self.destination + self.source + self.ports[2:] + self.ports[:2]


def flow_of(head: bytes) -> Flow | None:
    """The flow of a frame that begins with `head`; None for what is not IP, or cut short."""
    at = 12
    kind = int.from_bytes(head[at : at + 2])
    while kind in _VLAN_TYPES and at < 20:
        at += net.VLAN_TAG
        kind = int.from_bytes(head[at : at + 2])
    if kind == net.ETHERTYPE_IPV4:
        return _ipv4(head, at + 2)
    if kind == net.ETHERTYPE_IPV6:
        return _ipv6(head, at + 2)
    return None


def _ipv4(head: bytes, at: int) -> Flow | None:
    if len(head) < at + 20 or head[at] >> 4 != 4:
        return None
    # A fragment has no ports, or only the first one has.
    fragment = int.from_bytes(head[at + 6 : at + 8]) & 0x3FFF
    protocol = 0 if fragment else head[at + 9]
    payload = at + (head[at] & 0xF) * 4
    return _flow(4, protocol, head, payload, head[at + 12 : at + 16], head[at + 16 : at + 20])


def _ipv6(head: bytes, at: int) -> Flow | None:
    if len(head) < at + 40 or head[at] >> 4 != 6:
        return None
    protocol, payload = head[at + 6], at + 40
    while protocol in _OPTIONS and payload + 2 <= len(head):
        protocol, payload = head[payload], payload + 8 * (head[payload + 1] + 1)
    if protocol == _FRAGMENT:
        protocol = 0
    return _flow(6, protocol, head, payload, head[at + 8 : at + 24], head[at + 24 : at + 40])


def _flow(
    version: int, protocol: int, head: bytes, payload: int, source: bytes, destination: bytes
) -> Flow | None:
    if protocol not in (TCP, UDP) or len(head) < payload + 4:
        return Flow(version, 0, source, destination, b"")
    return Flow(version, protocol, source, destination, head[payload : payload + 4])


class Toeplitz:
    """The hash with one key and a set of enabled types. A key that is too short goes on with zeros."""

    # Flows whose hash is remembered.
    KNOWN_MAX = 1024
    # Two IPv6 addresses and two ports.
    INPUT_MAX = 36

    def __init__(self, key: bytes, types: int) -> None:
        self._types = types
        self._known: dict[tuple[int, bytes], int] = {}
        bits = np.unpackbits(np.frombuffer(key.ljust(self.INPUT_MAX + 4, b"\0"), np.uint8))
        windows = np.lib.stride_tricks.sliding_window_view(bits, 32)[: 8 * self.INPUT_MAX]
        # For each bit of the input the 32 bits of the key that begin there.
        words = windows.astype(np.uint64) @ (1 << np.arange(31, -1, -1, dtype=np.uint64))
        # For each byte of the input what each of its values adds.
        values = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).astype(np.uint64)
        self._tables: list[list[int]] = [
            np.bitwise_xor.reduce(values * words[8 * place : 8 * place + 8], axis=1).tolist()
            for place in range(self.INPUT_MAX)
        ]

    def of(self, flow: Flow | None) -> tuple[int, int]:
        """(hash value, hash report) of a flow; (0, HASH_REPORT_NONE) where no enabled type applies."""
        if flow is None:
            return 0, net.HASH_REPORT_NONE
        for kind, with_ports in _HASHES[flow.version, flow.protocol]:
            if self._types & kind:
                data = flow.source + flow.destination + (flow.ports if with_ports else b"")
                # "HASH_TYPE_XXX = 1 << (HASH_REPORT_XXX - 1)"
                return self._hash(kind, data), kind.bit_length()
        return 0, net.HASH_REPORT_NONE

    def _hash(self, kind: int, data: bytes) -> int:
        value = self._known.get((kind, data))
        if value is None:
            value = 0
            for table, byte in zip(self._tables, data, strict=False):
                value ^= table[byte]
            if len(self._known) >= self.KNOWN_MAX:
                self._known.clear()
            self._known[kind, data] = value
        return value
