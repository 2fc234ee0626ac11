"""The block device between a disk and its buffers: requests, limits, and a disk that takes its time."""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest

from pymodel.devices.block.device import BlockDevice
from pymodel.devices.block.disk import Job, Kind, Shape
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.errors import BrokenQueue, InvalidCommand, InvalidField, MemoryFault
from pymodel.memory import Buffer, Bytes, Segments
from tests.model.fakes import FakeMemory

OK, IOERR, UNSUPP = 0, 1, 2
IN, OUT, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
F_RO, F_FLUSH, F_CONFIG_WCE, F_DISCARD, F_WRITE_ZEROES = 5, 9, 11, 13, 14
WRITEBACK_AT = 32
ALL = (1 << 64) - 1
# No status yet.
OPEN = 0xEE


class ReadOnlyDisk(RamDisk):
    read_only = True


class FailingDisk(RamDisk):
    """Every access fails, as of a broken drive."""

    def read(self, offset: int, views: Sequence[Bytes]) -> None:
        views[0][:] = 0x11
        raise OSError(errno.EIO, "broken")

    def write(self, offset: int, views: Sequence[Bytes]) -> None:
        raise OSError(errno.ENOSPC, "full")

    def flush(self) -> None:
        raise OSError(errno.EIO, "broken")


class SlowDisk(RamDisk):
    """Nothing is done at once; the test says which job ends when. A real disk's memory is behind it."""

    in_order = False

    def __init__(self, size: int, shape: Shape | None = None) -> None:
        super().__init__(size)
        self.shape = shape or Shape()
        self.jobs: list[Job] = []
        self.ended: list[Job] = []
        self.is_ready = True
        self.abandoned = 0
        self.wake: Callable[[], None] = lambda: None

    def connect(self, wake: Callable[[], None]) -> None:
        self.wake = wake

    def ready(self) -> bool:
        return self.is_ready

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        return False

    def start(self, job: Job) -> None:
        self.jobs.append(job)

    def finished(self) -> list[Job]:
        ended, self.ended = self.ended, []
        return ended

    def abandon(self) -> None:
        self.abandoned += 1

    def end(self, index: int = 0, error: OSError | None = None) -> None:
        job = self.jobs.pop(index)
        job.error = error
        if error is None:
            super().attempt(job, [] if job.data is None else [job.data])
        self.ended.append(job)


@dataclass
class Request:
    """A request in guest memory of its own: 16 bytes of header, data at 4 KiB, status behind its room."""

    memory: FakeMemory
    room: int
    used: list[int] = field(default_factory=list)

    @property
    def status(self) -> int:
        return int(self.memory.data[0x100000 + self.room])

    @property
    def data(self) -> bytes:
        return self.memory.data[0x100000 : 0x100000 + self.room].tobytes()


def device(disk: RamDisk, features: int = ALL) -> BlockDevice:
    block = BlockDevice(disk, name="s" * 40, queues=2)
    block.negotiated(block.features & features)
    return block


