"""Writes that are longer than what is copied at a time: in parts, and yet each as one request."""

from __future__ import annotations

import contextlib
import random
import resource
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Self

import pytest

from tests.server_process import ServerProcess
from tests.wire.disks.in_process import kinds_taken, served
from tests.wire.running import until
from vfu_client.drivers.block import FEATURES, BlockDriver, BlockRequest
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import KNOWN_FEATURES
from vfu_server.datapath import COMPILED

OUT = 1
OK, IOERR = 0, 1
ACTIVE, STOP, FREEZE = 0, 1, 2
RING_PACKED = 34
KIB, MIB = 1 << 10, 1 << 20
SIZE = 32 * MIB
MEMORY = 64 * MIB
LENGTHS = [
    512,
    256 * KIB - 512,
    256 * KIB,
    256 * KIB + 512,
    600 * KIB,
    MIB,
    MIB + 512,
    3 * MIB,
    4 * MIB,
    4 * MIB + 512,
]
ROUNDS = 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(SIZE))
    return path


@pytest.fixture
def folder(image: Path) -> Iterator[Path]:
    """A PF and two VFs; VF 1 stands on the image."""
    with served(image, SIZE, queues=1) as path:
        yield path


@contextlib.contextmanager
def opened(path: Path, *, packed: bool = False) -> Iterator[BlockDriver]:
    """A driver with room for many of them."""
    features = (KNOWN_FEATURES | FEATURES) - (set() if packed else {RING_PACKED})
    memory = GuestMemory()
    memory.add_region(MEMORY)
    with (
        contextlib.closing(memory),
        BlockDriver.open(path, memory=memory, features=features, posted_writes=True, timeout=30) as disk,
    ):
        yield disk


def write(disk: BlockDriver, offset: int, data: bytes, *, kick: bool = True) -> BlockRequest:
    """Submit a write in one piece; its request."""
    buffer = disk.device.memory.allocate(len(data))
    buffer.view[:] = memoryview(data)
    return disk.submit(OUT, offset // 512, buffer, owns_data=True, kick=kick)


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_many_lengths_behind_one_kick(folder: Path, image: Path, packed: bool) -> None:
    rng = random.Random(11)
    with opened(folder / "vf1.sock", packed=packed) as disk:
        expected = bytearray(SIZE)
        for _ in range(3):
            requests, at = [], 0
            for length in rng.sample(LENGTHS, len(LENGTHS)):
                data = rng.randbytes(length)
                expected[at : at + length] = data
                requests.append(write(disk, at, data, kick=False))
                at += length + 512
            disk.queues[0].kick(force=True)
            for request in requests:
                disk.finish(request)
            assert image.read_bytes() == expected


@pytest.mark.parametrize("pieces", [2, 7, 60])
def test_a_write_of_many_pieces(folder: Path, image: Path, pieces: int) -> None:
    """The parts in which it is written end anywhere in those that the driver gives."""
    rng = random.Random(pieces)
    with opened(folder / "vf1.sock") as disk:
        memory = disk.device.memory
        data = rng.randbytes(2 * MIB + 512)
        cuts = sorted(rng.sample(range(1, len(data)), pieces - 1))
        header = memory.allocate(16)
        header.view[:] = list(OUT.to_bytes(8, "little") + (5).to_bytes(8, "little"))
        status = memory.allocate(1)
        buffers = []
        for start, end in zip([0, *cuts], [*cuts, len(data)], strict=True):
            # With a gap between each and the next.
            buffers.append(memory.allocate(end - start))
            memory.allocate(64)
        segments = [header.segment, *(buffer.segment for buffer in buffers)]
        for _ in range(4):
            data = rng.randbytes(len(data))
            for start, buffer in zip([0, *cuts], buffers, strict=True):
                buffer.view[:] = memoryview(data[start : start + buffer.size])
            status.view[0] = 0xEE
            disk.queues[0].add(segments, [status.segment])
            disk.queues[0].kick()
            (done,) = disk.queues[0].wait(10)
            assert (done.length, status.view[0]) == (1, OK)
            assert image.read_bytes()[5 * 512 :][: len(data)] == data


@pytest.mark.skipif(not COMPILED, reason="there is no engine")
@pytest.mark.parametrize(("length", "on_the_spot"), [(4 * MIB, True), (4 * MIB + 512, False)])
def test_how_long_they_may_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch, length: int, on_the_spot: bool
) -> None:
    """Longer ones are for the disk's threads."""
    kinds = kinds_taken(monkeypatch)
    with opened(folder / "vf1.sock") as disk:
        for _ in range(10):
            disk.finish(write(disk, 0, b"x" * length))
    # The device takes the first one itself, and those that are there before its thread is done with that.
    assert (len(kinds) < 10) == on_the_spot


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_a_write_that_fails_in_the_middle(image: Path, packed: bool) -> None:
    """It says so, as a whole; those behind it are made."""
    with ServerProcess("--vfs", "1", "--disk", f"vf1={image}", "--disk", "pf=ram:1M") as server:
        with opened(server.socket("vf1"), packed=packed) as disk:
            disk.finish(write(disk, 0, b"a" * 4096))
            resource.prlimit(server.process.pid, resource.RLIMIT_FSIZE, (5 * MIB, resource.RLIM_INFINITY))
            requests = [
                write(disk, at, letter * (2 * MIB), kick=False)
                for at, letter in ((0, b"b"), (4 * MIB, b"c"), (20 * MIB, b"d"), (2 * MIB, b"e"))
            ]
            disk.queues[0].kick(force=True)
            while disk.in_flight:
                disk.completions(10)
            assert [request.status for request in requests] == [OK, IOERR, IOERR, OK]
            resource.prlimit(
                server.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY)
            )
            disk.finish(write(disk, 20 * MIB, b"f" * (2 * MIB)))
        assert server.stop(signal.SIGTERM) == 0
        assert "File too large" in server.log
    content = image.read_bytes()
    assert content[: 2 * MIB] == b"b" * (2 * MIB)
    assert content[2 * MIB : 4 * MIB] == b"e" * (2 * MIB)
    # Of the failed one, up to the limit.
    assert content[4 * MIB : 5 * MIB] == b"c" * MIB
    assert not any(content[5 * MIB : 20 * MIB])
    assert content[20 * MIB : 22 * MIB] == b"f" * (2 * MIB)


