"""Checksums and segmentation in software, for receivers that did not agree to do either themselves.

A frame begins with "struct virtio_net_hdr" (virtio 1.4, "Device Operation" of the network device), as a
driver wrote it: nothing in it is trusted. A frame that contradicts itself is no frame, and dropped.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pymodel.memory import Bytes
from pymodel.spec import net

HEADER: Final = net.HEADER.itemsize

SEGMENTS_MAX: Final = 1366
"""Segments of one frame: 64 KiB at the smallest segment that Linux sends, 48 bytes. More is an attack."""

_VLAN_TYPES: Final = frozenset((net.ETHERTYPE_VLAN, net.ETHERTYPE_SERVICE_VLAN))
_TCP: Final = 6
_UDP: Final = 17
_IPV6_OPTIONS: Final = frozenset((0, 60))  # hop-by-hop and destination: headers of 8 bytes and more
_IPV6_OPTIONS_MAX: Final = 8

_HEAD: Final = 512
"""Bytes of a frame in which all of its headers must be."""

_FIN_PSH: Final = 0x09
_CWR: Final = 0x80

# By type of segmentation and version of IP: the protocol, and the feature of receivers of such frames.
_KINDS: Final = {
    (net.GSO_TCPV4, 4): (_TCP, net.F_GUEST_TSO4),
    (net.GSO_TCPV6, 6): (_TCP, net.F_GUEST_TSO6),
    (net.GSO_UDP_L4, 4): (_UDP, net.F_GUEST_USO4),
    (net.GSO_UDP_L4, 6): (_UDP, net.F_GUEST_USO6),
}
# Of each protocol: where its checksum is.
_CHECKSUM_AT: Final = {_TCP: 16, _UDP: 6}

_HEADER: Final = struct.Struct("<BBHHHHH")
_EMPTY: Final = bytes(HEADER)


@dataclass(frozen=True, slots=True)
class _Segmentable:
    """A frame to be cut. Offsets count from the virtio header's first byte."""

    protocol: int
    version: int
    network: int
    transport: int
    payload: int
    size: int  # of a segment's payload
    needed: int  # feature bits of a receiver that takes it whole


@dataclass(slots=True)
class Checked:
    """A frame whose header is true: `needed` are the feature bits that a receiver must have agreed to."""

    frame: Bytes
    needed: int
    _cut: _Segmentable | None
    _done: list[Bytes] | None = None

    def carried(self, features: int) -> list[Bytes]:
        """The frame as a receiver with `features` takes it: as it is, with a checksum, or in segments.

        The work is done once for all receivers, who share its result.
        """
        if not self.needed & ~features:
            return [self.frame]
        if self._done is None:
            cut = self._cut
            self._done = [_with_checksum(self.frame)] if cut is None else _segments(self.frame, cut)
            for part in self._done:
                part.flags.writeable = False
        return self._done


def check(frame: Bytes) -> Checked | None:
    """Check a frame of a driver, and put its header in order for a receiver; None for one to be dropped.

    `frame` is writable and nobody else's. Its `hdr_len` is only a hint, so it is replaced by the truth.
    """
    if len(frame) < HEADER + net.ETHERNET_HEADER:
        return None
    if frame[:HEADER].tobytes() == _EMPTY:
        return Checked(frame, 0, None)
    flags, gso, _, size, start, offset, _ = _HEADER.unpack_from(frame.data)
    if not flags & net.HDR_F_NEEDS_CSUM:
        if gso != net.GSO_NONE:
            return None
        # What else may stand there is for frames to a driver.
        _HEADER.pack_into(frame.data, 0, 0, 0, 0, 0, 0, 0, 0)
        return Checked(frame, 0, None)
    if start < net.ETHERNET_HEADER or HEADER + start + offset + 2 > len(frame):
        return None
    needed = 1 << net.F_GUEST_CSUM
    if gso == net.GSO_NONE:
        _HEADER.pack_into(frame.data, 0, net.HDR_F_NEEDS_CSUM, 0, 0, 0, start, offset, 0)
        return Checked(frame, needed, None)
    cut = _segmentable(frame[:_HEAD].tobytes(), len(frame), gso, size)
    if cut is None or cut.transport != HEADER + start or offset != _CHECKSUM_AT[cut.protocol]:
        return None
    _HEADER.pack_into(frame.data, 0, net.HDR_F_NEEDS_CSUM, gso, cut.payload - HEADER, size, start, offset, 0)
    return Checked(frame, cut.needed | needed, cut)


