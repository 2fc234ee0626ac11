"""The header in front of each frame: checked the same way in both directions.

virtio 1.4, "Packet Transmission" and "Processing of Incoming Packets".
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Mapping
from typing import Final

from pymodel.spec import net, virtio

SIZE: Final = net.HEADER.itemsize
LEGACY_SIZE: Final = net.LEGACY_HEADER_SIZE
HASHED_SIZE: Final = SIZE + net.HEADER_HASH.itemsize
EMPTY: Final = bytes(SIZE)

# net.HEADER and net.HEADER_HASH; the first one as it is checked: all but num_buffers, in words.
_HASH: Final = struct.Struct("<IHH")
_COUNT: Final = struct.Struct("<H")
_COUNT_AT: Final = SIZE - 2
_WORDS: Final = struct.Struct("<QHH")

# Compiled code has numbers of its own for these.
_NEEDS_CSUM = net.HDR_F_NEEDS_CSUM
_GSO_NONE, _GSO_ECN = net.GSO_NONE, net.GSO_ECN
_KINDS = net.GSO_ECN
# Where in the first eight bytes hdr_len, gso_size and csum_start are.
_LENGTH_AT, _SIZE_AT, _START_AT = 16, 32, 48


class Direction:
    """The features that one direction's offloads need. By type of segmentation: any of these bits.

    `valid` are flags of a header beside NEEDS_CSUM, for who took the checksum.
    """

    def __init__(self, checksum: int, ecn: int, segmentation: Mapping[int, int], *, valid: int) -> None:
        self.checksum = checksum
        self.ecn = ecn
        self.segmentation = array("Q", [segmentation.get(kind, 0) for kind in range(_KINDS)])
        self.valid = valid


TRANSMIT: Final = Direction(
    1 << net.F_CSUM,
    1 << net.F_HOST_ECN,
    {
        net.GSO_TCPV4: 1 << net.F_HOST_TSO4,
        net.GSO_TCPV6: 1 << net.F_HOST_TSO6,
        net.GSO_UDP: 1 << net.F_HOST_UFO,
        net.GSO_UDP_L4: 1 << net.F_HOST_USO,
    },
    valid=0,
)
RECEIVE: Final = Direction(
    1 << net.F_GUEST_CSUM,
    1 << net.F_GUEST_ECN,
    {
        net.GSO_TCPV4: 1 << net.F_GUEST_TSO4,
        net.GSO_TCPV6: 1 << net.F_GUEST_TSO6,
        net.GSO_UDP: 1 << net.F_GUEST_UFO,
        net.GSO_UDP_L4: 1 << net.F_GUEST_USO4 | 1 << net.F_GUEST_USO6,
    },
    valid=net.HDR_F_DATA_VALID,
)


class Header:
    """A header as `check` found it to be true: `words`, its first eight bytes, and `offset`, csum_offset."""

    def __init__(self, direction: Direction, features: int) -> None:
        self.direction = direction
        self.features = features
        self.words = 0
        self.offset = 0

    def check(self, words: int, offset: int, length: int) -> int:
        """Whether a header is good for a frame of `length` bytes. Nothing in it then means nothing.

        Bad is what asks for an offload that the features do not have, or points out of the frame. Of the
        flags NEEDS_CSUM is left, and for a receiver DATA_VALID.
        """
        self.words = self.offset = 0
        if not words and not offset:
            return 1
        flags = words & 0xFF
        gso = words >> 8 & 0xFF
        start = words >> _START_AT
        kept = 0
        if self.features & self.direction.checksum:
            kept = flags & self.direction.valid
        if flags & _NEEDS_CSUM:
            if not self.features & self.direction.checksum or start + offset + 2 > length:
                return 0
            kept |= _NEEDS_CSUM
            self.words = start << _START_AT
            self.offset = offset
        self.words |= kept
        if gso & ~_GSO_ECN == _GSO_NONE:
            # ECN alone says nothing.
            return 1
        size = words >> _SIZE_AT & 0xFFFF
        if (
            not self.features & self.direction.segmentation[gso & ~_GSO_ECN]
            or (gso & _GSO_ECN and not self.features & self.direction.ecn)
            or not kept & _NEEDS_CSUM
            or not size
        ):
            return 0
        # "The device MUST NOT rely on hdr_len to be correct"; Linux takes no frame for which it is too much.
        hint = words >> _LENGTH_AT & 0xFFFF
        self.words |= gso << 8 | min(hint, length) << _LENGTH_AT | size << _SIZE_AT
        return 1


def checked(raw: bytes, length: int, features: int, direction: Direction) -> bytes | None:
    """The header `raw` of a frame of `length` bytes as `Header.check` has it; None if it is bad."""
    if raw == EMPTY:
        return raw
    words, offset, _ = _WORDS.unpack(raw)
    header = Header(direction, features)
    return _WORDS.pack(header.words, header.offset, 0) if header.check(words, offset, length) else None


def size(features: int) -> int:
    """Bytes of header in front of each frame, both ways, for a driver with these features."""
    if features >> net.F_HASH_REPORT & 1:
        return HASHED_SIZE
    return SIZE if features & (1 << virtio.F_VERSION_1 | 1 << net.F_MRG_RXBUF) else LEGACY_SIZE


def received(header: bytes, buffers: int, found: tuple[int, int] | None) -> bytes:
    """A header as the driver gets it: over how many buffers, and (hash value, hash report) if wanted.

    A driver with `LEGACY_SIZE` gets the first bytes of it.
    """
    whole = header[:_COUNT_AT] + _COUNT.pack(buffers)
    return whole if found is None else whole + _HASH.pack(*found, 0)
