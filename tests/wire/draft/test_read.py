"""The draft's rules for reading: CTX_READ, SIZE_GET, FIELDS_QUERY, DISCARD, in each mode, cut anywhere."""

from __future__ import annotations

import struct
import threading
from typing import Self

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    COMMON_CFG,
    CTX_DISCARD,
    CTX_READ,
    EACH,
    END,
    EXTENT,
    FIELDS_QUERY,
    FREEZE,
    OK,
    PATTERN,
    PENDING,
    QUEUE_SELECT,
    SIZE_GET,
    START,
    STOP,
    TIMEOUT,
    WRONG_CONTENT,
    Rig,
    parse,
    queue_select,
    value,
    whole,
)
from vfu_client.drivers.block import BlockDriver


@pytest.fixture
def rig(rig: Rig) -> Rig:
    """Its disk's third sector holds the pattern."""
    rig.disk.write(2, PATTERN)
    return rig


class Traffic:
    """A thread that writes and reads back, from entering it to leaving it; it must see no mistake."""

    def __init__(self, disk: BlockDriver) -> None:
        self._disk = disk
        self._stop = threading.Event()
        self._moved = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        turn = 0
        try:
            while not self._stop.is_set():
                turn += 1
                data = bytes([turn & 0xFF]) * 512
                self._disk.write(turn % 8, data)
                assert self._disk.read(turn % 8).tobytes() == data
                self._moved.set()
        except BaseException as error:  # noqa: BLE001 - shown by the test's own thread
            self._failure = error
            self._moved.set()

    def moves(self) -> None:
        """Assert that requests go on to complete."""
        self._moved.clear()
        assert self._moved.wait(TIMEOUT)

    def __enter__(self) -> Self:
        self._thread.start()
        self.moves()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(TIMEOUT)
        if self._failure is not None:
            raise self._failure


@EACH
@pytest.mark.spec("DEV-06", "DEV-07")
def test_after_the_whole_context_reads_are_empty(rig: Rig, mode: int) -> None:
    """READ to END_MARKER, then three more: OK, both words 0, used length 16. SIZE_GET says 0."""
    rig.go(mode)
    assert whole(rig.read_rest())
    for _ in range(3):
        for room in (0, 1, 4096):
            assert rig.read(room) == (0, b"")
    assert rig.size() == 0


@pytest.mark.spec("DEV-06")
def test_another_mode_begins_another_read(rig: Rig) -> None:
    """The read position is per mode (A-06): read out in Stop, the context is whole in Freeze again."""
    for mode in (ACTIVE, STOP, FREEZE, ACTIVE):
        rig.go(mode)
        assert whole(rig.read_rest())
        assert rig.read(64) == (0, b"")


@EACH
@pytest.mark.spec("DEV-07", "DEV-33", "DEV-34")
@pytest.mark.parametrize("room", [1 << 16, 100])
def test_a_context_is_read_in_each_mode(rig: Rig, mode: int, room: int) -> None:
    """It parses, says what the driver set up, and holds the disk."""
    rig.go(mode)
    stream = rig.read_rest(room)
    assert whole(stream)
    assert value(stream, 0x0F) == bytes([2, 0, 0, 0, 0, 0, 0, 0])
    assert int.from_bytes(value(stream, 0x11), "little") == rig.device.features
    assert value(stream, COMMON_CFG)[14] == 0x0F
    index, size, vector, enable = struct.unpack_from("<4H", value(stream, 0x14))
    assert (index, size, vector, enable) == (0, 256, 1, 1)
    areas = struct.unpack_from("<3Q", value(stream, 0x14), 16)
    assert areas == tuple(part.address for part in rig.queue.parts)
    # One request was done: an index, or an indirect descriptor, the wrap counter being 1.
    place = 0x8001 if rig.vq_state == 0x16 else 1
    assert struct.unpack("<3H", value(stream, rig.vq_state)[:6]) == (0, place, place)
    assert PATTERN in value(stream, EXTENT)
    kinds = [kind for kind, _ in parse(stream)]
    assert kinds[:-1] == sorted(kinds[:-1])
    assert 2 not in kinds


