"""The header in front of each frame: checked the same way in both directions.

virtio 1.4, "Packet Transmission" and "Processing of Incoming Packets".
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from pymodel.spec import net, virtio

SIZE: Final = net.HEADER.itemsize
LEGACY_SIZE: Final = net.LEGACY_HEADER_SIZE
HASHED_SIZE: Final = SIZE + net.HEADER_HASH.itemsize
EMPTY: Final = bytes(SIZE)

# net.HEADER and net.HEADER_HASH.
_HEADER: Final = struct.Struct("<BBHHHHH")
_HASH: Final = struct.Struct("<IHH")
_COUNT: Final = struct.Struct("<H")
_COUNT_AT: Final = SIZE - 2


@dataclass(frozen=True, slots=True)
class Direction:
    """The features that one direction's offloads need. By type of segmentation: any of these bits."""

    checksum: int
    ecn: int
    segmentation: Mapping[int, int]


TRANSMIT: Final = Direction(
    1 << net.F_CSUM,
    1 << net.F_HOST_ECN,
    {
        net.GSO_TCPV4: 1 << net.F_HOST_TSO4,
        net.GSO_TCPV6: 1 << net.F_HOST_TSO6,
        net.GSO_UDP: 1 << net.F_HOST_UFO,
        net.GSO_UDP_L4: 1 << net.F_HOST_USO,
    },
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
)


def checked(raw: bytes, length: int, features: int, direction: Direction) -> bytes | None:
    """The header `raw` of a frame of `length` bytes with nothing in it that means nothing; None if it is bad.

    Bad is what asks for an offload that `features` do not have, or points out of the frame. Of the flags
    NEEDS_CSUM is left, and for a receiver DATA_VALID.
    """
    if raw == EMPTY:
        return raw
    flags, gso, hdr_len, gso_size, start, offset, _ = _HEADER.unpack(raw)
    kind = gso & ~net.GSO_ECN
    kept = 0
    if direction is RECEIVE and features & direction.checksum:
        kept = flags & net.HDR_F_DATA_VALID
    if flags & net.HDR_F_NEEDS_CSUM:
        if not features & direction.checksum or start + offset + 2 > length:
            return None
        kept |= net.HDR_F_NEEDS_CSUM
    else:
        start = offset = 0
    if kind == net.GSO_NONE:
        # ECN alone says nothing.
        return _HEADER.pack(kept, net.GSO_NONE, 0, 0, start, offset, 0)
    if (
        not features & direction.segmentation.get(kind, 0)
        or (gso & net.GSO_ECN and not features & direction.ecn)
        or not kept & net.HDR_F_NEEDS_CSUM
        or not gso_size
    ):
        return None
    # "The device MUST NOT rely on hdr_len to be correct"; Linux takes no frame for which it is too much.
    return _HEADER.pack(kept, gso, min(hdr_len, length), gso_size, start, offset, 0)


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
