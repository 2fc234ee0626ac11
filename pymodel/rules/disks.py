"""Rules about requests to a block device. virtio 1.4, "Block Device"."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import ClassVar, Final

from pymodel.memory import Buffer
from pymodel.rules.rule import HINT, MUST, MUST_NOT, SHOULD, SHOULD_NOT, Rule
from pymodel.rules.topic import Topic
from pymodel.spec import block, virtio
from pymodel.transport.status import describe
from pymodel.watch.access import Piece
from pymodel.watch.names import BLOCK_REQUESTS

_OPERATION: Final = "Block Device / Device Operation"
_REFUSES: Final = "answers IOERR"

_HEADER: Final = struct.Struct("<IIQ")
_RANGE: Final = struct.Struct("<QII")

_FEATURES: Final[Mapping[int, int]] = {
    block.T_FLUSH: block.F_FLUSH,
    block.T_DISCARD: block.F_DISCARD,
    block.T_WRITE_ZEROES: block.F_WRITE_ZEROES,
}
"""Requests that belong to a feature."""


class Disks(Topic):
    """Holds each request against the rules for its type."""

    RULES: ClassVar[Mapping[str, Rule]] = {
        "BLK-01": Rule(
            MUST_NOT,
            _OPERATION,
            "read or write beyond the capacity",
            "a request that ends behind it",
            _REFUSES,
        ),
        "BLK-02": Rule(
            MUST,
            _OPERATION,
            "set sector to 0 in a FLUSH",
            "another sector",
            "flushes",
        ),
        "BLK-03": Rule(
            SHOULD_NOT,
            _OPERATION,
            "put data into a FLUSH",
            "more than a header and a status",
            "flushes",
        ),
        "BLK-04": Rule(
            MUST,
            _OPERATION,
            "read and write multiples of 512 bytes",
            "an IN or OUT with data of another length",
            _REFUSES,
        ),
        "BLK-05": Rule(
            MUST,
            _OPERATION,
            "send whole ranges, of 16 bytes, in a DISCARD or WRITE_ZEROES",
            "data of another length",
            _REFUSES,
        ),
        "BLK-06": Rule(
            MUST,
            _OPERATION,
            "have room for 20 bytes in a GET_ID",
            "room for more or less",
            "writes as much as there is room for",
        ),
        "BLK-07": Rule(
            MUST_NOT,
            _OPERATION,
            "send more than max_discard_seg ranges in a DISCARD",
            "more ranges",
            _REFUSES,
        ),
        "BLK-08": Rule(
            MUST_NOT,
            _OPERATION,
            "send more than max_write_zeroes_seg ranges in a WRITE_ZEROES",
            "more ranges",
            _REFUSES,
        ),
        "BLK-09": Rule(
            MUST,
            _OPERATION,
            "leave the unmap bit clear in a DISCARD",
            "a range with it",
            "answers UNSUPP",
        ),
        "BLK-10": Rule(
            SHOULD,
            _OPERATION,
            "accept VIRTIO_BLK_F_RO if it is offered",
            "FEATURES_OK without it",
            "answers IOERR to each write",
        ),
        "BLK-11": Rule(
            HINT,
            _OPERATION,
            "sends a request without a whole header, or without room for a status",
            "less than 16 bytes to read, or none to write",
            "sets DEVICE_NEEDS_RESET",
        ),
        "BLK-12": Rule(
            HINT,
            _OPERATION,
            "has the data of a request in the wrong direction",
            "an IN with data to read, or an OUT with data to write, but for the status",
            "takes what goes the right way",
        ),
        "BLK-13": Rule(
            HINT,
            _OPERATION,
            "sends a request of a type that there is not, or whose feature it did not negotiate",
            "such a type",
            "answers UNSUPP, or carries it out where the device can do it",
        ),
        "BLK-14": Rule(
            HINT,
            _OPERATION,
            "writes to a disk that is read-only",
            "an OUT, DISCARD or WRITE_ZEROES",
            _REFUSES,
        ),
        "BLK-15": Rule(
            HINT,
            "Block Device / Device configuration layout",
            "has more or larger segments than seg_max and size_max say",
            "such a request, with that feature negotiated",
            "takes it all the same",
        ),
        "BLK-16": Rule(
            HINT,
            "Block Device / Device configuration layout",
            "has a range of more sectors than the configuration allows, or discards beyond the capacity",
            "more than max_discard_sectors or max_write_zeroes_sectors, or a DISCARD that ends behind it",
            _REFUSES,
        ),
    }

    def writing_device_status(self, piece: Piece) -> None:
        """Features that a driver should take."""
        transport = self.transport
        added = piece.value & ~transport.status
        if transport.device.virtio_id != virtio.ID_BLOCK or not added & virtio.STATUS_FEATURES_OK:
            return
        if transport.offered >> block.F_RO & 1 and not transport.accepted >> block.F_RO & 1:
            wrote = f"{describe(piece.value)} written to device_status"
            self.tell("BLK-10", f"{wrote}, features {transport.accepted:#x} without RO (bit 5)")

    def taken(self, buffer: Buffer) -> None:
        """A request, ahead of what becomes of it."""
        if self.transport.device.virtio_id != virtio.ID_BLOCK or buffer.queue >= self.transport.num_queues:
            return
        header = buffer.readable.read(0, _HEADER.size)
        to_read, to_write = buffer.readable.length - _HEADER.size, buffer.writable.length - 1
        if len(header) < _HEADER.size or to_write < 0:
            lengths = f"{buffer.readable.length} bytes to read, {buffer.writable.length} to write"
            self.tell_of("BLK-11", buffer, lengths, expected="16 and 1 at least")
            return
        kind, _, sector = _HEADER.unpack(header)
        name = BLOCK_REQUESTS.get(kind)
        if name is None:
            self.tell_of("BLK-13", buffer, f"type {_number(kind, 1 << 16)}")
            return
        feature = _FEATURES.get(kind)
        if feature is not None and not self.transport.negotiated(feature):
            self.tell_of("BLK-13", buffer, f"{name} without feature bit {feature}")
        self._check_segments(buffer, name)
        if kind in {block.T_IN, block.T_OUT}:
            self._check_transfer(buffer, kind, sector, to_read, to_write)
        elif kind == block.T_FLUSH:
            if sector:
                self.tell_of("BLK-02", buffer, f"FLUSH with sector {sector}", expected="0")
            if to_read or to_write:
                self.tell_of("BLK-03", buffer, f"FLUSH with {to_read} bytes to read, {to_write} to write")
        elif kind == block.T_GET_ID:
            if to_write != block.ID_BYTES:
                self.tell_of("BLK-06", buffer, f"GET_ID with room for {to_write} bytes", expected="20")
        else:
            self._check_ranges(buffer, kind, to_read)
        if kind in {block.T_OUT, block.T_DISCARD, block.T_WRITE_ZEROES} and self._offers(block.F_RO):
            self.tell_of("BLK-14", buffer, name)

    def _offers(self, feature: int) -> bool:
        return bool(self.transport.offered >> feature & 1)

    def _config(self, name: str) -> int:
        """A field of the configuration; reading it here is not the driver's reading."""
        fields = block.CONFIG.fields
        assert fields is not None
        kind, at = fields[name][:2]
        return int.from_bytes(self.transport.device.read_config(at, kind.itemsize), "little")

    def _check_transfer(self, buffer: Buffer, kind: int, sector: int, to_read: int, to_write: int) -> None:
        name = BLOCK_REQUESTS[kind]
        length, other = (to_write, to_read) if kind == block.T_IN else (to_read, to_write)
        if other:
            way = "read" if kind == block.T_IN else "write"
            self.tell_of("BLK-12", buffer, f"{name} of {length} bytes with {other} bytes to {way}")
        if length % block.SECTOR:
            self.tell_of("BLK-04", buffer, f"{name} of {length} bytes", expected="a multiple of 512")
        capacity = self._config("capacity")
        end = sector + -(-length // block.SECTOR)
        if end > capacity:
            seen = f"{name} of sectors {_number(sector)} to {_number(end - 1)}"
            self.tell_of("BLK-01", buffer, seen, expected=f"{capacity - 1} at most", sector=sector)

    def _check_ranges(self, buffer: Buffer, kind: int, length: int) -> None:
        name = BLOCK_REQUESTS[kind]
        discards = kind == block.T_DISCARD
        count, rest = divmod(length, _RANGE.size)
        if rest:
            self.tell_of("BLK-05", buffer, f"{name} with {length} bytes", expected="a multiple of 16")
            return
        most = self._config("max_discard_seg" if discards else "max_write_zeroes_seg")
        if count > most:
            rule = "BLK-07" if discards else "BLK-08"
            self.tell_of(rule, buffer, f"{name} of {count} ranges", expected=f"{most} at most")
            return
        capacity = self._config("capacity")
        largest = self._config("max_discard_sectors" if discards else "max_write_zeroes_sectors")
        for number, (sector, sectors, flags) in enumerate(
            _RANGE.iter_unpack(buffer.readable.read(_HEADER.size, length))
        ):
            what = f"{name}, range {number}: {sectors} sectors from {sector} on"
            if sector + sectors > capacity:
                rule = "BLK-16" if discards else "BLK-01"
                self.tell_of(rule, buffer, what, expected=f"{capacity - 1} at most", sector=sector)
            if sectors > largest:
                self.tell_of("BLK-16", buffer, what, expected=f"{largest} at most", sector=sector)
            if discards and flags & block.RANGE_UNMAP:
                self.tell_of("BLK-09", buffer, f"{what}, flags {flags:#x}", expected="0", sector=sector)

    def _check_segments(self, buffer: Buffer, name: str) -> None:
        chain = self.transport.queues[buffer.queue].chain
        most = self._config("seg_max")
        # Header and status are two more.
        if self.transport.negotiated(block.F_SEG_MAX) and chain.count > most + 2:
            self.tell_of(
                "BLK-15", buffer, f"{name} of {chain.count - 2} segments", expected=f"{most} at most"
            )
        largest = max(size for _, size in chain.pairs(0, chain.count))
        if self.transport.negotiated(block.F_SIZE_MAX) and largest > self._config("size_max"):
            seen = f"{name} with a segment of {largest} bytes"
            self.tell_of("BLK-15", buffer, seen, expected=f"{self._config('size_max')} at most")


def _number(value: int, large: int = 1 << 40) -> str:
    """A number; a large one in hexadecimal, where swapped bytes are seen."""
    return f"{value:#x}" if value >= large else str(value)
