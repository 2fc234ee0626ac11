"""Checksums and segmentation in software, for receivers that did not agree to do either themselves."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from pymodel.devices.net import header as net_header
from pymodel.devices.net.frame_head import TCP, UDP, FrameHead
from pymodel.memory import Bytes

HEADER: Final = net_header.SIZE

_FIN_PSH: Final = 0x09
_CWR: Final = 0x80

CHECKSUM_AT: Final = {TCP: 16, UDP: 6}
"""Of each protocol: where in its header the checksum is."""

_HEADER: Final = struct.Struct("<BBHHHHH")


@dataclass(slots=True)
class Checked:
    """A frame whose header is true, and what is known of it."""

    frame: Bytes
    head: FrameHead
    _done: list[Bytes] | None = None

    def carried(self, features: int) -> list[Bytes]:
        """The frame as a receiver with `features` takes it: as it is, with a checksum, or in segments.

        The work is done once for all receivers, who share its result.
        """
        if not self.head.needed & ~features:
            return [self.frame]
        if self._done is None:
            whole = not self.head.protocol
            self._done = [_with_checksum(self.frame)] if whole else _segments(self.frame, self.head)
            for part in self._done:
                part.flags.writeable = False
        return self._done


def check(frame: Bytes, head: FrameHead | None = None) -> Checked | None:
    """Check a frame of a driver, and put its header in order for a receiver; None for one to be dropped.

    `frame` is writable and nobody else's. What is found is in `head`, or a new one.
    """
    head = head or FrameHead()
    if not head.load(frame):
        return None
    frame[:HEADER] = np.frombuffer(head.header, np.uint8)
    return Checked(frame, head)


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


def _segments(frame: Bytes, cut: FrameHead) -> list[Bytes]:
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
    if cut.protocol == TCP:
        sequence = _word(head, cut.transport + 4) << 16 | _word(head, cut.transport + 6)
        at = (np.uint64(sequence) + numbers.astype(np.uint64) * np.uint64(cut.size)).astype(np.uint32)
        _put(transport, 4, at >> np.uint32(16))
        _put(transport, 6, at)
        transport[:-1, 13] &= 0xFF & ~_FIN_PSH
        transport[1:, 13] &= 0xFF & ~_CWR
    else:
        _put(transport, 4, lengths)
    checksum = CHECKSUM_AT[cut.protocol]
    _put(transport, checksum, np.zeros_like(numbers))
    pseudo = _sums(addresses) + _swapped(lengths) + _swapped(np.full(count, cut.protocol, np.uint32))
    total = _folded(_sums(transport) + pseudo)
    transport[:, checksum : checksum + 2] = total.view(np.uint8).reshape(count, 2)
    # Copies: a segment that waits somewhere is not to keep all of them.
    return [row[: cut.payload + size].copy() for row, size in zip(rows, sizes.tolist(), strict=True)]


def _word(head: bytes, at: int) -> int:
    return head[at] << 8 | head[at + 1]


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
