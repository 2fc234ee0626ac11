"""virtio-blk: requests, their answers, and where the data ends up. virtio 1.4, "Block Device"."""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import VERSION_1, WRITE, Grip, driven
from tests.wire.running import stop
from vfu_client.drivers.block import BlockDriver, BlockError
from vfu_client.owner.owner import OwnerDriver
from vfu_client.virtio.function import VirtioPci
from vfu_client.virtio.packed import PackedQueue
from vfu_server.disks.options import disk_option

BOTH = pytest.mark.parametrize("name", ["pf", "vf1"])
IOERR, UNSUPP = 1, 2
ACTIVE, STOP = 0, 1
RING_PACKED, IN_ORDER = 34, 35
SECTORS = 2048


@contextlib.contextmanager
def io_error() -> Iterator[None]:
    """Asserts that the request in the block fails, with IOERR."""
    with pytest.raises(BlockError) as caught:
        yield
    assert caught.value.status == IOERR


@BOTH
def test_reads_what_was_written(shared: ServerProcess, name: str) -> None:
    with BlockDriver.open(shared.socket(name)) as disk:
        assert disk.capacity == SECTORS
        data = random.Random(1).randbytes(5 * 512)
        disk.write(7, data)
        assert disk.read(7, 5).tobytes() == data
        assert disk.read(9).tobytes() == data[1024:1536]
        disk.write(SECTORS - 1, data[:512])
        assert disk.read(SECTORS - 1).tobytes() == data[:512]
        disk.flush()


@BOTH
def test_id(shared: ServerProcess, name: str) -> None:
    with BlockDriver.open(shared.socket(name)) as disk:
        assert disk.get_id() == f"pymodel-{name}".encode()


@pytest.mark.parametrize("size", [0, 1, 19, 20, 21, 64])
def test_id_into_other_buffers(shared: ServerProcess, size: int) -> None:
    """At most 20 bytes, cut to the buffer; the status is in the very last byte."""
    with driven(shared.socket("vf1")) as block:
        room = block.room(size + 1)
        block.request((block.header(8), False), (room, True))
        _, written = block.wait_used()
        serial = b"pymodel-vf1".ljust(20, b"\0")[:size]
        assert room.view.tobytes() == serial.ljust(size, b"\xee") + b"\0"
        assert written == (size + 1 if size <= 20 else 0)


@pytest.mark.spec("Write Flag")
@pytest.mark.parametrize("order", [(), (IN_ORDER,)], ids=["any-order", "in-order"])
def test_a_status_was_written_whatever_the_length_says(shared: ServerProcess, order: tuple[int, ...]) -> None:
    """A packed ring's used descriptor says WRITE for every request: each has at least its status written."""
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        device.initialize(wanted=(VERSION_1, RING_PACKED, *order))
        queue = device.setup_queue(0, size=8)
        assert isinstance(queue, PackedQueue)
        device.driver_ok()
        grip = Grip(device)
        place = 0
        for turn, (kind, sector, size, status, length) in enumerate(
            [
                (0, SECTORS, 512, 1, 0),  # a read at the capacity
                (0, 0, 512, 0, 513),
                (0, 0, 511, 1, 0),  # no whole sectors
                (0xFFFF_FFFF, 0, 512, 2, 0),
                (2, 0, 0, 2, 1),
                (8, 0, 20, 0, 21),
                (8, 0, 64, 0, 0),  # the serial number, a gap, the status
                (4, 0, 0, 0, 1),
            ]
        ):
            room = grip.room(size + 1)
            queue.add([grip.header(kind, sector).segment], [room.segment])
            queue.kick()
            (done,) = queue.wait(10)
            assert (room.view[-1], done.length) == (status, length), turn
            assert int(queue.desc[place]["flags"]) & WRITE, turn
            place = (place + 2) % 8


