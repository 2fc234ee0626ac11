"""Disks of NBD servers: what they are asked, and what becomes of requests when they go away."""

from __future__ import annotations

import argparse
import errno
import fcntl
import os
import resource
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pymodel.devices.block.disk import Job, Kind, Shape
from tests.server_process import ServerError, ServerProcess
from tests.storage_daemon import DAEMON, StorageDaemon, make_qcow2
from tests.wire.disks.disk_user import User, filled
from tests.wire.disks.nbd_server import (
    CAN_FLUSH,
    CAN_FUA,
    EVERYTHING,
    FLUSH,
    HAS_FLAGS,
    READ,
    READ_ONLY,
    TRIM,
    WRITE,
    ZERO,
    NbdServer,
)
from vfu_server.disks import libnbd, nbd_connection
from vfu_server.disks.libnbd import MissingError
from vfu_server.disks.nbd_disk import NbdDisk
from vfu_server.disks.options import disk_option, open_disks

FUA, NO_HOLE = 1, 2

ESHUTDOWN = 108
"""NBD_ESHUTDOWN."""

try:
    libnbd.library()
except MissingError as error:
    pytest.skip(f"{error}, or `python3 -m images libnbd`", allow_module_level=True)

WITH_DAEMON = pytest.mark.skipif(
    not DAEMON.exists(),
    reason="there is no qemu-storage-daemon in build/images: `make images` makes one ready",
)

PATIENT = 60
"""Seconds that a server in these tests is never away for."""


@pytest.fixture
def folder() -> Iterator[Path]:
    """One with a short name, for sockets."""
    with tempfile.TemporaryDirectory(prefix="nbd-") as name:
        yield Path(name)


@pytest.fixture
def server(folder: Path) -> Iterator[NbdServer]:
    with NbdServer(folder / "s") as running:
        yield running


@pytest.fixture
def users(server: NbdServer) -> Iterator[Callable[..., User]]:
    """Disks of `server` in use; each is let go when the test is over."""
    made: list[User] = []

    def use(patience: float = 0, *, read_only: bool = False) -> User:
        made.append(User(NbdDisk(server.uri, patience=patience, read_only=read_only)))
        server.asked.clear()
        return made[-1].open()

    yield use
    server.answer = lambda _: 0
    server.stop()
    for user in made:
        user.disk.abandon()
        user.wait(user.disk.release)


def kinds(server: NbdServer) -> list[tuple[int, int]]:
    return [(each.kind, each.flags) for each in server.asked]


def await_back(user: User) -> None:
    """Until reads are answered again."""
    while user.do(Kind.READ, 0, filled(512, 0)).error is not None:
        pass


# --- a real server ---------------------------------------------------------------------------------


@WITH_DAEMON
def test_reads_and_writes(folder: Path) -> None:
    """All kinds of requests, each byte where it belongs, on a raw file of qemu-storage-daemon."""
    image = folder / "disk.img"
    image.write_bytes(bytes(range(256)) * 4096)
    with StorageDaemon(image, folder) as daemon:
        user = User(NbdDisk(daemon.uri)).open()
        assert (user.disk.size, user.disk.read_only, user.disk.in_order) == (1 << 20, False, False)
        data = filled(1024, 0)
        assert user.do(Kind.READ, 512, data).error is None
        assert data.tobytes() == image.read_bytes()[512:1536]
        assert user.do(Kind.WRITE, 1024, filled(1024, 9)).error is None
        assert user.do(Kind.WRITE, 8192, filled(512, 8), durable=True).error is None
        assert user.do(Kind.FLUSH).error is None
        assert image.read_bytes()[1020:1028] == b"\xfc\xfd\xfe\xff\x09\x09\x09\x09"
        assert image.read_bytes()[8191:8193] == b"\xff\x08"
        assert user.do(Kind.ZERO, 512, 512).error is None
        assert user.do(Kind.ZERO, 65536, 65536, unmap=True, durable=True).error is None
        assert user.do(Kind.DISCARD, 262144, 65536).error is None
        user.release()
        content = image.read_bytes()
        assert content[511:513] + content[1023:1024] == b"\xff\0\0"
        assert content[65535:65537] + content[131072:131074] == b"\xff\0\0\x01"
        assert image.stat().st_blocks * 512 < 1 << 20
        again = User(NbdDisk(daemon.uri, read_only=True)).open()
        assert again.disk.read_only
        again.release()