@pytest.mark.spec("DEV-07")
def test_contexts_are_read_while_requests_run(rig: Rig) -> None:
    """In Active under traffic: each one is whole and of the size that was promised; the traffic is right."""
    with Traffic(rig.disk) as traffic:
        for room in (64, 333, 4096) * 3:
            assert rig.adm(CTX_DISCARD).code == OK
            left, first = rig.read(room)
            traffic.moves()
            stream = first + rig.read_rest(room)
            assert len(stream) == len(first) + left
            assert whole(stream)
            assert len(value(stream, EXTENT)) == 8 + 4096


@EACH
@pytest.mark.spec("DEV-08", "DEV-09", "DEV-33")
def test_discard_begins_a_new_read(rig: Rig, mode: int) -> None:
    """Partly read, and wholly: DISCARD is OK, and size and context are those before the first READ."""
    rig.go(mode)
    size = rig.size()
    assert size == rig.size(1) > 4096
    expected = rig.read_rest()
    assert len(expected) == size
    for reads in (0, 1, 2):
        assert rig.adm(CTX_DISCARD).code == OK
        assert rig.size() == size
        for number in range(reads):
            left, data = rig.read(40)
            assert data == expected[40 * number : 40 * number + 40]
            assert left == rig.size() == size - 40 * (number + 1)
            assert rig.size(1) == size
        assert rig.adm(CTX_DISCARD).code == OK
        assert rig.size() == size
        left, data = rig.read(16)
        assert (left, data) == (size - 16, bytes(16))
        assert data + rig.read_rest() == expected


@EACH
@pytest.mark.spec("DEV-09")
def test_discard_shows_what_changed_meanwhile(rig: Rig, mode: int) -> None:
    """The snapshot of a read (A-07) does not change under it; after DISCARD a new one is taken."""
    rig.device.common.write("queue_select", 0)
    rig.go(mode)
    first = rig.read(16)[1]
    rig.device.common.write("queue_select", 1)
    assert queue_select(first + rig.read_rest()) == 0
    assert queue_select(rig.context()) == (0 if mode == FREEZE else 1)


@pytest.mark.spec("DEV-10")
def test_fields_query(rig: Rig) -> None:
    """The three markers, each of length 0; and every field that READ sends, with its length."""
    answer = rig.adm(FIELDS_QUERY, room=4096)
    assert answer.code == OK
    assert len(answer.result) % 8 == 0
    support = {}
    for at in range(0, len(answer.result), 8):
        kind, reserved, length = struct.unpack_from("<HHI", answer.result, at)
        assert reserved == 0
        assert kind not in support
        support[kind] = length
    assert [support[kind] for kind in (0x0000, 0x0001, 0x0002)] == [0, 0, 0]
    for kind, content in parse(rig.context()):
        assert support[kind] in (len(content), 0xFFFFFFFF)


@EACH
@pytest.mark.spec("DEV-10")
def test_fields_query_is_the_same_in_every_mode(rig: Rig, mode: int) -> None:
    """The three markers are listed whatever the mode, and first."""
    rig.go(mode)
    result = rig.adm(FIELDS_QUERY, room=24).result
    assert result == bytes.fromhex("0000000000000000 0100000000000000 0200000000000000")


@pytest.mark.spec("DEV-33")
def test_every_first_read_begins_with_start(rig: Rig) -> None:
    """At first, after DISCARD, after a mode change, after the end and DISCARD: 16 bytes of START_MARKER."""
    start = struct.pack("<IIQ", START, 0, 0)
    assert rig.read(16)[1] == start
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.read(16)[1] == start
    for mode in (STOP, FREEZE, STOP, ACTIVE, FREEZE, ACTIVE):
        rig.go(mode)
        assert rig.read(16)[1] == start
        rig.read(1)
    rig.read_rest()
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.read(16)[1] == start