@pytest.mark.parametrize("kind", [2, 3, 5, 7, 9, 11, 13, 0xFFFF_FFFF])
def test_unknown_types(shared: ServerProcess, kind: int) -> None:
    """UNSUPP, and no data byte is touched."""
    with driven(shared.socket("vf1")) as block:
        room, status = block.room(512), block.room(1)
        block.request((block.header(kind), False), (room, True), (status, True))
        block.wait_used()
        assert status.view[0] == UNSUPP
        assert set(room.view.tolist()) == {0xEE}


@BOTH
@pytest.mark.parametrize(
    ("sector", "size"),
    [
        (SECTORS, 512),
        (SECTORS - 1, 1024),
        ((1 << 64) - 1, 512),
        (1 << 55, 512),  # times 512 wraps to 0 in 64 bits
        (0, 1),
        (0, 511),
        (0, 513),
        (0, (SECTORS + 1) * 512),
    ],
)
def test_beyond_the_disk_or_off_its_sectors(shared: ServerProcess, name: str, sector: int, size: int) -> None:
    """IOERR for reads and writes alike; the read's buffer and the disk are untouched."""
    with driven(shared.socket(name)) as block:
        room, status = block.room(size), block.room(1)
        block.request((block.header(0, sector), False), (room, True), (status, True))
        assert block.wait_used()[1] == 0
        assert status.view[0] == IOERR
        assert set(room.view[:4096].tolist()) == {0xEE}
        status.view[0] = 0xEE
        block.request((block.header(1, sector), False), (room, False), (status, True))
        block.wait_used()
        assert status.view[0] == IOERR
        assert block.device.status == 15


def test_used_lengths(shared: ServerProcess) -> None:
    """Bytes written from the first writable one on: data and status for a read, the status else."""
    with driven(shared.socket("vf1")) as block:
        for kind, size, length in ((0, 1024, 1025), (4, 0, 1), (0, 0, 1)):
            parts = [(block.header(kind), False), (block.room(1), True)]
            if size:
                parts.insert(1, (block.room(size), True))
            block.request(*parts)
            assert block.wait_used()[1] == length
        block.request((block.header(1), False), (block.room(512), False), (block.room(1), True))
        assert block.wait_used()[1] == 1


@pytest.mark.parametrize("vf", [1, 2])
def test_a_disk_for_each_function(serve: Callable[..., ServerProcess], tmp_path: Path, vf: int) -> None:
    """--disk for all, and for one; what a guest writes is in the file, and only in its own."""
    shared, own = tmp_path / "shared.img", tmp_path / "own.img"
    for path, size in ((shared, 64), (own, 32)):
        path.write_bytes(bytes(size * 512))
    server = serve("--vfs", "2", "--disk", str(shared), "--disk", f"vf{vf}={own}")
    with BlockDriver.open(server.socket(f"vf{vf}")) as disk:
        assert disk.capacity == 32
        disk.write(31, b"own!" * 128)
        disk.flush()
    with BlockDriver.open(server.socket("pf")) as disk:
        assert disk.capacity == 64
        disk.write(5, b"pf! " * 256)
        disk.flush()
    with BlockDriver.open(server.socket(f"vf{3 - vf}")) as disk:
        assert disk.read(5).tobytes() == b"pf! " * 128
    assert own.read_bytes() == bytes(31 * 512) + b"own!" * 128
    assert shared.read_bytes() == bytes(5 * 512) + b"pf! " * 256 + bytes(57 * 512)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write a read-only file")