@WITH_DAEMON
def test_qcow2(folder: Path) -> None:
    """What a server opens as qcow2 is a raw disk here; one that is served as it is, is none."""
    image = folder / "disk.qcow2"
    make_qcow2(image, 64 << 20)
    with StorageDaemon(image, folder, driver="qcow2") as daemon:
        user = User(NbdDisk(daemon.uri)).open()
        assert user.disk.size == 64 << 20
        assert user.do(Kind.WRITE, 32 << 20, filled(4096, 7)).error is None
        user.release()
    with StorageDaemon(image, folder, driver="qcow2", writable=False) as daemon:
        user = User(NbdDisk(daemon.uri)).open()
        assert user.disk.read_only
        data = filled(4096, 0)
        assert user.do(Kind.READ, 32 << 20, data).error is None
        assert data.tobytes() == b"\x07" * 4096
        user.release()
    with StorageDaemon(image, folder) as daemon:
        with pytest.raises(ValueError, match="looks like qcow2: have the server open it as that"):
            NbdDisk(daemon.uri)
        assert NbdDisk(daemon.uri, any_content=True).size == image.stat().st_size // 512 * 512


# --- what a server is asked ------------------------------------------------------------------------


def test_durable_writes_carry_fua(users: Callable[..., User], server: NbdServer) -> None:
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1), durable=True)
    user.do(Kind.ZERO, 0, 512, durable=True)
    user.do(Kind.WRITE, 0, filled(512, 1))
    assert kinds(server) == [(WRITE, FUA), (ZERO, FUA | NO_HOLE), (WRITE, 0)]


def test_durable_writes_without_fua(users: Callable[..., User], server: NbdServer) -> None:
    server.flags &= ~CAN_FUA
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1), durable=True)
    assert kinds(server) == [(WRITE, 0), (FLUSH, 0)]


def test_a_flush_covers_what_ended(users: Callable[..., User], server: NbdServer) -> None:
    """And asks for nothing where nothing was written since."""
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1))
    user.do(Kind.FLUSH)
    user.do(Kind.FLUSH)
    assert kinds(server) == [(WRITE, 0), (FLUSH, 0)]


def test_zeroes_and_holes(users: Callable[..., User], server: NbdServer) -> None:
    user = users()
    user.do(Kind.ZERO, 0, 1024)
    user.do(Kind.ZERO, 0, 1024, unmap=True)
    user.do(Kind.DISCARD, 0, 1024)
    assert kinds(server) == [(ZERO, NO_HOLE), (ZERO, 0), (TRIM, 0)]


def test_a_server_that_can_only_read_and_write(users: Callable[..., User], server: NbdServer) -> None:
    """Zeroes are written; there is nothing to flush, and nothing to give back."""
    server.flags = HAS_FLAGS
    server.content[:] = b"\xff" * len(server.content)
    user = users()
    assert not user.disk.shape.frees
    user.do(Kind.ZERO, 0, 1 << 20)
    assert user.do(Kind.FLUSH).error is None
    assert not any(server.content)
    assert {each.kind for each in server.asked} == {WRITE}


def test_blocks_and_payload(users: Callable[..., User], server: NbdServer) -> None:
    """What a driver is told comes from the server; a long request is cut into what it takes."""
    server.blocks = (4096, 65536, 131072)
    user = users()
    assert user.disk.shape == Shape(block=4096, physical=4096, optimal=65536, frees=True)
    data = filled(1 << 20, 5)
    user.do(Kind.WRITE, 0, data)
    assert sorted((each.offset, each.length) for each in server.asked) == [
        (start, 131072) for start in range(0, 1 << 20, 131072)
    ]
    assert server.content == data.tobytes()


