"""Disks in files: every byte where it belongs, nothing waits on the caller's thread, and who has the file."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from pymodel.devices.block.disk import Job, Kind
from pymodel.memory import Bytes
from tests.wire.disks.disk_user import SECONDS, User, filled
from tests.wire.disks.gates import Gates
from tests.wire.running import until
from vfu_server.disks import ahead as disk_ahead
from vfu_server.disks import image as disk_image
from vfu_server.disks import pool as pool_module
from vfu_server.disks import shared_disk
from vfu_server.disks.file import FileDisk
from vfu_server.disks.image import IOV_MAX, Image
from vfu_server.disks.pool import Pool


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 64)
    return path


@pytest.fixture
def users() -> Iterator[Callable[..., User]]:
    """Disks in use; each is let go when the test is over."""
    made: list[User] = []

    def use(*arguments: Path, **options: object) -> User:
        made.append(User(FileDisk(*arguments, **options)))  # type: ignore[arg-type] # passed on
        return made[-1].open()

    yield use
    for user in made:
        user.disk.abandon()
        user.wait(user.disk.release)


def cut(data: Bytes, lengths: list[int]) -> list[Bytes]:
    ends = np.cumsum(lengths)
    return [data[end - length : end] for end, length in zip(ends, lengths, strict=True)]


# --- reads, writes, zeroes -------------------------------------------------------------------------


def test_reads_and_writes(users: Callable[..., User], image: Path) -> None:
    user = users(image)
    assert (user.disk.size, user.disk.read_only, user.disk.in_order) == (16384, False, False)
    data = filled(1024, 0)
    assert user.do(Kind.READ, 512, data).error is None
    assert data.tobytes() == image.read_bytes()[512:1536]
    user.do(Kind.WRITE, 1024, filled(1024, 9))
    assert user.do(Kind.FLUSH).error is None
    assert image.read_bytes()[1020:1028] == b"\xfc\xfd\xfe\xff\x09\x09\x09\x09"
    assert image.read_bytes()[2048:2050] == b"\0\1"


def test_the_page_cache_is_read_at_once(image: Path) -> None:
    """Into the caller's memory, however it is cut; or refused, and nothing is said of the memory then."""
    opened = Image(image, read_only=True, direct=False)
    data = filled(1024, 0)
    if not opened.attempt(Job(Kind.READ, 512, 1024), cut(data, [1, 0, 511, 12, 500])):
        opened.close()
        pytest.skip("this file system can't tell whether a read would wait")
    assert data.tobytes() == image.read_bytes()[512:1536]
    many = filled(2 * IOV_MAX, 0)
    assert not opened.attempt(Job(Kind.READ, 0, 2 * IOV_MAX), cut(many, [1] * (2 * IOV_MAX)))
    opened.close()


