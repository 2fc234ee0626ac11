"""Requests that are done on the spot and others behind one notification: each has its own answer.

The server does what it can without the interpreter and stops in front of the first request that it can't do
so; here that happens again and again within a batch.
"""

from __future__ import annotations

import contextlib
import random
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.disks.in_process import kinds_taken, served
from vfu_client.drivers.block import FEATURES, BlockDriver, BlockError, BlockRequest
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.function import KNOWN_FEATURES
from vfu_server.datapath import COMPILED

IN, OUT, FLUSH, GET_ID, NONE = 0, 1, 4, 8, 99
OK, IOERR, UNSUPP = 0, 1, 2
SECTORS = 2048
RING_PACKED, IN_ORDER = 34, 35
ROUNDS = 60
TURNS = 10


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_every_kind_behind_one_kick(on_either_disk: ServerProcess, packed: bool) -> None:
    rng = random.Random(5)
    features = (KNOWN_FEATURES | FEATURES) - (set() if packed else {RING_PACKED})
    with BlockDriver.open(on_either_disk.socket("vf1"), features=features, posted_writes=True) as disk:
        content = {sector: bytes(512) for sector in range(SECTORS)}
        for sector in range(0, SECTORS, 64):
            disk.write(sector, bytes(512 * 64))
        memory = disk.device.memory
        for _ in range(ROUNDS):
            # No two of a batch touch one sector: requests may overtake each other.
            sectors = iter(rng.sample(range(0, SECTORS, 8), 60))
            expected: list[tuple[BlockRequest, int, bytes | None]] = []
            buffers: list[Buffer] = []
            for _ in range(rng.randrange(1, 41)):
                kind = rng.choice([IN, IN, IN, OUT, OUT, OUT, FLUSH, GET_ID, NONE])
                sector, count = next(sectors), rng.randrange(1, 9)
                if rng.randrange(12) == 0 and kind in {IN, OUT}:
                    sector = SECTORS - count + 1  # one sector too far
                size = 0 if kind == FLUSH else 20 if kind == GET_ID else 512 * count
                buffer = memory.allocate(size) if size else None
                data = None
                if buffer is not None:
                    buffers.append(buffer)
                    buffer.view[:] = list(rng.randbytes(size))
                wrong = sector + count > SECTORS and kind in {IN, OUT}
                if kind == OUT and buffer is not None and not wrong:
                    for number in range(count):
                        content[sector + number] = buffer.view[512 * number : 512 * (number + 1)].tobytes()
                elif kind == IN and not wrong:
                    data = b"".join(content[sector + number] for number in range(count))
                elif kind == GET_ID:
                    data = b"pymodel-vf1".ljust(20, b"\0")
                status = IOERR if wrong else UNSUPP if kind == NONE else OK
                expected.append((disk.submit(kind, sector, buffer, kick=False), status, data))
            disk.queues[0].kick(force=True)
            for request, status, data in expected:
                with contextlib.suppress(BlockError):
                    disk.finish(request)
                assert request.status == status
                if data is not None:
                    assert request.data is not None
                    assert request.data.view.tobytes() == data
            for buffer in buffers:
                memory.free(buffer)
        for sector in range(0, SECTORS, 64):
            wanted = b"".join(content[sector + number] for number in range(64))
            assert disk.read(sector, 64).tobytes() == wanted


def test_the_monitor_counts_them_all(on_either_disk: ServerProcess) -> None:
    """Requests and their notifications, whichever way they went."""

    def counters() -> tuple[int, int]:
        (found,) = on_either_disk.ask("query-functions", function="vf1")
        return found["counters"]["requests"], found["counters"]["notifications"]

    with BlockDriver.open(on_either_disk.socket("vf1"), posted_writes=True) as disk:
        before = counters()
        for number in range(100):
            disk.read(number)
            if number % 10 == 0:
                disk.get_id()
        after = counters()
    assert [new - old for new, old in zip(after, before, strict=True)] == [110, 110]


@pytest.mark.skipif(not COMPILED, reason="there is no engine")
@pytest.mark.parametrize("vf", [1, 2], ids=["file", "ram"])
@pytest.mark.parametrize(
    ("rooms", "on_the_spot"),
    [
        ((20, 1), True),
        ((21,), True),
        ((20, 0, 1), True),
        ((7, 13, 1), False),
        ((0, 20, 1), False),
        ((20, 1, 0), False),
        ((1,), False),
        ((19, 1), False),
        ((22,), False),
        ((64, 1), False),
    ],
)
def test_an_id_is_given_on_the_spot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, vf: int, rooms: tuple[int, ...], on_the_spot: bool
) -> None:
    """Where 20 bytes in a row are asked for; the device has the others, and all have the same answer."""
    image = tmp_path / "disk.img"
    image.write_bytes(bytes(512 * SECTORS))
    kinds = kinds_taken(monkeypatch)
    with (
        served(image, 512 * SECTORS, queues=1) as folder,
        BlockDriver.open(folder / f"vf{vf}.sock", posted_writes=True) as disk,
    ):
        header = disk.device.memory.allocate(16)
        header.view[0] = GET_ID
        room = disk.device.memory.allocate(sum(rooms))
        size = room.size - 1
        for _ in range(TURNS):
            room.view[:] = 0xEE
            at = [room.address + sum(rooms[:number]) for number in range(len(rooms))]
            disk.queues[0].add([header.segment], list(zip(at, rooms, strict=True)))
            disk.queues[0].kick()
            (done,) = disk.queues[0].wait(10)
            assert done.length == (size + 1 if size <= 20 else 0)
            serial = f"pymodel-vf{vf}".encode().ljust(20, b"\0")[:size]
            assert room.view.tobytes() == serial.ljust(size, b"\xee") + b"\0"
        assert set(kinds) == {GET_ID}
        # The device takes the first one itself, and those that are there before its thread is done with that.
        assert (len(kinds) < TURNS) == on_the_spot