def test_several_at_a_time(users: Callable[..., User], server: NbdServer) -> None:
    """Sixteen requests are under way before the first is answered, and each gets its own answer."""
    server.content[:] = bytes(index // 512 % 251 for index in range(1 << 20))
    user = users()
    server.answer = lambda _: None
    jobs = [Job(Kind.READ, 512 * number, 512, data=filled(512, 255)) for number in range(16)]
    for job in jobs:
        user.disk.start(job)
    server.wait(lambda: len(server.asked) == 16)
    for asked in reversed(list(server.asked)):
        server.reply(asked)
    user.wait_for(jobs)
    for number, job in enumerate(jobs):
        assert job.data is not None
        assert (job.error, set(job.data.tolist())) == (None, {number})


def test_errors_of_the_server(users: Callable[..., User], server: NbdServer) -> None:
    """Each fails its request alone; a FLUSH that failed fails those after it too."""
    user = users()
    server.answer = lambda asked: errno.ENOSPC if asked.kind == WRITE else 0
    job = user.do(Kind.WRITE, 0, filled(512, 1))
    assert job.error is not None
    assert job.error.errno == errno.ENOSPC
    server.answer = lambda asked: errno.EIO if asked.kind == FLUSH else 0
    assert user.do(Kind.READ, 0, filled(512, 1)).error is None
    assert user.do(Kind.WRITE, 0, filled(512, 1)).error is None
    assert user.do(Kind.FLUSH).error is not None
    server.answer = lambda _: 0
    assert user.do(Kind.FLUSH).error is not None
    assert user.do(Kind.WRITE, 0, filled(512, 1)).error is None
    assert user.do(Kind.FLUSH).error is not None
    user.disk.abandon()
    user.open()
    user.do(Kind.WRITE, 0, filled(512, 1))
    assert user.do(Kind.FLUSH).error is None


# --- who has the disk ------------------------------------------------------------------------------


def test_connected_while_in_use(users: Callable[..., User], server: NbdServer) -> None:
    """A release flushes and says goodbye; the next driver's first request connects."""
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1))
    before = server.goodbyes
    user.release()
    server.wait(lambda: server.goodbyes == before + 1)
    assert kinds(server) == [(WRITE, 0), (FLUSH, 0)]
    connections = server.connections
    user.open()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None
    assert server.connections == connections + 1


def test_no_release_without_the_server(users: Callable[..., User], server: NbdServer) -> None:
    """What may not be durable keeps the disk here."""
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1))
    server.stop()
    with pytest.raises(OSError, match=r"data may have been lost|no connection|refused|closed"):
        user.release()
    assert user.disk.ready()


# --- a server that goes away -----------------------------------------------------------------------


def test_requests_fail_while_it_is_away(users: Callable[..., User], server: NbdServer) -> None:
    """Without patience: each that was under way fails once, those that come too, until it is back."""
    user = users()
    server.answer = lambda _: None
    jobs = [Job(Kind.WRITE, 512 * number, 512, data=filled(512, 1)) for number in range(4)]
    for job in jobs:
        user.disk.start(job)
    server.wait(lambda: len(server.asked) == 4)
    server.stop()
    user.wait_for(jobs)
    assert all(job.error is not None for job in jobs)
    assert user.do(Kind.READ, 0, filled(512, 0)).error is not None
    server.answer = lambda _: 0
    server.start()
    await_back(user)
    assert [each.kind for each in server.asked] == [WRITE] * 4 + [READ]


def test_a_flush_tells_of_a_loss(users: Callable[..., User], server: NbdServer) -> None:
    """Without patience: what was written and not flushed when it went may be lost, until a reset."""
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1))
    server.hang_up()
    await_back(user)
    assert user.do(Kind.FLUSH).error is not None