def test_what_would_wait_is_not_done(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def would_wait(fd: int, views: object, offset: int, flags: int) -> int:
        assert flags == os.RWF_NOWAIT
        raise BlockingIOError(errno.EAGAIN, "would wait")

    opened = Image(image, read_only=False, direct=False)
    monkeypatch.setattr(os, "preadv", would_wait)
    monkeypatch.setattr(os, "pwritev", would_wait)
    for kind in Kind:
        assert not opened.attempt(Job(kind, 0, 512), [filled(512, 0)])
    opened.close()


def test_short_transfers_go_on(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.preadv
    data = filled(512, 0)
    user = users(image)
    monkeypatch.setattr(os, "preadv", lambda fd, views, offset: real(fd, [views[0][:5]], offset))
    user.do(Kind.READ, 512, data)
    assert data.tobytes() == image.read_bytes()[512:1024]


def test_an_image_that_shrank_is_an_error(users: Callable[..., User], image: Path) -> None:
    user = users(image)
    os.truncate(image, 512)
    job = user.do(Kind.READ, 512, filled(512, 0))
    assert job.error is not None
    assert "shorter" in str(job.error)


@pytest.mark.parametrize(
    ("kind", "data"),
    [(Kind.WRITE, 512), (Kind.ZERO, None), (Kind.DISCARD, None), (Kind.FLUSH, None)],
)
def test_nothing_is_written_to_an_image_that_shrank(
    users: Callable[..., User], image: Path, kind: Kind, data: int | None
) -> None:
    """Not by what notices it first, nor by what comes when its old size is back: there are zeroes then."""
    user = users(image)
    assert user.do(Kind.WRITE, 512, filled(512, 9)).error is None
    os.truncate(image, 8192)
    first = user.do(kind, 12288, filled(data, 7) if data else 512 * (kind is not Kind.FLUSH))
    assert first.error is not None
    assert first.error.errno == errno.EIO
    assert image.stat().st_size == 8192
    os.truncate(image, 16384)
    for job in (user.do(Kind.WRITE, 0, filled(512, 7)), user.do(Kind.READ, 12288, filled(512, 7))):
        assert job.error is not None
    # What is left of it can be saved.
    saved = filled(512, 7)
    assert user.do(Kind.READ, 512, saved).error is None
    assert saved.tobytes() == b"\x09" * 512
    for kind_of_attempt in (Kind.READ, Kind.WRITE):
        assert not user.disk.attempt(Job(kind_of_attempt, 0, 512), [filled(512, 7)])
    assert not any(image.read_bytes()[8192:])
    assert image.read_bytes()[512:1024] == b"\x09" * 512
    # Opened anew, it is a disk again.
    user.disk.abandon()
    user.open()
    assert user.do(Kind.WRITE, 0, filled(512, 7)).error is None


def test_a_write_without_waiting_looks_too(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on XFS and Btrfs, whose writes need not wait."""
    user = users(image)
    real = os.pwritev
    monkeypatch.setattr(os, "pwritev", lambda fd, views, offset, *flags: real(fd, views, offset))
    assert isinstance(user.disk._opened, Image)
    user.disk._opened._writes_now = True
    assert user.disk.attempt(Job(Kind.WRITE, 8192, 512), [filled(512, 5)])
    os.truncate(image, 4096)
    assert not user.disk.attempt(Job(Kind.WRITE, 8192, 512), [filled(512, 6)])
    assert image.stat().st_size == 4096


@pytest.mark.parametrize("unmap", [False, True])
@pytest.mark.parametrize("refused", [None, errno.EOPNOTSUPP, errno.EINVAL])
def test_zeroes(
    users: Callable[..., User],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    unmap: bool,
    refused: int | None,
) -> None:
    """By the file system, and written where it has no call for it, or not for that range."""
    user = users(image)
    if refused is not None:

        def refuse(*_: int) -> None:
            raise OSError(refused, "no")

        monkeypatch.setattr(disk_image, "_fallocate", refuse)
    before = image.read_bytes()
    assert user.do(Kind.ZERO, 512, 8192, unmap=unmap, durable=True).error is None
    assert image.read_bytes() == before[:512] + bytes(8192) + before[8704:]


@pytest.mark.parametrize(
    ("refused", "error"), [(errno.EOPNOTSUPP, None), (errno.EINVAL, None), (errno.EIO, errno.EIO)]
)
def test_discard_is_a_hint(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch, refused: int, error: int | None
) -> None:
    """What can't be given back stays; a disk that fails is told of."""

    def refuse(*_: int) -> None:
        raise OSError(refused, "no")

    user = users(image)
    monkeypatch.setattr(disk_image, "_fallocate", refuse)
    job = user.do(Kind.DISCARD, 512, 512)
    assert (job.error.errno if job.error else None) == error


def test_discard_gives_space_back(users: Callable[..., User], tmp_path: Path) -> None:
    path = tmp_path / "full.img"
    path.write_bytes(b"x" * (1 << 20))
    user = users(path)
    if not user.disk.shape.frees:
        pytest.skip("this file system can't punch holes")
    user.do(Kind.FLUSH)
    before = os.stat(path).st_blocks
    assert user.do(Kind.DISCARD, 0, 1 << 19).error is None
    assert os.stat(path).st_blocks <= before - (1 << 19) // 512
    assert os.stat(path).st_size == 1 << 20


# --- durability ------------------------------------------------------------------------------------


@pytest.fixture
def syncs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts calls of fdatasync."""
    calls: list[int] = []
    real = os.fdatasync

    def count(fd: int) -> None:
        calls.append(fd)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", count)
    return calls


def test_what_is_durable_when(users: Callable[..., User], image: Path, syncs: list[int]) -> None:
    user = users(image)
    user.do(Kind.FLUSH)
    assert len(syncs) == 0, "nothing was written"
    user.do(Kind.WRITE, 0, filled(512, 1))
    assert len(syncs) == 0
    user.do(Kind.FLUSH)
    assert len(syncs) == 1
    user.do(Kind.WRITE, 0, filled(512, 1), durable=True)
    assert len(syncs) == 2
    user.do(Kind.WRITE, 0, filled(512, 1))
    user.release()
    assert len(syncs) == 3


def test_lost_data_stays_lost(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells once; a flush goes on failing, the file is not let go, until it is opened anew."""
    user = users(image)
    real = os.fdatasync

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fail)
    user.do(Kind.WRITE, 0, filled(512, 1))
    assert user.do(Kind.FLUSH).error is not None
    monkeypatch.setattr(os, "fdatasync", real)
    assert user.do(Kind.FLUSH).error is not None
    assert user.do(Kind.WRITE, 0, filled(512, 1), durable=True).error is not None
    with pytest.raises(OSError, match="lost"):
        user.release()
    assert user.disk.ready()
    user.disk.abandon()
    user.open()
    assert user.do(Kind.FLUSH).error is None


# --- flushes ahead of a release --------------------------------------------------------------------


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(disk_ahead, "AHEAD_SECONDS", 0.001)


def flushers() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.endswith(" ahead")]


@pytest.mark.usefixtures("often")
def test_flushes_ahead_while_a_release_is_expected(
    users: Callable[..., User], image: Path, syncs: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written, and only that: the release has nothing left to do. The next driver's is too."""
    looks = threading.Semaphore(0)
    real = Image.flush

    def flush(opened: Image) -> None:
        real(opened)
        looks.release()

    monkeypatch.setattr(Image, "flush", flush)
    user = users(image)
    user.disk.expect_release(soon=True)
    user.disk.expect_release(soon=True)
    assert len(flushers()) == 1
    for count in (1, 2):
        user.do(Kind.WRITE, 0, filled(512, count))
        while len(syncs) < count:
            assert looks.acquire(timeout=SECONDS)
        for _ in range(5):
            assert looks.acquire(timeout=SECONDS)
        assert len(syncs) == count, "nothing was written since"
    user.release()
    assert len(syncs) == 2
    until(lambda: not flushers(), "no file is open")
    user.open()
    user.do(Kind.WRITE, 0, filled(512, 3))
    until(lambda: len(syncs) == 3, "flushed ahead")


@pytest.mark.usefixtures("often")
def test_flushes_no_more_when_no_release_is_expected(users: Callable[..., User], image: Path) -> None:
    user = users(image)
    user.disk.expect_release(soon=True)
    user.disk.expect_release(soon=False)
    until(lambda: not flushers(), "taken back")
    user.disk.expect_release(soon=True)
    assert flushers()
    user.disk.connect(user._woken.set)
    until(lambda: not flushers(), "another device came")


def test_nothing_is_flushed_ahead_of_a_reader(users: Callable[..., User], image: Path) -> None:
    users(image, read_only=True).disk.expect_release(soon=True)
    assert not flushers()


@pytest.mark.usefixtures("often")
def test_a_flush_ahead_that_fails(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The kernel tells nobody else of what it lost, so everybody after it is told: as after a FLUSH."""
    user = users(image)
    real = os.fdatasync

    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(os, "fdatasync", fail)
    user.disk.expect_release(soon=True)
    user.do(Kind.WRITE, 0, filled(512, 1))
    until(lambda: not flushers(), "it has failed")
    monkeypatch.setattr(os, "fdatasync", real)
    assert caplog.text.count("broken") == 1
    assert user.do(Kind.FLUSH).error is not None
    with pytest.raises(OSError, match="lost"):
        user.release()
    user.disk.abandon()
    user.open()
    assert user.do(Kind.FLUSH).error is None


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.usefixtures("often")
def test_a_release_during_a_flush_ahead(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch, forced: bool
) -> None:
    """Requests go on meanwhile; the file is closed after that flush, and never under it."""
    begun, go = threading.Event(), threading.Event()
    real = os.fdatasync

    def slow(fd: int) -> None:
        begun.set()
        assert go.wait(SECONDS)
        real(fd)

    monkeypatch.setattr(os, "fdatasync", slow)
    user = users(image)
    user.disk.expect_release(soon=True)
    user.do(Kind.WRITE, 0, filled(512, 1))
    assert begun.wait(SECONDS)
    user.do(Kind.WRITE, 512, filled(512, 2))
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None
    if forced:
        user.disk.abandon()
    assert not user.disk.release()
    assert locked(image)
    go.set()
    user.wait(user.disk.release)
    assert not locked(image)
    until(lambda: not flushers(), "it has ended")


def test_no_thread_to_flush_ahead(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    user = users(image)

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as short:
        short.setattr(threading.Thread, "start", refuse)
        user.disk.expect_release(soon=True)
    assert "is not flushed ahead: can't start new thread" in caplog.text
    assert user.do(Kind.FLUSH).error is None


# --- who has the file ------------------------------------------------------------------------------

LOCKED = struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 0, 0, 0)


def locked(path: Path) -> bool:
    """Whether another open file could not lock it now."""
    with path.open("r+b") as file:
        try:
            fcntl.fcntl(file, fcntl.F_OFD_SETLK, LOCKED)
        except BlockingIOError:
            return True
    return False


def test_locked_while_in_use(users: Callable[..., User], image: Path) -> None:
    """From the first job to the release, once for all functions of a server."""
    disk = FileDisk(image)
    assert not locked(image)
    user, other = User(disk).open(), users(image)
    assert locked(image)
    user.release()
    assert locked(image)
    other.release()
    assert not locked(image)
    user.open()
    assert locked(image)
    user.release()


def test_a_reader_locks_nothing(users: Callable[..., User], image: Path) -> None:
    users(image, read_only=True)
    assert not locked(image)


def test_requests_wait_for_another_program(image: Path, caplog: pytest.LogCaptureFixture) -> None:
    """They go on when it is done; giving up meanwhile is possible."""
    program = f"import fcntl; f = open({str(image)!r}, 'r+b'); "
    program += f"fcntl.fcntl(f, fcntl.F_OFD_SETLK, {LOCKED!r}); print(flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as owner:
        assert owner.stdout is not None
        owner.stdout.readline()
        user = User(FileDisk(image))
        assert not user.disk.ready()
        until(lambda: "in use by another program" in caplog.text, "the log says so")
        user.release()
        assert not user.disk.ready()
        owner.communicate(b"\n")
        user.open()
    assert user.do(Kind.WRITE, 0, filled(512, 1)).error is None
    user.release()


def test_a_file_that_is_gone(users: Callable[..., User], image: Path) -> None:
    """Each request is an error until it is back and opened anew."""
    user = User(FileDisk(image))
    moved = image.rename(image.with_suffix(".moved"))
    user.open()
    job = user.do(Kind.READ, 0, filled(512, 0))
    assert job.error is not None
    assert job.error.errno == errno.ENOENT
    moved.rename(image)
    user.disk.abandon()
    user.open()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None
    user.release()


def test_a_file_that_shrank_while_nobody_had_it(users: Callable[..., User], image: Path) -> None:
    """Nothing is written, as that would fill the gap with zeroes that no guest wrote."""
    user = users(image)
    user.release()
    os.truncate(image, 8192)
    user.open()
    job = user.do(Kind.WRITE, 12288, filled(512, 1))
    assert job.error is not None
    assert "8192 bytes, not 16384" in str(job.error)
    assert image.stat().st_size == 8192
    os.truncate(image, 16384)
    user.disk.abandon()
    user.open()
    assert user.do(Kind.WRITE, 12288, filled(512, 1)).error is None


# --- several at once -------------------------------------------------------------------------------


@pytest.fixture
def gates(monkeypatch: pytest.MonkeyPatch) -> Gates[int]:
    """Jobs wait by offset."""
    return Gates(monkeypatch, lambda job: job.offset)


def test_a_slow_job_is_overtaken(users: Callable[..., User], image: Path, gates: Gates[int]) -> None:
    user = users(image)
    gates.close(0)
    slow = Job(Kind.READ, 0, 512, data=filled(512, 0))
    user.disk.start(slow)
    assert user.do(Kind.READ, 512, filled(512, 0)).error is None
    assert not user.disk.release()
    gates.open(0)
    user.wait(lambda: slow in user.disk.finished())


def test_a_release_waits_for_jobs_that_nobody_takes(
    users: Callable[..., User], image: Path, gates: Gates[int]
) -> None:
    """Behind a closed gate the device leaves what is done where it is; the last one still wakes."""
    user = users(image)
    jobs = [Job(Kind.READ, 512 * number, 512, data=filled(512, 0)) for number in range(2)]
    for job in jobs:
        gates.close(job.offset)
        user.disk.start(job)
    assert not user.disk.release()
    woken = threading.Semaphore(0)
    user.disk.connect(woken.release)
    for job in jobs:
        gates.open(job.offset)
        assert woken.acquire(timeout=SECONDS)
    assert not user.disk.release()
    assert woken.acquire(timeout=SECONDS)
    assert user.disk.release()
    assert user.disk.finished() == jobs


def test_an_old_write_is_over_before_a_new_driver_begins(
    users: Callable[..., User], image: Path, gates: Gates[int]
) -> None:
    """What had begun ends first, what had not begun never does, and neither comes back."""
    user = users(image)
    offsets = [512 * number for number in range(6)]
    for offset in offsets:
        gates.close(offset)
        user.disk.start(Job(Kind.WRITE, offset, 512, data=filled(512, 7)))
    until(lambda: len(gates.begun) == 4, "four workers are at it")
    user.disk.abandon()
    assert not user.disk.ready()
    assert locked(image)
    for offset in offsets:
        gates.open(offset)
    user.open()
    assert user.disk.finished() == []
    assert sorted(job.offset for job in gates.begun) == offsets[:4]
    content = image.read_bytes()
    assert content[:2048] == b"\7" * 2048
    assert content[2048:3072] == bytes(range(256)) * 4


@pytest.fixture
def ext4(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file system that can't tell whether a write would wait."""

    def refuse(image: Image, job: Job, views: list[Bytes]) -> bool:
        image._writes_now = False
        return False

    monkeypatch.setattr(Image, "attempt", refuse)


def small(user: User, offset: int = 0) -> Job:
    """Start a small write."""
    job = Job(Kind.WRITE, offset, 512, data=filled(512, 7))
    assert not user.disk.attempt(job, [])
    user.disk.start(job)
    return job


@pytest.mark.usefixtures("ext4")
def test_small_writes_stay_on_the_callers_thread(
    users: Callable[..., User], image: Path, gates: Gates[int]
) -> None:
    user = users(image)
    jobs = [small(user), small(user, 512)]
    assert gates.begun == []
    assert user.disk.work_unlocked()
    assert user.disk.finished() == jobs
    assert image.read_bytes()[:1024] == b"\7" * 1024
    assert not user.disk.work_unlocked()


@pytest.mark.usefixtures("ext4")
def test_a_slow_disk_gets_threads(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After one small write that took too long, those behind it and the next ones go to the pool."""
    monkeypatch.setattr(shared_disk, "SLOW_SECONDS", -1.0)
    user = users(image)
    jobs = [small(user), small(user, 512)]
    assert user.disk.work_unlocked()
    jobs.append(small(user, 1024))
    assert not user.disk.work_unlocked()
    found: list[Job] = []

    def all_found() -> bool:
        found.extend(user.disk.finished())
        return len(found) == 3

    user.wait(all_found)
    assert sorted(job.offset for job in found) == [0, 512, 1024]


@pytest.mark.usefixtures("ext4")
def test_small_writes_of_a_driver_that_is_gone(users: Callable[..., User], image: Path) -> None:
    user = users(image)
    before = image.read_bytes()
    small(user)
    user.disk.abandon()
    user.open()
    assert not user.disk.work_unlocked()
    assert user.disk.finished() == []
    assert image.read_bytes() == before


def test_a_pool_of_few_threads() -> None:
    """At most four, whatever is submitted; one that fails takes no thread with it."""
    pool = Pool("test", 4)
    together: list[int] = []
    inside = threading.Semaphore(0)
    go = threading.Event()
    done = threading.Semaphore(0)

    def call() -> None:
        inside.release()
        assert go.wait(SECONDS)
        together.append(threading.get_ident())
        done.release()

    for _ in range(32):
        pool.submit(call)
    for _ in range(4):
        assert inside.acquire(timeout=SECONDS)
    assert not inside.acquire(timeout=0.05)
    go.set()
    for _ in range(32):
        assert done.acquire(timeout=SECONDS)
    assert len(set(together)) == 4


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), MemoryError()])
def test_a_pool_that_gets_no_threads(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """One is enough; without any the caller is told."""
    pool = Pool("test", 4)
    go, done = threading.Event(), threading.Semaphore(0)
    real = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        raise error

    def call() -> None:
        assert go.wait(SECONDS)
        done.release()

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(OSError, match="no thread can be had"):
        pool.submit(done.release)
    monkeypatch.setattr(threading.Thread, "start", real)
    pool.submit(call)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    pool.submit(call)
    go.set()
    for _ in range(2):
        assert done.acquire(timeout=SECONDS)
    assert not done.acquire(blocking=False)


def test_the_last_thread_of_a_pool_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where all are idle for as long: without threads to be had it is the only one."""
    monkeypatch.setattr(pool_module, "IDLE_SECONDS", 0.05)
    pool = Pool("stays", 4)
    together = threading.Barrier(3)

    def call() -> None:
        together.wait(SECONDS)

    for _ in range(2):
        pool.submit(call)
    workers = [thread for thread in threading.enumerate() if thread.name == "disk stays"]
    together.wait(SECONDS)
    deadline = time.monotonic() + SECONDS
    while all(worker.is_alive() for worker in workers):
        assert time.monotonic() < deadline
        os.sched_yield()
    (last,) = [worker for worker in workers if worker.is_alive()] or workers[:1]
    last.join(0.5)  # ten times the idle time
    assert last.is_alive()

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = threading.Event()
    pool.submit(done.set)
    assert done.wait(SECONDS)


# --- opening ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 511, 513])
def test_no_whole_sectors(tmp_path: Path, size: int) -> None:
    path = tmp_path / "odd.img"
    path.write_bytes(bytes(size))
    with pytest.raises(ValueError, match=r"truncate -s (512|1024) "):
        FileDisk(path)


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        FileDisk(tmp_path / "none.img")


def test_made_sparse(tmp_path: Path) -> None:
    path = tmp_path / "new.img"
    assert FileDisk(path, size=1 << 40).size == 1 << 40
    assert os.stat(path).st_blocks < 1024
    assert os.stat(path).st_mode & 0o777 == 0o600
    assert FileDisk(path, size=1 << 40).size == 1 << 40
    with pytest.raises(ValueError, match="not 512"):
        FileDisk(path, size=512)


def test_direct(users: Callable[..., User], image: Path) -> None:
    """O_DIRECT: no attempt on the page cache, and blocks of what the file system can do."""
    try:
        os.close(os.open(image, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        pytest.skip("this file system has no O_DIRECT")
    user = users(image, direct=True)
    unit = user.disk.shape.block
    assert unit in (512, 1024, 2048, 4096)
    assert not user.disk.attempt(Job(Kind.READ, 0, unit), [filled(unit, 0)])
    raw = filled(unit + 4096, 0)
    start = -raw.__array_interface__["data"][0] % 4096
    data = raw[start : start + unit]
    assert user.do(Kind.READ, unit, data).error is None
    assert data.tobytes() == image.read_bytes()[unit : 2 * unit]
    data[:] = 3
    assert user.do(Kind.WRITE, unit, data).error is None
    assert image.read_bytes()[unit : 2 * unit] == b"\3" * unit
    assert user.do(Kind.ZERO, 0, unit).error is None
    assert image.read_bytes()[:unit] == bytes(unit)


def test_no_direct(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.open

    def refuse(path: Path, flags: int, *mode: int) -> int:
        if flags & os.O_DIRECT:
            raise OSError(errno.EINVAL, "no O_DIRECT")
        return real(path, flags, *mode)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ValueError, match="leave out `direct`"):
        FileDisk(image, direct=True)


@pytest.mark.parametrize("error", [MemoryError(), OSError(errno.EAGAIN, "no thread can be had")])
def test_a_file_that_can_not_be_opened_for_lack_of_anything(
    users: Callable[..., User], image: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Each request is an I/O error, and the next driver finds the disk again."""
    disk = FileDisk(image)
    user = User(disk)

    def fail(*_: object) -> None:
        raise error

    with monkeypatch.context() as short:
        if isinstance(error, OSError):
            short.setattr(disk._pool, "submit", fail)
        else:
            short.setattr(disk, "_open_medium", fail)
        user.open()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is not None
    disk.abandon()
    user.open()
    assert user.do(Kind.READ, 0, filled(512, 0)).error is None
    user.release()


def test_no_memory_for_a_job(
    users: Callable[..., User],
    image: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is the machine's lack, and no bug."""
    user = users(image)

    def none(*_: object) -> None:
        raise MemoryError

    with monkeypatch.context() as short:
        short.setattr(Image, "perform", none)
        error = user.do(Kind.FLUSH).error
    assert error is not None
    assert error.errno == errno.ENOMEM
    assert "internal error" not in caplog.text
    assert user.do(Kind.FLUSH).error is None