@pytest.mark.spec("DEV-33")
def test_a_function_that_no_driver_set_up_has_a_context(server: ServerProcess) -> None:
    """After a reset there is still something to say, from START_MARKER on."""
    with Rig(server) as rig:
        rig.device.reset()
        rig.go(STOP)
        stream = rig.read_rest()
        assert whole(stream)
        assert value(stream, COMMON_CFG)[14] == 0


@EACH
@pytest.mark.spec("DEV-34")
def test_the_end_is_the_end(rig: Rig, mode: int) -> None:
    """`remaining` reaches 0 with the last byte of END_MARKER, wherever reads were cut."""
    rig.go(mode)
    size = rig.size()
    stream = b""
    left = size
    while left:
        left, data = rig.read(len(stream) % 97 + 60)
        stream += data
        assert left == size - len(stream)
    assert stream[-16:] == struct.pack("<IIQ", END, 0, 0)
    assert whole(stream)


@EACH
@pytest.mark.spec("DEV-35")
def test_start_and_end_in_different_responses(rig: Rig, mode: int) -> None:
    """Reads of 64 bytes: the pieces are the same context as one read gives; cuts fall within fields too."""
    rig.go(mode)
    expected = rig.read_rest()
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.read_rest(64) == expected


@pytest.mark.spec("DEV-35")
def test_reads_of_one_byte(rig: Rig) -> None:
    """The first fields, byte by byte; a buffer without room for data loses nothing (A-27)."""
    rig.go(STOP)
    expected = rig.read_rest()
    assert rig.adm(CTX_DISCARD).code == OK
    got = b""
    for _ in range(100):
        left, data = rig.read(1)
        got += data
        assert left == len(expected) - len(got)
        assert rig.read(0) == (left, b"")
    # Not even room for the two words.
    for room in (0, 4):
        assert rig.adm(CTX_READ, room=room).code == OK
    assert got + rig.read_rest() == expected


@EACH
@pytest.mark.spec("DEV-36")
def test_start_and_end_in_one_response(rig: Rig, mode: int) -> None:
    """A buffer that is large enough gets the whole context, and `remaining` is 0."""
    rig.go(mode)
    size = rig.size()
    for room in (size, 1 << 20):
        assert rig.adm(CTX_DISCARD).code == OK
        left, data = rig.read(room)
        assert (left, len(data)) == (0, size)
        assert whole(data)


@pytest.mark.spec("DEV-16")
def test_two_reads_in_stop_may_differ(rig: Rig) -> None:
    """What the driver writes in Stop and what happens there is in the next context; both are whole."""
    rig.device.common.write("queue_select", 0)
    rig.go(STOP)
    first = rig.context()
    rig.device.common.raw_write(QUEUE_SELECT, 2, 1)
    second = rig.context()
    assert (queue_select(first), queue_select(second)) == (0, 1)
    rig.break_device()
    third = rig.context()
    assert (value(second, PENDING)[0], value(third, PENDING)[0]) == (0, 1)


@pytest.mark.spec("DEV-21")
def test_the_read_in_freeze_is_the_final_one(rig: Rig) -> None:
    """What changed in Stop is in the context of Freeze; nothing else is changed by going there."""
    rig.go(STOP)
    early = rig.context()
    rig.device.common.write("queue_select", 1)
    late = rig.context()
    assert late != early
    rig.go(FREEZE)
    assert rig.context() == late


@EACH
@pytest.mark.spec("DEV-09")
def test_size_get_knows_two_questions(rig: Rig, mode: int) -> None:
    """freeze_mode 0 and 1; other values are EINVAL, and the read position stays."""
    rig.go(mode)
    size = rig.size(1)
    rig.read(50)
    for wrong in (2, 255):
        assert rig.adm(SIZE_GET, bytes([wrong]) + bytes(7), 8).code == WRONG_CONTENT
    assert (rig.size(0), rig.size(1)) == (size - 50, size)