@pytest.mark.parametrize("round_", range(20))
def test_a_loss_right_behind_the_answer(users: Callable[..., User], server: NbdServer, round_: int) -> None:
    """What was acknowledged counts before its writer hears of it: no FLUSH says that it is durable."""
    user = users()
    server.answer = lambda _: None
    job = Job(Kind.WRITE, 0, 512, data=filled(512, 1))
    user.disk.start(job)
    server.wait(lambda: len(server.asked) == 1)
    server.reply(server.asked[0])
    server.hang_up()
    server.answer = lambda _: 0
    user.wait_for([job])
    flush = user.do(Kind.FLUSH)
    assert job.error is not None or flush.error is not None


def test_no_loss_where_all_is_durable(users: Callable[..., User], server: NbdServer) -> None:
    """By FUA, by a FLUSH, or as nothing was acknowledged."""
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1), durable=True)
    user.do(Kind.WRITE, 0, filled(512, 1))
    user.do(Kind.FLUSH)
    server.stop()
    assert user.do(Kind.WRITE, 0, filled(512, 1)).error is not None
    server.start()
    while user.do(Kind.WRITE, 0, filled(512, 1)).error is not None:
        pass
    assert user.do(Kind.FLUSH).error is None


def test_no_loss_on_a_server_that_can_not_flush(users: Callable[..., User], server: NbdServer) -> None:
    server.flags = HAS_FLAGS
    user = users()
    user.do(Kind.WRITE, 0, filled(512, 1))
    server.hang_up()
    await_back(user)
    assert user.do(Kind.FLUSH).error is None


def test_a_server_that_does_nothing_but_greet(users: Callable[..., User], server: NbdServer) -> None:
    """Patience ends, a reset does not wait, and it is asked less and less often."""
    user = users(0.3)
    server.answer = lambda _: ESHUTDOWN
    before = server.connections
    assert user.do(Kind.READ, 0, filled(512, 0)).error is not None
    user.disk.start(Job(Kind.READ, 0, 512, data=filled(512, 0)))
    user.disk.abandon()
    user.open()
    assert server.connections - before < 30
    server.answer = lambda _: 0
    await_back(user)


def test_a_server_that_is_shutting_down(users: Callable[..., User], server: NbdServer) -> None:
    """What it still has ends before anything is sent to its successor."""
    user = users(PATIENT)
    server.answer = lambda asked: None if asked.offset == 0 else ESHUTDOWN
    jobs = [Job(Kind.WRITE, 512 * number, 512, data=filled(512, number + 1)) for number in range(2)]
    user.disk.start(jobs[0])
    server.wait(lambda: len(server.asked) == 1)
    user.disk.start(jobs[1])
    server.wait(lambda: len(server.asked) == 2)
    before = server.connections
    server.answer = lambda _: 0
    server.reply(server.asked[0])
    user.wait_for(jobs)
    assert [job.error for job in jobs] == [None, None]
    assert [(each.kind, each.offset) for each in server.asked] == [(WRITE, 0), (WRITE, 512), (WRITE, 512)]
    assert server.connections == before + 1


def test_a_reset_while_a_stop_waits_for_it(users: Callable[..., User], server: NbdServer) -> None:
    user = users(PATIENT)
    user.do(Kind.WRITE, 0, filled(512, 1))
    server.stop()
    assert not user.disk.release()
    user.disk.abandon()
    server.start()
    user.open()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None


def test_flushes_that_found_nobody(users: Callable[..., User], server: NbdServer) -> None:
    """Who waits takes the server's word: it is asked again when it is back."""
    user = users(0.2)
    user.do(Kind.WRITE, 0, filled(512, 1))
    server.stop()
    assert user.do(Kind.FLUSH).error is not None
    server.start()
    await_back(user)
    assert user.do(Kind.FLUSH).error is None


