"""A disk that takes its time holds up its own requests and nothing else.

The server runs in this process, on real sockets and threads, so that a test can hold what a file does.
"""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymodel.devices.block.disk import Kind
from tests.wire.disks.gates import Gates
from tests.wire.disks.in_process import served
from tests.wire.driving import Neighbour
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver, BlockRequest
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_server.disks.image import Image

SECONDS = 10
ACTIVE, STOP = 0, 1
SIZE = 1 << 20
OLD, NEW = b"o" * 512, b"n" * 512


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Gates[Kind]:
    """Jobs wait by kind, and none is done at once."""
    monkeypatch.setattr(Image, "attempt", lambda *_: False)
    return Gates(monkeypatch, lambda job: job.kind)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(OLD * (SIZE // 512))
    return path


@pytest.fixture
def folder(gates: Gates[Kind], image: Path) -> Iterator[Path]:
    """A PF and two VFs; VF 1 stands on the image."""
    with served(image, SIZE, queues=2) as path:
        yield path
        gates.open_all()


def driver(folder: Path) -> BlockDriver:
    return BlockDriver.open(folder / "vf1.sock", queues=2, timeout=SECONDS)


def owner(folder: Path) -> OwnerDriver:
    return OwnerDriver.open(folder / "pf.sock", timeout=SECONDS)


def write(disk: BlockDriver, sector: int, data: bytes, queue: int = 0) -> BlockRequest:
    """Submit a write; its request."""
    buffer = disk.device.memory.allocate(len(data))
    buffer.view[:] = list(data)
    return disk.submit(1, sector, buffer, queue=queue, owns_data=True)


def test_nobody_waits_for_a_slow_read(folder: Path, gates: Gates[Kind]) -> None:
    """Neither the owner, nor a neighbour, nor other requests and registers of the same function."""
    gates.close(Kind.READ)
    neighbour = Neighbour(folder / "vf2.sock")
    with owner(folder) as pf, driver(folder) as disk:
        room = disk.device.memory.allocate(512)
        room.view[:] = 0xEE
        slow = disk.submit(0, 3, room)
        gates.wait(Kind.READ)
        assert pf.mode_get(1) == ACTIVE
        neighbour.answers()
        assert disk.device.status == 15
        disk.write(5, NEW)
        disk.flush()
        assert slow.status is None
        assert set(room.view.tolist()) == {0xEE}
        gates.open(Kind.READ)
        disk.finish(slow)
        assert room.view.tobytes() == OLD
    neighbour.close()


def test_stop_waits_for_what_is_under_way(folder: Path, gates: Gates[Kind], image: Path) -> None:
    """MODE_SET(stop) is answered after the write, and then the file has it; the PF's other work goes on."""
    gates.close(Kind.WRITE)
    neighbour = Neighbour(folder / "vf2.sock")
    with owner(folder) as pf, driver(folder) as disk:
        request = write(disk, 0, NEW)
        gates.wait(Kind.WRITE)
        pending = pf.submit(1, 1, data=bytes([STOP]) + bytes(7))
        neighbour.answers()
        assert pf.device.status == 15
        assert not pf.admin.done(pending)
        gates.open(Kind.WRITE)
        assert pf.admin.wait(pending, timeout=SECONDS).status == 0
        assert disk.queues[0].device_used_idx == 1
        disk.finish(request)
        assert image.read_bytes()[:512] == NEW
        pf.mode_set(1, ACTIVE)
        assert disk.read(0).tobytes() == NEW
    neighbour.close()


def test_stop_waits_for_the_flush(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file's last fdatasync is no business of the PF's thread."""
    begun, go = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        begun.set()
        assert go.wait(SECONDS)
        real(fd)

    with owner(folder) as pf, driver(folder) as disk:
        disk.write(0, NEW)
        monkeypatch.setattr(os, "fdatasync", slow)
        pending = pf.submit(1, 1, data=bytes([STOP]) + bytes(7))
        assert begun.wait(SECONDS)
        assert pf.device.status == 15
        assert not pf.admin.done(pending)
        request = write(disk, 1, NEW)
        go.set()
        assert pf.admin.wait(pending, timeout=SECONDS).status == 0
        assert request.status is None
        pf.mode_set(1, ACTIVE)
        disk.finish(request)


def test_a_disk_that_can_not_be_flushed_is_not_stopped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """MODE_SET is refused and the VF goes on; its guest is told by its own flushes."""

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    with owner(folder) as pf, driver(folder) as disk:
        disk.write(0, NEW)
        monkeypatch.setattr(os, "fdatasync", fail)
        with pytest.raises(AdminError):
            pf.mode_set(1, STOP)
        assert pf.mode_get(1) == ACTIVE
        assert disk.read(0).tobytes() == NEW
        flush = disk.submit(4, 0, None)
        disk.completions()
        assert flush.status == 1


def test_a_write_record_has_the_disk_flushed_ahead(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests and commands go on meanwhile, and the stop of the move finds nothing to flush."""
    begun, go = threading.Event(), threading.Event()
    flushed: list[int] = []
    real = os.fdatasync

    def slow(fd: int) -> None:
        begun.set()
        assert go.wait(SECONDS)
        real(fd)
        flushed.append(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    with owner(folder) as pf, driver(folder) as disk:
        pf.write_record_start(1)
        disk.write(0, NEW)
        assert begun.wait(SECONDS)
        assert disk.read(0).tobytes() == NEW
        assert pf.mode_get(1) == ACTIVE
        go.set()
        until(lambda: len(flushed) == 1, "flushed ahead")
        pf.mode_set(1, STOP)
        assert len(flushed) == 1
        pf.mode_set(1, ACTIVE)
        pf.write_record_stop(1)
        disk.write(0, OLD)
        disk.flush()
        assert len(flushed) == 2


def test_a_disk_that_can_not_be_flushed_ahead_is_not_stopped(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above, though the kernel has told of it already, and tells only once."""
    begun = threading.Event()
    real = os.fdatasync

    def fail(fd: int) -> None:
        begun.set()
        raise OSError(errno.EIO, "broken")

    with owner(folder) as pf, driver(folder) as disk:
        monkeypatch.setattr(os, "fdatasync", fail)
        pf.write_record_start(1)
        disk.write(0, NEW)
        assert begun.wait(SECONDS)
        monkeypatch.setattr(os, "fdatasync", real)
        with pytest.raises(AdminError):
            pf.mode_set(1, STOP)
        assert pf.mode_get(1) == ACTIVE
        flush = disk.submit(4, 0, None)
        disk.completions()
        assert flush.status == 1


def test_bus_master_cleared_with_a_request_under_way(folder: Path, gates: Gates[Kind]) -> None:
    """A driver that forbids the answer can't keep its owner waiting; allowed again, it gets it."""
    gates.close(Kind.READ)
    with owner(folder) as pf, driver(folder) as disk:
        room = disk.device.memory.allocate(512)
        slow = disk.submit(0, 3, room)
        gates.wait(Kind.READ)
        command = disk.device.function.config_read(4, 2)
        disk.device.function.config_write(4, 2, command & ~4)
        gates.open(Kind.READ)
        pf.mode_set(1, STOP)
        pf.mode_set(1, ACTIVE)
        assert slow.status is None
        disk.device.function.config_write(4, 2, command)
        disk.finish(slow)
        assert room.view.tobytes() == OLD


LEAVE = {
    "device-reset": lambda disk: disk.device.reset(),
    "function-reset": lambda disk: disk.device.connection.device_reset(),
    "hang-up": lambda disk: disk.close(),
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
def test_the_next_driver_comes_after_the_last_ones_write(
    folder: Path, gates: Gates[Kind], image: Path, leave: Callable[[BlockDriver], None]
) -> None:
    """A write of the driver before does not overtake one of the next, whatever ended the driver."""
    gates.close(Kind.WRITE)
    with driver(folder) as disk:
        for number in range(8):
            write(disk, number, b"x" * 512, number % 2)
        gates.wait(Kind.WRITE, 4)
        leave(disk)
    with driver(folder) as disk:
        requests = [write(disk, number, NEW, number % 2) for number in range(8)]
        assert disk.device.status == 15
        assert len(gates.begun) == 4
        gates.open(Kind.WRITE)
        for request in requests:
            disk.finish(request)
        assert disk.read(0, 9).tobytes() == NEW * 8 + OLD
        assert len([job for job in gates.begun if job.kind is Kind.WRITE]) == 12


def test_a_reset_leaves_no_answer_behind(folder: Path, gates: Gates[Kind]) -> None:
    """A read that ends after the reset writes neither data nor status nor a used element."""
    gates.close(Kind.READ)
    with driver(folder) as disk:
        room = disk.device.memory.allocate(512)
        room.view[:] = 0xEE
        request = disk.submit(0, 0, room)
        queue = disk.queues[0]
        gates.wait(Kind.READ)
        disk.device.reset()
        gates.open(Kind.READ)
        with owner(folder) as pf:
            # The file is let go behind the read.
            pf.mode_set(1, STOP)
            pf.mode_set(1, ACTIVE)
        assert set(room.view.tolist()) == {0xEE}
        assert request.frame.view[-1] == 0xFF
        assert queue.device_used_idx == 0


def test_a_queue_reset_waits_alone(folder: Path, gates: Gates[Kind]) -> None:
    """The other queue works on; the one that was reset takes its first request behind its old write."""
    gates.close(Kind.WRITE)
    with driver(folder) as disk:
        write(disk, 0, b"x" * 512, 1)
        gates.wait(Kind.WRITE)
        disk.device.reset_queue(1)
        assert disk.read(9).tobytes() == OLD
        queue = disk.queues[1] = disk.device.setup_queue(1)
        request = write(disk, 0, NEW, 1)
        assert disk.read(9).tobytes() == OLD
        assert (len(gates.begun), queue.device_used_idx) == (3, 0)
        gates.open(Kind.WRITE)
        disk.finish(request)
        assert disk.read(0).tobytes() == NEW


def test_many_more_than_there_are_threads(folder: Path, gates: Gates[Kind], image: Path) -> None:
    """A full queue of requests of all sizes ends, each with its own data."""
    with driver(folder) as disk:
        requests = [
            write(disk, 16 * number, bytes([number]) * 512 * (1 + number % 16)) for number in range(80)
        ]
        for request in requests:
            disk.finish(request)
        assert disk.in_flight == 0
        for number in range(80):
            size = 512 * (1 + number % 16)
            assert disk.read(16 * number, 1 + number % 16).tobytes() == bytes([number]) * size