def _segmentable(head: bytes, length: int, gso: int, size: int) -> _Segmentable | None:
    """Where the headers of a frame are that is to be cut; None where they do not fit it or each other."""
    network, version = _network(head)
    kind = _KINDS.get((gso & ~net.GSO_ECN, version))
    if kind is None or not size:
        return None
    protocol, feature = kind
    ecn = bool(gso & net.GSO_ECN)
    transport = _transport(head, network, version, protocol)
    if transport is None or (ecn and protocol != _TCP):
        return None
    payload = transport + (head[transport + 12] >> 4) * 4 if protocol == _TCP else transport + 8
    least = 20 if protocol == _TCP else 8
    if not transport + least <= payload <= len(head) or length - payload > size * SEGMENTS_MAX:
        return None
    needed = 1 << feature | (1 << net.F_GUEST_ECN if ecn else 0)
    return _Segmentable(protocol, version, network, transport, payload, size, needed)


def _network(head: bytes) -> tuple[int, int]:
    """Where the IP header is, and its version as the Ethernet header has it; 0 for another protocol."""
    at = HEADER + 12
    for _ in range(2):
        if at + 6 <= len(head) and _word(head, at) in _VLAN_TYPES:
            at += 4
    kind = _word(head, at)
    if kind == net.ETHERTYPE_IPV4 and at + 2 + 20 <= len(head) and head[at + 2] >> 4 == 4:
        return at + 2, 4
    if kind == net.ETHERTYPE_IPV6 and at + 2 + 40 <= len(head) and head[at + 2] >> 4 == 6:
        return at + 2, 6
    return at + 2, 0


def _transport(head: bytes, network: int, version: int, protocol: int) -> int | None:
    """Where the TCP or UDP header is; None where there is none, or not all of it."""
    if version == 4:
        at, found = network + (head[network] & 15) * 4, head[network + 9]
        whole = _word(head, network + 6) & 0x3FFF == 0  # no fragment of a larger one
        if at < network + 20 or not whole:
            return None
    else:
        at, found = network + 40, head[network + 6]
        for _ in range(_IPV6_OPTIONS_MAX):
            if found not in _IPV6_OPTIONS or at + 8 > len(head):
                break
            at, found = at + (head[at + 1] + 1) * 8, head[at]
    least = 20 if protocol == _TCP else 8
    return at if found == protocol and at + least <= len(head) else None


def _word(head: bytes, at: int) -> int:
    return head[at] << 8 | head[at + 1]


def _with_checksum(frame: Bytes) -> Bytes:
    """A copy with the checksum that the header asks for. Its field holds the sum of the pseudo-header."""
    _, _, _, _, start, offset, _ = _HEADER.unpack_from(frame.data)
    # Whole words for the sum; the copy that is handed on has the frame's own length.
    result = np.zeros(len(frame) + (HEADER + start - len(frame)) % 4, np.uint8)
    result[: len(frame)] = frame
    total = result[HEADER + start :].view(np.uint32).sum(dtype=np.uint64)
    at = HEADER + start + offset
    result[at : at + 2] = _folded(np.array([total])).view(np.uint8)
    result[:HEADER] = 0
    return result[: len(frame)]