def ask(
    block: BlockDevice,
    kind: int,
    sector: int = 0,
    *,
    data: bytes = b"",
    room: int = 0,
    header: int = 16,
    queue: int = 0,
) -> Request:
    memory = FakeMemory(0x100000 + room + 64, 1 << 16)
    memory.data[:] = OPEN
    memory.data[:16] = np.frombuffer(struct.pack("<IIQ", kind, 0, sector), np.uint8)
    memory.data[0x1000 : 0x1000 + len(data)] = np.frombuffer(data, np.uint8)
    request = Request(memory, room)
    readable = Segments(
        memory, [(0, header), (0x1000, len(data) // 2), (0x1000 + len(data) // 2, -(-len(data) // 2))]
    )
    block.take(Buffer(queue, readable, Segments(memory, [(0x100000, room + 1)]), request.used.append))
    return request


def answer(block: BlockDevice, kind: int, **how: int | bytes) -> tuple[int, int]:
    """(status, used length) of a request that is done at once."""
    request = ask(block, kind, **how)  # type: ignore[arg-type] # one mapping for all of them
    return request.status, request.used[0]


def ranges(*entries: tuple[int, int, int]) -> bytes:
    return b"".join(struct.pack("<QII", *entry) for entry in entries)


def test_read_only() -> None:
    """F_RO is offered, a write is an I/O error and writes nothing; nothing else writes either."""
    disk = ReadOnlyDisk(4096)
    block = device(disk)
    assert block.features >> F_RO & 1
    assert not block.features >> F_DISCARD & 3
    assert answer(block, OUT, data=bytes(512)) == (IOERR, 1)
    assert answer(block, DISCARD, data=ranges((0, 1, 0))) == (UNSUPP, 1)
    assert answer(block, WRITE_ZEROES, data=ranges((0, 1, 0))) == (UNSUPP, 1)
    assert disk.snapshot() == []
    assert answer(block, IN, room=512) == (OK, 513)
    assert not device(RamDisk(4096)).features >> F_RO & 1


@pytest.mark.parametrize(("kind", "out", "room"), [(IN, 0, 512), (OUT, 512, 0), (FLUSH, 0, 0)])
def test_a_failing_disk_is_an_io_error(kind: int, out: int, room: int) -> None:
    """The used length does not claim data that was not read."""
    block = device(FailingDisk(4096))
    assert answer(block, kind, data=bytes(out), room=room) == (IOERR, 0 if room else 1)


@pytest.mark.parametrize("header", [0, 15])
def test_no_header(header: int) -> None:
    with pytest.raises(BrokenQueue):
        ask(device(RamDisk(4096)), FLUSH, header=header)


def test_id_is_cut_to_20_bytes() -> None:
    request = ask(device(RamDisk(4096)), GET_ID, room=20)
    assert (request.status, request.used, request.data) == (OK, [21], b"pymodel-" + b"s" * 12)


# --- discard and write zeroes ------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
@pytest.mark.parametrize(
    ("data", "status"),
    [
        (ranges((0, 8, 0)), OK),
        (ranges((8191, 1, 0), (0, 0, 0), (8192, 0, 0)), OK),
        (b"", IOERR),
        (ranges((0, 1, 0))[:15], IOERR),
        (ranges((0, 1, 0)) + b"\0", IOERR),
        (ranges(*[(0, 1, 0)] * 32), OK),
        (ranges(*[(0, 1, 0)] * 33), IOERR),
        (ranges((8192, 1, 0)), IOERR),
        (ranges((8191, 2, 0)), IOERR),
        (ranges(((1 << 64) - 1, 1, 0)), IOERR),
        (ranges((1 << 55, 1, 0)), IOERR),  # times 512 wraps to 0 in 64 bits
        (ranges((0, 0xFFFFFFFF, 0)), IOERR),
        (ranges((0, 1, 2)), UNSUPP),
        (ranges((0, 1, 1 << 31)), UNSUPP),
        (ranges((8192, 1, 0), (0, 1, 2)), UNSUPP),
    ],
)
def test_ranges(kind: int, data: bytes, status: int) -> None:
    """A refused request changes nothing, whichever of its ranges was wrong."""
    disk = RamDisk(4 << 20)
    disk.write(0, [np.full(4 << 20, 7, np.uint8)])
    assert answer(device(disk), kind, data=data) == (status, 1)
    content = np.empty(4 << 20, np.uint8)
    disk.read(0, [content])
    if status == OK:
        assert not content[:512].any() or not content[-512:].any()
    else:
        assert (content == 7).all()


def test_unmap() -> None:
    """For WRITE_ZEROES it is a wish, for DISCARD it is UNSUPP."""
    block = device(RamDisk(4096))
    assert answer(block, WRITE_ZEROES, data=ranges((0, 1, 1))) == (OK, 1)
    assert answer(block, DISCARD, data=ranges((0, 1, 1))) == (UNSUPP, 1)


def test_limits_of_a_range() -> None:
    """What the configuration promises is taken, a sector more is not."""
    block = device(RamDisk(4 << 30))
    config = block.read_config(0, 60)
    discard, discard_segments = struct.unpack_from("<II", config, 36)
    zeroes, zeroes_segments = struct.unpack_from("<II", config, 48)
    assert config[56] == 1, "write_zeroes_may_unmap"
    assert (discard_segments, zeroes_segments) == (32, 32)
    for kind, most in ((DISCARD, discard), (WRITE_ZEROES, zeroes)):
        assert answer(block, kind, data=ranges((5, most, 0))) == (OK, 1)
        assert answer(block, kind, data=ranges((5, most + 1, 0))) == (IOERR, 1)


@pytest.mark.parametrize("kind", [DISCARD, WRITE_ZEROES])
def test_what_was_not_negotiated(kind: int) -> None:
    block = device(RamDisk(4096), ~(1 << F_DISCARD | 1 << F_WRITE_ZEROES))
    assert answer(block, kind, data=ranges((0, 1, 0))) == (UNSUPP, 1)


# --- the cache mode ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("features", "writeback", "durable"),
    [
        (1 << F_FLUSH | 1 << F_CONFIG_WCE, 1, False),
        (1 << F_FLUSH, 1, False),
        (1 << F_CONFIG_WCE, 0, True),
        (0, 0, True),
    ],
)
def test_mode_after_negotiation(features: int, writeback: int, durable: bool) -> None:
    """By "Device Initialization": 0 without FLUSH, and a driver that has neither gets stable writes."""
    disk = SlowDisk(4096)
    block = device(disk, features)
    assert block.read_config(WRITEBACK_AT, 1)[0] == writeback
    ask(block, OUT, data=bytes(512))
    assert disk.jobs[0].durable == durable


def test_the_driver_chooses_the_mode() -> None:
    disk = SlowDisk(4096)
    block = device(disk)
    before = block.read_config(0, 60)
    block.write_config(WRITEBACK_AT, b"\2")
    block.write_config(0, b"\xff" * 32)
    block.write_config(WRITEBACK_AT + 1, b"\xff" * 40)
    assert block.read_config(0, 60) == before
    block.write_config(WRITEBACK_AT, b"\0")
    assert block.read_config(0, 60) == before[:32] + b"\0" + before[33:]
    ask(block, OUT, data=bytes(512))
    block.write_config(WRITEBACK_AT - 2, b"\xff\xff\1\xff")
    assert block.read_config(0, 60) == before
    ask(block, OUT, data=bytes(512))
    assert [job.durable for job in disk.jobs] == [True, False]


def test_no_choice_without_config_wce() -> None:
    block = device(RamDisk(4096), 1 << F_FLUSH)
    block.write_config(WRITEBACK_AT, b"\0")
    assert block.read_config(WRITEBACK_AT, 1) == b"\1"


def test_the_mode_is_state() -> None:
    source, target = device(RamDisk(4096)), device(RamDisk(4096))
    source.write_config(WRITEBACK_AT, b"\0")
    config = source.read_config(0, 60)
    target.check(config, [])
    target.restore(config, [])
    assert target.read_config(0, 60) == config


@pytest.mark.parametrize("at", [0, 8, 12, 20, 34, 36, 48, 56])
def test_limits_are_compared(at: int) -> None:
    """Capacity, size_max, seg_max, blk_size, num_queues and the limits of ranges; a writeback of 2."""
    block = device(RamDisk(4096))
    config = bytearray(block.read_config(0, 60))
    config[at] ^= 1
    with pytest.raises(InvalidField):
        block.check(bytes(config), [])


def test_the_field_that_differs_is_named() -> None:
    block = device(RamDisk(4096))
    config = bytearray(block.read_config(0, 60))
    config[12] = 7
    config[34] = 2
    with pytest.raises(InvalidField, match="seg_max 7, here 254"):
        block.check(bytes(config), [])


def test_topology_is_a_hint() -> None:
    block = device(RamDisk(4096))
    config = bytearray(block.read_config(0, 60))
    config[24:32] = b"\xff" * 8
    block.check(bytes(config), [])
    config[32] = 2
    with pytest.raises(InvalidField):
        block.check(bytes(config), [])


def test_blocks_above_a_sector() -> None:
    """A disk that can only do 4 KiB says so, and refuses less."""
    block = device(SlowDisk(1 << 20, Shape(block=4096, physical=4096)))
    assert struct.unpack_from("<I", block.read_config(20, 4)) == (4096,)
    assert block.read_config(24, 8) == struct.pack("<BBHI", 0, 0, 1, 0)
    for sector, size in ((0, 512), (1, 4096)):
        assert answer(block, IN, sector=sector, room=size) == (IOERR, 0)
    assert ask(block, IN, 8, room=4096).used == []


def test_topology_of_a_disk() -> None:
    block = device(SlowDisk(1 << 20, Shape(block=512, physical=4096, optimal=1 << 16)))
    assert block.read_config(20, 12) == struct.pack("<IBBHI", 512, 3, 0, 8, 128)


# --- a disk that takes its time ----------------------------------------------------------------------------


def test_requests_end_in_any_order() -> None:
    """Each has its own answer; nothing is written to a guest's memory before its job ended."""
    disk = SlowDisk(4096)
    disk.write(512, [np.full(512, 5, np.uint8)])
    block = device(disk)
    assert not block.in_order
    first, second = ask(block, IN, 1, room=512), ask(block, OUT, 2, data=b"w" * 512)
    third = ask(block, FLUSH)
    assert [job.kind for job in disk.jobs] == [Kind.READ, Kind.WRITE, Kind.FLUSH]
    disk.end(2)
    disk.end(1, OSError(errno.ENOSPC, "full"))
    block.service()
    assert (third.status, third.used) == (OK, [1])
    assert (second.status, second.used) == (IOERR, [1])
    assert (first.data, first.used) == (bytes([OPEN]) * 512, [])
    disk.end()
    assert first.used == []
    block.service()
    assert (first.status, first.data, first.used) == (OK, b"\5" * 512, [513])


def test_a_write_is_copied_when_it_is_taken() -> None:
    """What the guest does to its buffer afterwards changes nothing."""
    disk = SlowDisk(4096)
    block = device(disk)
    request = ask(block, OUT, data=b"a" * 512)
    request.memory.data[0x1000:0x2000] = ord("b")
    disk.end()
    block.service()
    assert disk.snapshot()[0][1][:512].tobytes() == b"a" * 512


def test_a_reset_forgets_what_is_under_way() -> None:
    """No answer, no data; the disk is told, and asked before the next driver's first request."""
    disk = SlowDisk(4096)
    disk.write(0, [np.full(4096, 5, np.uint8)])
    block = device(disk)
    request = ask(block, IN, room=512)
    before = disk.abandoned
    block.reset()
    assert disk.abandoned == before + 1
    disk.is_ready = False
    assert not block.accepts(0)
    disk.is_ready = True
    assert block.accepts(0)
    block.service()
    assert (request.data, request.used) == (bytes([OPEN]) * 512, [])


def test_a_queue_reset_waits_for_its_own_jobs_only() -> None:
    disk = SlowDisk(4096)
    disk.write(0, [np.full(4096, 5, np.uint8)])
    block = device(disk)
    gone, stays = ask(block, IN, room=512, queue=0), ask(block, IN, room=512, queue=1)
    block.drop(0)
    assert (block.accepts(0), block.accepts(1)) == (False, True)
    disk.end()
    disk.end()
    block.service()
    assert (gone.data, gone.used) == (bytes([OPEN]) * 512, [])
    assert (stays.data, stays.used) == (b"\5" * 512, [513])
    assert block.accepts(0)


def test_large_requests_go_in_pieces_and_have_a_bound() -> None:
    """32 MiB of memory of ours and a piece at most, and each request ends whole."""
    disk = SlowDisk(64 << 20)
    pattern = np.arange(16 << 20, dtype=np.uint32).view(np.uint8)
    disk.write(0, [pattern])
    block = device(disk)
    requests = [ask(block, IN, number << 13, room=5 << 20) for number in range(12)]
    while disk.jobs:
        held = sum(len(job.data) for job in disk.jobs if job.data is not None)
        assert held < (32 + 4) << 20
        assert all(job.length <= 4 << 20 for job in disk.jobs)
        disk.end(len(disk.jobs) // 2)
        block.service()
    for number, request in enumerate(requests):
        assert (request.status, request.used) == (OK, [(5 << 20) + 1])
        assert request.data == pattern[number << 22 : (number << 22) + (5 << 20)].tobytes()


def test_an_error_ends_a_request_of_many_pieces() -> None:
    disk = SlowDisk(64 << 20)
    block = device(disk)
    request = ask(block, IN, room=9 << 20)
    disk.end()
    block.service()
    disk.end(error=OSError(errno.EIO, "broken"))
    block.service()
    assert disk.jobs == []
    assert (request.status, request.used) == (IOERR, [0])


def test_memory_that_is_gone_can_come_back() -> None:
    """A fault in `service` loses nothing: the same call works once the memory is there again."""
    disk = SlowDisk(4096)
    disk.write(0, [np.full(4096, 5, np.uint8)])
    block = device(disk)
    first, second = ask(block, IN, room=512), ask(block, FLUSH)
    disk.end()
    disk.end()
    memory, first.memory.data = first.memory.data, np.zeros(16, np.uint8)
    with pytest.raises(MemoryFault):
        block.service()
    first.memory.data = memory
    block.service()
    assert (first.data, first.used) == (b"\5" * 512, [513])
    assert second.used == [1]


def test_quiesce_is_refused_where_data_can_not_be_kept() -> None:
    class Full(SlowDisk):
        def release(self) -> bool:
            raise OSError(errno.ENOSPC, "full")

    with pytest.raises(InvalidCommand, match="full"):
        device(Full(4096)).quiesce()
    assert device(RamDisk(4096)).quiesce()


def test_the_disk_is_told_of_a_move_ahead() -> None:
    class Expecting(SlowDisk):
        expected: list[bool] = []  # noqa: RUF012 - one instance

        def expect_release(self, *, soon: bool) -> None:
            self.expected.append(soon)

    block = device(Expecting(4096))
    block.expect_quiesce(soon=True)
    block.expect_quiesce(soon=False)
    assert Expecting.expected == [True, False]


def test_no_memory_for_the_data_of_a_job(monkeypatch: pytest.MonkeyPatch) -> None:
    disk = SlowDisk(1 << 20)
    block = device(disk)

    def none(length: int) -> Bytes:
        raise MemoryError

    monkeypatch.setattr("pymodel.devices.block.device.private", none)
    assert answer(block, OUT, data=bytes(512)) == (IOERR, 1)
    assert answer(block, IN, room=512) == (IOERR, 0)
    assert not disk.jobs
    # What needs none goes on.
    assert ask(block, FLUSH).status == OPEN
    assert len(disk.jobs) == 1