class Writing:
    """A driver that has long writes of its own byte under way all the time, until it is told to stop."""

    def __init__(self, disk: BlockDriver) -> None:
        self.disk = disk
        self.failed: list[int | None] = []
        self.count = 0
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()

    def wait_for_more(self) -> None:
        """Wait until some more have ended."""
        enough = self.count + 4
        until(lambda: self.count > enough, "traffic")

    def _work(self) -> None:
        data = [bytes([0xA0 + number]) * (2 * MIB) for number in range(4)]
        while not self._enough.is_set():
            requests = [write(self.disk, 2 * MIB * number, each) for number, each in enumerate(data)]
            for request in requests:
                while request.status is None:
                    self.disk.completions(30)
                if request.status != OK:
                    self.failed.append(request.status)
                self.count += 1


@pytest.mark.spec("DEV-14")
def test_stop_comes_between_two_parts(folder: Path, image: Path) -> None:
    """MODE_SET(stop) is answered when what was begun is written: the file changes no more after that."""
    with (
        OwnerDriver.open(folder / "pf.sock", timeout=30) as pf,
        opened(folder / "vf1.sock") as disk,
        Writing(disk) as writing,
    ):
        for _ in range(ROUNDS):
            writing.wait_for_more()
            pf.mode_set(1, STOP)
            content = image.read_bytes()[: 8 * MIB]
            assert {len(set(content[at : at + 2 * MIB])) for at in range(0, 8 * MIB, 2 * MIB)} <= {1}
            pf.mode_set(1, FREEZE)
            image.write_bytes(bytes(SIZE))
            assert not any(image.read_bytes())
            pf.mode_set(1, ACTIVE)
        assert writing.failed == []


LEAVE: dict[str, Callable[[OwnerDriver, BlockDriver], None]] = {
    "vf-enable-off": lambda pf, disk: pf.sriov.disable(),
    "hang-up": lambda pf, disk: disk.close(),
    "device-reset": lambda pf, disk: disk.device.reset(),
}


@pytest.mark.parametrize("leave", LEAVE.values(), ids=LEAVE)
def test_a_driver_that_leaves(image: Path, leave: Callable[[OwnerDriver, BlockDriver], None]) -> None:
    """What was left of its writes never reaches the file behind a write of the next driver.

    VF Enable is the PF's, so it may come between two parts.
    """
    with (
        ServerProcess("--vfs", "1", "--disk", f"vf1={image}", "--disk", "pf=ram:1M") as server,
        OwnerDriver.open(server.socket("pf"), timeout=30) as pf,
    ):
        path = server.socket("vf1")
        for _ in range(ROUNDS):
            with opened(path) as disk, contextlib.suppress(OSError):
                disk.finish(write(disk, 0, b"o" * 512))
                for number in range(4):
                    write(disk, 4 * MIB * number, b"o" * (4 * MIB), kick=False)
                disk.queues[0].kick(force=True)
                leave(pf, disk)
            if not pf.sriov.enabled:
                # The sockets go and come behind the register.
                until(lambda: not path.exists(), "no VF")
                pf.enable_vfs(1)
                until(path.exists, "a new VF")
            with opened(path) as successor:
                requests = [write(successor, 4 * MIB * number, b"n" * (4 * MIB)) for number in range(4)]
                for request in requests:
                    successor.finish(request)
                assert image.read_bytes()[: 16 * MIB] == b"n" * (16 * MIB)