def _segments(frame: Bytes, cut: _Segmentable) -> list[Bytes]:
    """The frame in segments of `cut.size` bytes of payload, all checksums in place (RFC 9293, RFC 3168).

    One row of an array for each segment, so that each step is one operation for all of them. A sum of words
    for RFC 1071 does not depend on the byte order, so it is taken in the machine's own.
    """
    head, payload = frame[: cut.payload].tobytes(), frame[cut.payload :]
    count = max(-(-len(payload) // cut.size), 1)
    whole, rest = divmod(len(payload), cut.size)
    width = cut.payload + cut.size
    rows = np.zeros((count, width + (cut.transport - width) % 4), np.uint8)
    rows[:, HEADER : cut.payload] = frame[HEADER : cut.payload]
    rows[:whole, cut.payload : width] = payload[: whole * cut.size].reshape(whole, cut.size)
    if rest:
        rows[whole, cut.payload : cut.payload + rest] = payload[whole * cut.size :]
    sizes = np.full(count, cut.size, np.uint32)
    sizes[-1] = len(payload) - (count - 1) * cut.size
    numbers = np.arange(count, dtype=np.uint32)
    lengths = sizes + (cut.payload - cut.transport)  # of the transport's part

    network, transport = rows[:, cut.network : cut.transport], rows[:, cut.transport :]
    if cut.version == 4:
        _put(network, 2, lengths + (cut.transport - cut.network))
        _put(network, 4, numbers + _word(head, cut.network + 4))
        _put(network, 10, np.zeros_like(numbers))
        network[:, 10:12] = _folded(_sums(network)).view(np.uint8).reshape(count, 2)
        addresses = network[:, 12:20]
    else:
        _put(network, 4, lengths + (cut.transport - cut.network - 40))
        addresses = network[:, 8:40]
    if cut.protocol == _TCP:
        sequence = _word(head, cut.transport + 4) << 16 | _word(head, cut.transport + 6)
        at = (np.uint64(sequence) + numbers.astype(np.uint64) * np.uint64(cut.size)).astype(np.uint32)
        _put(transport, 4, at >> np.uint32(16))
        _put(transport, 6, at)
        transport[:-1, 13] &= 0xFF & ~_FIN_PSH
        transport[1:, 13] &= 0xFF & ~_CWR
    else:
        _put(transport, 4, lengths)
    checksum = _CHECKSUM_AT[cut.protocol]
    _put(transport, checksum, np.zeros_like(numbers))
    pseudo = _sums(addresses) + _swapped(lengths) + _swapped(np.full(count, cut.protocol, np.uint32))
    total = _folded(_sums(transport) + pseudo)
    transport[:, checksum : checksum + 2] = total.view(np.uint8).reshape(count, 2)
    # Copies: a segment that waits somewhere is not to keep all of them.
    return [row[: cut.payload + size].copy() for row, size in zip(rows, sizes.tolist(), strict=True)]


def _put(rows: Bytes, at: int, values: npt.NDArray[np.uint32]) -> None:
    """Store the low 16 bits of a value in each row, in network order."""
    rows[:, at : at + 2] = values.astype(">u2").view(np.uint8).reshape(len(rows), 2)


def _sums(rows: Bytes) -> npt.NDArray[np.uint64]:
    """The sum of each row, in words of 32 bits: folded, it is that of words of 16 bits."""
    found: npt.NDArray[np.uint64] = rows.view(np.uint32).sum(axis=1, dtype=np.uint64)
    return found


def _swapped(values: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint64]:
    """Values below 65536 as words in network order, to be added to sums of such."""
    return values.astype(">u2").view(np.uint16).astype(np.uint64)


def _folded(totals: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint16]:
    """The checksums of sums. 0 would be none for UDP, and its other form is as good for all."""
    for _ in range(4):
        totals = (totals & np.uint64(0xFFFF)) + (totals >> np.uint64(16))
    found = ~totals.astype(np.uint16)
    found[found == 0] = 0xFFFF
    return found
