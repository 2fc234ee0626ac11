"""Requests that a block device cannot be meant to get."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.rules.author import VERSION_1, Author, Mistake
from tests.wire.rules.conftest import Checked

SIZE_MAX, SEG_MAX, RO, FLUSH_FEATURE, DISCARD_FEATURE, ZEROES_FEATURE = 1, 2, 5, 9, 13, 14
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
FEATURES = (VERSION_1, FLUSH_FEATURE, DISCARD_FEATURE, ZEROES_FEATURE)


def _send(
    author: Author,
    kind: int,
    sector: int = 0,
    *,
    data: bytes = b"",
    room: int = 0,
    features: tuple[int, ...] = FEATURES,
) -> None:
    """A request with data to read, and room to write ahead of the status."""
    queue = author.split(*features[1:])
    parts = [author.bytes(struct.pack("<IIQ", kind, 0, sector))]
    parts += [author.bytes(data)] if data else []
    answers = [author.bytes(bytes(room))] if room else []
    answers += [author.bytes(b"\xee")]
    queue.add([(part.address, part.size) for part in parts], [(part.address, part.size) for part in answers])
    queue.kick(force=True)


def _ranges(*ranges: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *one) for one in ranges)


def beyond_the_end(author: Author) -> None:
    _send(author, IN, 127, room=1024)


def zeroes_beyond_the_end(author: Author) -> None:
    _send(author, WRITE_ZEROES, data=_ranges((0, 8, 0), (120, 16, 0)))


def a_flush_of_a_sector(author: Author) -> None:
    _send(author, FLUSH, 9)


def a_flush_with_data(author: Author) -> None:
    _send(author, FLUSH, data=bytes(512))


def a_hundred_bytes(author: Author) -> None:
    _send(author, OUT, data=bytes(100))


def a_range_and_a_half(author: Author) -> None:
    _send(author, DISCARD, data=bytes(24))


def a_short_id(author: Author) -> None:
    _send(author, GET_ID, room=8)


def too_many_ranges(author: Author) -> None:
    _send(author, DISCARD, data=_ranges(*[(0, 1, 0)] * 33))


def too_many_ranges_of_zeroes(author: Author) -> None:
    _send(author, WRITE_ZEROES, data=_ranges(*[(0, 1, 0)] * 33))


def discards_with_unmap(author: Author) -> None:
    _send(author, DISCARD, data=_ranges((0, 8, 1)))


def no_status(author: Author) -> None:
    queue = author.split()
    header = author.bytes(bytes(16))
    queue.add([(header.address, 16)])
    queue.kick(force=True)


def reads_into_what_is_to_read(author: Author) -> None:
    _send(author, IN, data=bytes(512), room=512)


def writes_what_is_to_write(author: Author) -> None:
    _send(author, OUT, data=bytes(512), room=512)


def type_99(author: Author) -> None:
    _send(author, 99)


def discards_without_the_feature(author: Author) -> None:
    _send(author, DISCARD, data=_ranges((0, 8, 0)), features=(VERSION_1,))


def a_segment_too_large(author: Author) -> None:
    _send(author, IN, room=(4 << 20) + 512, features=(VERSION_1, SIZE_MAX))


def a_range_too_large(author: Author) -> None:
    _send(author, WRITE_ZEROES, data=_ranges((0, 65537, 0)))


MISTAKES = [
    Mistake(
        "BLK-01", beyond_the_end, "IN of sectors 127 to 128", where={"expected": "127 at most", "head": 0}
    ),
    Mistake("BLK-01", zeroes_beyond_the_end, "WRITE_ZEROES, range 1: 16 sectors from 120 on"),
    Mistake("BLK-02", a_flush_of_a_sector, "queue 0, ring position 0, head 0: FLUSH with sector 9"),
    Mistake("BLK-03", a_flush_with_data, "FLUSH with 512 bytes to read"),
    Mistake("BLK-04", a_hundred_bytes, "OUT of 100 bytes"),
    Mistake("BLK-05", a_range_and_a_half, "DISCARD with 24 bytes"),
    Mistake("BLK-06", a_short_id, "GET_ID with room for 8 bytes", where={"expected": "20"}),
    Mistake("BLK-07", too_many_ranges, "DISCARD of 33 ranges", where={"expected": "32 at most"}),
    Mistake("BLK-08", too_many_ranges_of_zeroes, "WRITE_ZEROES of 33 ranges"),
    Mistake("BLK-09", discards_with_unmap, "DISCARD, range 0: 8 sectors from 0 on, flags 0x1"),
    Mistake("BLK-11", no_status, "16 bytes to read, 0 to write"),
    Mistake("BLK-12", reads_into_what_is_to_read, "IN of 512 bytes with 512 bytes to read"),
    Mistake("BLK-12", writes_what_is_to_write, "OUT of 512 bytes with 512 bytes to write"),
    Mistake("BLK-13", type_99, "type 99"),
    Mistake("BLK-13", discards_without_the_feature, "DISCARD without feature bit 13"),
    Mistake("BLK-15", a_segment_too_large, "IN with a segment of 4194816 bytes", frozenset({"BLK-01"})),
    Mistake("BLK-16", a_range_too_large, "65537 sectors from 0 on", frozenset({"BLK-01"})),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)


def more_segments_than_there_may_be(author: Author) -> None:
    queue = author.run([VERSION_1, SEG_MAX, 28], size=256)
    header, status = author.bytes(struct.pack("<IIQ", IN, 0, 0)), author.bytes(b"\xee")
    room = author.memory.allocate(512, 16)
    parts = [(room.address, 2)] * 255 + [(room.address, 2)]
    queue.add([(header.address, 16)], [*parts, (status.address, 1)], indirect=True)
    queue.kick(force=True)


def does_not_take_read_only(author: Author) -> None:
    author.agree([VERSION_1])


def writes_all_the_same(author: Author) -> None:
    _send(author, OUT, data=bytes(512), features=(VERSION_1, RO))


READ_ONLY = [
    Mistake("BLK-10", does_not_take_read_only, r"without RO \(bit 5\)"),
    Mistake("BLK-14", writes_all_the_same, "queue 0, ring position 0, head 0: OUT"),
]


@pytest.mark.parametrize("mistake", READ_ONLY, ids=lambda mistake: mistake.id)
def test_mistake_at_a_read_only_disk(
    serve: Callable[..., ServerProcess],
    tmp_path: Path,
    told: Callable[[Author, Mistake], None],
    mistake: Mistake,
) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(65536))
    checked = Checked(serve("--vfs", "1", "--disk", f"{image},readonly", "--check-driver"))
    with checked.author() as author:
        told(author, mistake)
    checked.close()