def test_a_reset_does_not_wait_for_a_greeting(
    users: Callable[..., User], server: NbdServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = users(PATIENT)
    server.stop()
    with socket.socket(socket.AF_UNIX) as silent:
        server.path.unlink()
        silent.bind(str(server.path))
        silent.listen()
        user.disk.start(Job(Kind.READ, 0, 512, data=filled(512, 0)))
        connection, _ = silent.accept()
        with connection:
            started = time.monotonic()
            user.disk.abandon()
            user.wait(user.disk.release)
            assert time.monotonic() - started < 5
    server.start()
    user.open()


def test_descriptors_of_large_numbers(users: Callable[..., User], server: NbdServer) -> None:
    """A server with many VFs has more than the 1024 that select(2) knows."""
    least = 1100
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] <= least + 64:
        pytest.skip("the process may not have so many descriptors")
    real = os.eventfd

    def high(value: int, flags: int) -> int:
        number = real(value, flags)
        try:
            return fcntl.fcntl(number, fcntl.F_DUPFD_CLOEXEC, least)
        finally:
            os.close(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "eventfd", high)
        user = users()
    server.stop()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is not None
    server.start()
    await_back(user)


def test_requests_wait_for_it(users: Callable[..., User], server: NbdServer) -> None:
    """With patience: those under way are sent again, in order, and each is answered once."""
    user = users(PATIENT)
    server.answer = lambda _: None
    jobs = [Job(Kind.WRITE, 512 * number, 512, data=filled(512, number + 1)) for number in range(8)]
    for job in jobs:
        user.disk.start(job)
    server.wait(lambda: len(server.asked) == 8)
    first = [each.offset for each in server.asked]
    done = server.asked[3]
    server.reply(done)
    found = user.wait_for([jobs[done.offset // 512]])
    server.stop()
    later = Job(Kind.READ, 0, 512, data=filled(512, 0))
    user.disk.start(later)
    server.answer = lambda _: 0
    server.start()
    found += user.wait_for([*(job for job in jobs if job not in found), later])
    assert [job.error for job in found] == [None] * 9
    again = [each.offset for each in server.asked[8:] if each.kind == WRITE]
    assert again == [offset for offset in first if offset != done.offset]
    assert server.content[:4096:512] == bytes(range(1, 9))
    assert user.do(Kind.FLUSH).error is None


def test_patience_ends(users: Callable[..., User], server: NbdServer) -> None:
    user = users(0.2)
    server.stop()
    started = time.monotonic()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is not None
    assert time.monotonic() - started > 0.1
    assert user.do(Kind.READ, 0, filled(512, 0)).error is not None
    server.start()
    await_back(user)


def test_a_reset_does_not_wait_for_it(users: Callable[..., User], server: NbdServer) -> None:
    user = users(PATIENT)
    server.stop()
    user.disk.start(Job(Kind.WRITE, 0, 512, data=filled(512, 1)))
    user.disk.abandon()
    server.start()
    user.open()
    server.asked.clear()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None
    assert [each.kind for each in server.asked] == [READ]


def shrink(server: NbdServer) -> None:
    del server.content[-512:]


def protect(server: NbdServer) -> None:
    server.flags |= READ_ONLY


def unflush(server: NbdServer) -> None:
    server.flags &= ~CAN_FLUSH


def coarsen(server: NbdServer) -> None:
    server.blocks = (4096, 4096, 1 << 20)


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (shrink, "it has 1048064 bytes, not 1048576"),
        (protect, "it is read-only"),
        (unflush, "it has no flushes"),
        (coarsen, "its blocks are of 4096 bytes"),
    ],
)
def test_another_export_is_none(
    users: Callable[..., User],
    server: NbdServer,
    caplog: pytest.LogCaptureFixture,
    change: Callable[[NbdServer], None],
    why: str,
) -> None:
    """What comes back must be what went: nothing is written to anything else."""
    user = users()
    server.stop()
    change(server)
    server.start()
    assert user.do(Kind.WRITE, 0, filled(512, 1)).error is not None
    user.wait_until(lambda: f"not what it was when the server began: {why}" in caplog.text)
    assert server.asked == []
    assert not any(server.content)


@pytest.mark.parametrize(
    "garbage",
    [b"\xff" * 16, bytes.fromhex("67446698 00000000 ffffffffffffffff"), b"\x67", b"\0" * 4096],
    ids=["magic", "handle", "half", "zeroes"],
)
def test_garbage_is_no_answer(users: Callable[..., User], server: NbdServer, garbage: bytes) -> None:
    """The connection is given up, the request fails; the disk stays."""
    user = users()
    server.answer = lambda _: None
    job = Job(Kind.READ, 0, 512, data=filled(512, 3))
    user.disk.start(job)
    server.wait(lambda: len(server.asked) == 1)
    server.send(garbage)
    server.answer = lambda _: 0
    server.hang_up()
    user.wait_for([job])
    assert job.error is not None
    await_back(user)


# --- what there is no disk for ---------------------------------------------------------------------


def test_silence_at_the_start(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nbd_connection, "CONNECT_SECONDS", 0.1)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "silent"))
        listener.listen()
        with pytest.raises(OSError, match="does not answer"):
            NbdDisk(f"nbd+unix:///disk?socket={folder / 'silent'}")