def test_read_only_file(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """F_RO is offered, writes fail, reads and flushes do not."""
    image = tmp_path / "ro.img"
    image.write_bytes(b"r" * 4096)
    image.chmod(0o444)
    server = serve("--vfs", "1", "--disk", str(image))
    with BlockDriver.open(server.socket("vf1")) as disk:
        assert disk.device.common.features() >> 5 & 1
        with io_error():
            disk.write(0, b"w" * 512)
        assert disk.read(0).tobytes() == b"r" * 512
        disk.flush()


def test_file_that_shrinks(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """A file cut under the server's feet is an I/O error to the guest, and a line in the log."""
    image = tmp_path / "cut.img"
    image.write_bytes(b"x" * 65536)
    server = serve("--vfs", "1", "--disk", str(image))
    with BlockDriver.open(server.socket("vf1")) as disk:
        assert disk.read(100).tobytes() == b"x" * 512
        os.truncate(image, 4096)
        with io_error():
            disk.read(100)
        assert disk.read(0).tobytes() == b"x" * 512
        with io_error():
            disk.write(127, b"y" * 512)
        with io_error():
            disk.flush()
        assert image.read_bytes() == b"x" * 4096
    server.wait_log("shorter than it was")


def test_a_write_does_not_bring_a_cut_file_back(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """A write is what notices: behind it, what was lost would read as zeroes."""
    image = tmp_path / "cut.img"
    image.write_bytes(b"x" * (1 << 20))
    server = serve("--vfs", "1", "--disk", str(image))
    with BlockDriver.open(server.socket("vf1")) as disk:
        assert disk.read(500).tobytes() == b"x" * 512
        os.truncate(image, 4096)
        with io_error():
            disk.write(1000, b"y" * 512)
        assert image.stat().st_size == 4096
        with io_error():
            disk.read(500)


def test_full_of_errors(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """A file system that is full: an I/O error for the write, and all else goes on."""
    mounted = tmp_path / "full"
    mounted.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", mounted], check=False).returncode:
        pytest.skip("a file system can't be mounted here")
    try:
        server = serve("--vfs", "1", "--disk", f"{mounted}/disk.img,size=1M")
        with BlockDriver.open(server.socket("vf1")) as disk:
            disk.write(0, b"f" * 4096)
            with io_error():
                disk.write(8, b"f" * (128 << 10))
            assert disk.read(0, 8).tobytes() == b"f" * 4096
            disk.discard((0, 2048))
            disk.write(1024, b"g" * 4096)
            disk.flush()
        stop(server)
    finally:
        subprocess.run(["umount", mounted], check=True)


@pytest.mark.parametrize("backend", ["ram:1M", "disk,,1.img,size=1M", "disk,,1.img,size=1M,direct"])
def test_zeroes_and_discards(serve: Callable[..., ServerProcess], tmp_path: Path, backend: str) -> None:
    """On every kind of disk; a comma in a file's name is written twice."""
    if "direct" in backend and not takes_direct(tmp_path):
        pytest.skip("this file system has no O_DIRECT")
    server = serve("--vfs", "1", "--disk", backend if "ram" in backend else f"{tmp_path}/{backend}")
    assert "ram" in backend or (tmp_path / "disk,1.img").stat().st_size == 1 << 20
    with BlockDriver.open(server.socket("vf1")) as disk:
        disk.write(0, b"w" * (64 << 10))
        disk.write_zeroes((0, 8), (16, 8))
        disk.write_zeroes((32, 8), unmap=True)
        disk.discard((48, 8))
        disk.flush()
        content = disk.read(0, 64).tobytes()
        for sector in (0, 16, 32):
            assert content[sector * 512 : sector * 512 + 8192] == bytes(4096) + b"w" * 4096
        assert content[56 * 512 :] == b"w" * 4096
        assert disk.writeback
        disk.writeback = False
        disk.write(9, b"t" * 512)
        assert not disk.writeback
        assert disk.read(9).tobytes() == b"t" * 512


def takes_direct(folder: Path) -> bool:
    try:
        os.close(os.open(folder / "probe", os.O_RDWR | os.O_CREAT | os.O_DIRECT))
    except OSError:
        return False
    return True


def test_read_only_by_option(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """F_RO is offered, writes fail, nothing that writes is offered."""
    image = tmp_path / "ro.img"
    image.write_bytes(b"r" * 4096)
    server = serve("--vfs", "1", "--disk", f"{image},readonly")
    with BlockDriver.open(server.socket("vf1")) as disk:
        offered = disk.device.common.features()
        assert (offered >> 5 & 1, offered >> 13 & 3) == (1, 0)
        with io_error():
            disk.write(0, b"w" * 512)
        assert disk.read(0).tobytes() == b"r" * 512
        disk.flush()


def test_a_disk_goes_from_server_to_server(serve: Callable[..., ServerProcess], tmp_path: Path) -> None:
    """The second server's VF waits for the file until the first one's is stopped, which may have it back."""
    image = tmp_path / "shared.img"
    options = ("--vfs", "1", "--disk", f"{image},size=1M", "--disk", "pf=ram:1M")
    first, second = serve(*options), serve(*options)
    with (
        OwnerDriver.open(first.socket("pf")) as here,
        OwnerDriver.open(second.socket("pf")) as there,
        BlockDriver.open(first.socket("vf1")) as source,
        BlockDriver.open(second.socket("vf1")) as target,
    ):
        source.write(0, b"s" * 512)
        buffer = target.device.memory.allocate(512)
        early = target.submit(0, 0, buffer)
        second.wait_log("in use by another program")
        assert target.queues[0].device_used_idx == 0
        # What waits for the file is no reason to keep an owner waiting.
        there.mode_set(1, STOP)
        there.mode_set(1, ACTIVE)
        here.mode_set(1, STOP)
        target.finish(early)
        assert buffer.view.tobytes() == b"s" * 512
        target.write(1, b"t" * 512)
        there.mode_set(1, STOP)
        assert image.read_bytes()[512:1024] == b"t" * 512
        # A move that failed: the source goes on.
        here.mode_set(1, ACTIVE)
        assert source.read(1).tobytes() == b"t" * 512
        source.write(2, b"u" * 512)
    # A client that left has no disk any more.
    with BlockDriver.open(second.socket("vf1")) as target, OwnerDriver.open(second.socket("pf")) as there:
        there.mode_set(1, ACTIVE)
        assert target.read(2).tobytes() == b"u" * 512


@pytest.mark.parametrize(
    ("option", "complaint"),
    [
        ("x.img,size=12", "no multiple of 512"),
        ("x.img,sise=1M", "options of a file are"),
        ("ram:1M,readonly", "no options"),
        (",size=1M", "no file is named"),
    ],
)
def test_bad_disks(option: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=complaint):
        disk_option(option)


@pytest.mark.skipif(
    "libasan" in os.environ.get("LD_PRELOAD", ""),
    reason="AddressSanitizer has shadows all over the address space",
)
def test_no_memory_for_a_chunk_fails_the_request_and_no_more(serve: Callable[..., ServerProcess]) -> None:
    """As in a container that is full: an IOERR for each that needs memory, until there is some again."""
    server = serve("--vfs", "1", "--disk", "ram:1G")
    pid, chunk = server.process.pid, 8192
    with BlockDriver.open(server.socket("vf1")) as disk, BlockDriver.open(server.socket("pf")) as other:
        disk.write(0, b"\x11" * 512)
        before = resource.prlimit(pid, resource.RLIMIT_AS)
        taken = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * resource.getpagesize()
        resource.prlimit(pid, resource.RLIMIT_AS, (taken + (40 << 20), before[1]))
        with io_error():
            for number in range(1, 256):
                disk.write(number * chunk, b"\x22" * 512)
        last = number
        assert last > 1
        with io_error():
            disk.write(last * chunk, b"\x33" * 512)
        # What there is can be read and written, a neighbour too.
        assert disk.read(0).tobytes() == b"\x11" * 512
        disk.write(1, b"\x44" * 512)
        assert other.read(0).tobytes() == bytes(512)
        assert disk.read(last * chunk).tobytes() == bytes(512)
        resource.prlimit(pid, resource.RLIMIT_AS, before)
        disk.write(last * chunk, b"\x55" * 512)
        assert disk.read(last * chunk).tobytes() == b"\x55" * 512