@pytest.mark.parametrize(
    ("size", "blocks", "why"),
    [
        (1000, None, "1000 bytes, which is no multiple of 512"),
        (0, None, "0 bytes"),
        (1 << 20, (65536, 65536, 1 << 20), "has blocks of 65536 bytes"),
    ],
)
def test_no_disk(folder: Path, size: int, blocks: tuple[int, int, int] | None, why: str) -> None:
    with NbdServer(folder / "s", size) as server:
        server.blocks = blocks
        with pytest.raises(ValueError, match=why):
            NbdDisk(server.uri)


def test_read_only_export(users: Callable[..., User], server: NbdServer) -> None:
    server.flags = EVERYTHING | READ_ONLY
    user = users()
    assert user.disk.read_only
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None


def test_without_the_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(libnbd, "SONAME", "libnbd.so.of-no-system")
    libnbd.library.cache_clear()
    try:
        with pytest.raises(MissingError, match="apt-get install libnbd0"):
            NbdDisk("nbd://127.0.0.1/disk")
    finally:
        libnbd.library.cache_clear()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (
            "nbd://h/e,size=64M",
            "options of an NBD server's disk are readonly, format=raw, reconnect-delay=SEC",
        ),
        ("nbd://h/e,direct", "options of an NBD server's disk are"),
        ("nbd://h/e,reconnect-delay=-1", "whole seconds up to 3600"),
        ("nbd://h/e,reconnect-delay=3601", "whole seconds up to 3600"),
        ("nbd://h/e,reconnect-delay=", "whole seconds up to 3600"),
        ("nbd://h/e,format=qcow2", "only raw images are served"),
        ("disk.img,reconnect-delay=1", "options of a file are size=SIZE"),
    ],
)
def test_wrong_options(text: str, why: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=why):
        disk_option(text)


def test_options(server: NbdServer) -> None:
    function, choice = disk_option(f"vf1={server.uri},readonly,reconnect-delay=7")
    assert (function, choice.uri, choice.file) == ("vf1", server.uri, None)
    assert (choice.read_only, choice.patience, choice.raw) == (True, 7, False)
    disk = open_disks({"vf1": choice})["vf1"]
    assert (disk.size, disk.read_only) == (1 << 20, True)
    assert disk_option("nbd://h/a,,b,format=raw")[1].uri == "nbd://h/a,b"
    assert disk_option("./nbd:x")[1].file == Path("nbd:x")


def test_a_server_says_which_disk_is_not_there(folder: Path) -> None:
    """The command ends with the address and the reason, and no traceback."""
    uri = f"nbd+unix:///disk?socket={folder / 'nobody'}"
    with pytest.raises(ServerError) as caught, ServerProcess("--disk", uri):
        pass
    assert uri in str(caught.value)
    assert "No such file or directory" in str(caught.value)
    assert "Traceback" not in str(caught.value)
