"""A function's thread: it tells the model of clients, under the lock, and nothing keeps it from ending."""

from __future__ import annotations

import ctypes
import os
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from pymodel.host import Host
from pymodel.memory import GuestMemory
from pymodel.pci.lane import NOBODY, Lane
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from tests.wire.raw_client import HEADER, REGION_READ, RESET, RawClient
from vfu_server.datapath import COMPILED
from vfu_server.function_thread import FunctionThread
from vfu_server.server import Folder, FolderTakenError, Server
from vfu_server.vfio._vfu import GUARDED
from vfu_server.vfio.turn_lock import TurnLock


class Lock:
    """A lock that knows whether the current thread holds it."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @property
    def held(self) -> bool:
        return self._lock._is_owned()  # type: ignore[attr-defined, no-any-return]


class FakeFunction:
    """Stands in for the model's function: notes what it is told, and that its lock is held then."""

    msix_vectors = 2
    has_intx = False
    waits = ()

    def __init__(self, name: str = "vf1") -> None:
        self.name = name
        self.bars = {0: 0x1000}
        self.lock = Lock()
        self.host: Host | None = None
        self.told: list[str] = []
        self.serviced = threading.Event()
        self.told_something = threading.Condition()
        self.on_read: Callable[[], bytes] = lambda: b"\xaa"
        self.served: dict[int, FakeFunction] = {}
        self.on_vfs_changed: Callable[[], None] | None = None

    def note(self, what: str) -> None:
        assert self.lock.held
        with self.told_something:
            self.told.append(what)
            self.told_something.notify_all()

    def wait_for(self, what: str, count: int = 1) -> None:
        with self.told_something:
            assert self.told_something.wait_for(lambda: self.told.count(what) >= count, 10), self.told

    watched = False

    def mapping_changed(self, address: int, length: int, *, there: bool, writable: bool) -> None:
        raise AssertionError("nobody watches")

    def attach(self, host: Host) -> None:
        self.host = host
        self.note("attach")

    def detach(self) -> None:
        self.host = None
        self.note("detach")

    def config_read(self, offset: int, length: int) -> bytes:
        self.note(f"config {offset:#x}")
        return bytes(length)

    def config_write(self, offset: int, data: bytes) -> None:
        self.note(f"config {offset:#x}={data.hex()}")

    def bar_read(self, bar: int, offset: int, length: int) -> bytes:
        self.note(f"bar{bar} {offset:#x}")
        return self.on_read() * length

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        self.note(f"bar{bar} {offset:#x}={data.hex()}")

    def device_reset(self) -> None:
        self.note("reset")

    def work_unlocked(self) -> bool:
        assert not self.lock.held
        return False

    def lanes(self) -> list[Lane]:
        assert self.lock.held
        return []

    def go_on(self, queues: Iterable[int]) -> None:
        assert self.lock.held

    def service(self) -> None:
        assert self.lock.held
        self.serviced.set()

    def memory_lost(self, reason: str) -> None:
        self.note(f"memory lost: {reason}")


@pytest.fixture
def function() -> FakeFunction:
    return FakeFunction()


@pytest.fixture
def thread(function: FakeFunction, tmp_path: Path) -> Iterator[FunctionThread]:
    made = FunctionThread(function, tmp_path / "vf1.sock")
    made.start()
    yield made
    made.stop()
    assert made.join(5)
    assert not (tmp_path / "vf1.sock").exists()


def test_a_visit(function: FakeFunction, thread: FunctionThread, tmp_path: Path) -> None:
    for visit in (1, 2):
        with RawClient(tmp_path / "vf1.sock") as client:
            client.read(7, 0x34, 1)
            client.write(7, 4, b"\6\0")
            assert client.read(0, 0x14, 2) == b"\xaa\xaa"
            client.write(0, 8, b"\1")
            client.call(RESET)
        function.wait_for("detach", visit)
    visited = ["attach", "config 0x34", "config 0x4=0600", "bar0 0x14", "bar0 0x8=01", "reset", "detach"]
    assert function.told == visited * 2


def test_no_memory_for_an_access(
    function: FakeFunction, thread: FunctionThread, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All ones, as where nothing answers; the driver hears of it, and the function goes on."""

    def none(*_: object) -> bytes:
        raise MemoryError

    with RawClient(tmp_path / "vf1.sock") as client:
        with monkeypatch.context() as short:
            for method in ("bar_read", "config_read", "bar_write", "config_write", "device_reset"):
                short.setattr(function, method, none)
            assert client.read(0, 0x14, 2) == b"\xff\xff"
            assert client.read(7, 0, 4) == b"\xff" * 4
            client.write(0, 8, b"\1")
            client.write(7, 4, b"\6\0")
            client.call(RESET)
        function.wait_for("memory lost: the server has no memory for an access", 5)
        assert client.read(0, 0x14, 2) == b"\xaa\xaa"


def test_interrupts_and_memory(function: FakeFunction, thread: FunctionThread, tmp_path: Path) -> None:
    eventfd = os.eventfd(0)
    with RawClient(tmp_path / "vf1.sock") as client:
        client.eventfds(eventfd, start=1)
        host = function.host
        assert host is not None
        assert host.memory is thread.memory
        host.msix(1)  # from another thread than its own, as an admin command of the PF may
        assert os.eventfd_read(eventfd) == 1

        def interrupt() -> bytes:
            host.msix(1)
            return b"\1"

        function.on_read = interrupt
        client.read(0, 0, 1)
        assert os.eventfd_read(eventfd) == 1
    os.close(eventfd)


def test_wake_has_the_function_serviced(function: FakeFunction, thread: FunctionThread) -> None:
    for _ in range(3):
        function.serviced.clear()
        thread.wake()
        assert function.serviced.wait(5)


def test_timers_run_in_order_without_a_client(function: FakeFunction, thread: FunctionThread) -> None:
    with function.lock:
        thread.after(0.06, lambda: function.note("late"))
        thread.after(0.03, lambda: function.note("early"))
        thread.after(0, lambda: function.note("now"))
    function.wait_for("late")
    assert function.told == ["now", "early", "late"]


def test_a_timer_is_on_time_while_a_client_is_idle(
    function: FakeFunction, thread: FunctionThread, tmp_path: Path
) -> None:
    with RawClient(tmp_path / "vf1.sock") as client:
        client.read(7, 0, 1)
        start = time.monotonic()
        thread.after(0.05, lambda: function.note("timer"))
        function.wait_for("timer")
        assert 0.05 <= time.monotonic() - start < 2


def test_a_bug_ends_one_function(
    function: FakeFunction, thread: FunctionThread, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    neighbour = FakeFunction("vf2")
    other = FunctionThread(neighbour, tmp_path / "vf2.sock")
    other.start()

    def bug() -> bytes:
        raise ZeroDivisionError("a bug")

    function.on_read = bug
    with RawClient(tmp_path / "vf1.sock") as client, RawClient(tmp_path / "vf2.sock") as second:
        with pytest.raises(OSError, match="Input/output"):
            client.read(0, 0, 1)
        assert client.closed()
        assert thread.join(5)
        assert second.read(0, 0, 1) == b"\xaa"
    assert thread.failed
    # Nothing that was under way keeps its owner waiting, or its disk locked.
    assert function.told[-1] == "detach"
    assert not other.failed
    assert "ZeroDivisionError: a bug" in caplog.text
    other.stop()
    assert other.join(5)


@pytest.mark.parametrize("half", [b"", b"\1\0", HEADER.pack(1, REGION_READ, 32, 0, 0) + bytes(5)])
@pytest.mark.parametrize("negotiate", [True, False])
def test_a_stalled_client_cannot_keep_it(tmp_path: Path, half: bytes, negotiate: bool) -> None:
    function = FakeFunction()
    thread = FunctionThread(function, tmp_path / "vf1.sock")
    thread.start()
    client = RawClient(tmp_path / "vf1.sock", negotiate=negotiate)
    client.socket.sendall(half)
    if negotiate:
        function.wait_for("attach")
    thread.stop()
    assert thread.join(3)
    if GUARDED:  # a system library may answer half a message first
        assert client.closed()
    client.socket.close()
    assert function.told == (["attach", "detach"] if negotiate else [])


def test_never_started(tmp_path: Path) -> None:
    thread = FunctionThread(FakeFunction(), tmp_path / "vf1.sock")
    thread.stop()
    assert thread.join(1)
    assert not (tmp_path / "vf1.sock").exists()


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_vf_sockets_come_and_go(tmp_path: Path) -> None:
    device = FakeFunction("pf")
    device.served[1] = FakeFunction("vf1")
    folder = Folder(tmp_path / "s")

    def sockets() -> list[str]:
        return sorted(path.name for path in folder.path.glob("*.sock"))

    seen: list[list[str]] = []
    server = Server(device, folder)

    def drive() -> None:
        def change(vfs: dict[int, FakeFunction], names: list[str]) -> None:
            with device.lock:
                device.served = vfs
                assert device.on_vfs_changed is not None
                device.on_vfs_changed()
            wait_for(lambda: sockets() == names)
            seen.append(names)

        first = device.served[1]
        with RawClient(folder.path / "vf1.sock"):
            change({1: first, 2: FakeFunction("vf2")}, ["pf.sock", "vf1.sock", "vf2.sock"])
            assert first.told == ["attach"]
            change({}, ["pf.sock"])
            assert first.told == ["attach", "detach"]
        again = FakeFunction("vf1")
        change({1: again}, ["pf.sock", "vf1.sock"])
        with RawClient(folder.path / "vf1.sock"):
            again.wait_for("attach")
        server.stop()

    with ExitStack() as stack:
        stack.enter_context(server)
        assert sockets() == ["pf.sock", "vf1.sock"]
        driver = threading.Thread(target=drive)
        server.run(ready=driver.start)
        driver.join(10)
    assert len(seen) == 3
    assert sockets() == []
    folder.close()


def test_functions_without_a_thread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 100 VFs at once those are served for which there is a thread; nothing is left of the others."""
    device = FakeFunction("pf")
    folder = Folder(tmp_path / "s")
    start = FunctionThread.start

    def refuse_every_tenth(thread: FunctionThread) -> None:
        if thread.function.name.endswith("7"):
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(FunctionThread, "start", refuse_every_tenth)
    vfs = {number: FakeFunction(f"vf{number}") for number in range(1, 101)}
    expected = ["pf.sock", *(f"vf{number}.sock" for number in vfs if number % 10 != 7)]
    server = Server(device, folder)

    def drive() -> None:
        with device.lock:
            device.served = vfs
            assert device.on_vfs_changed is not None
            device.on_vfs_changed()
        wait_for(lambda: sorted(path.name for path in folder.path.glob("*.sock")) == sorted(expected))
        with RawClient(folder.path / "vf100.sock"):
            vfs[100].wait_for("attach")
        server.stop()

    with ExitStack() as stack:
        stack.enter_context(server)
        driver = threading.Thread(target=drive)
        server.run(ready=driver.start)
        driver.join(10)
    assert vfs[100].told == ["attach", "detach"]
    assert list(folder.path.glob("*.sock")) == []

    # At power-on that is the end.
    with pytest.raises(RuntimeError, match="can't start new thread"), Server(device, folder):
        pass
    assert list(folder.path.glob("*.sock")) == []
    folder.close()


def turn() -> tuple[int, int]:
    """Nanoseconds of a turn of this thread on a processor, 0 where that is not known; its nice value."""
    attributes = ctypes.create_string_buffer(48)
    ctypes.CDLL(None).syscall(315, 0, attributes, 48, 0)  # sched_getattr of x86-64
    _, policy, _, nice, _, runtime, _, _ = struct.unpack("<IIQiIQQQ", attributes)
    return runtime if policy == os.SCHED_OTHER else 0, nice


@pytest.mark.skipif(not turn()[0], reason="Linux before 6.12, or another policy")
def test_the_physical_function_is_prompt(tmp_path: Path) -> None:
    """Its turns are shorter than those of VFs, so that they come sooner; it gets no more time than they."""
    device = FakeFunction("pf")
    device.served = {1: FakeFunction("vf1")}
    folder = Folder(tmp_path / "s")
    usual, nice = turn()
    with Server(device, folder) as server:
        assert server.threads["pf"].call(turn, 10) == (400_000, nice)
        assert server.threads["vf1"].call(turn, 10) == (usual, nice)
    folder.close()


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    first = Folder(tmp_path / "a" / "b")
    assert first.path.stat().st_mode & 0o777 == 0o700
    with pytest.raises(FolderTakenError, match="another server"):
        Folder(first.path)
    first.close()
    Folder(first.path).close()


# A receive queue, and the transmit queues of all pairs that there can be.
LANES = 257


@pytest.mark.skipif(not COMPILED, reason="there is no loop")
def test_a_turn_that_the_loop_was_to_give(tmp_path: Path) -> None:
    """It is not lost where the model comes first again, for what the disk did without the lock."""

    class Turns(FakeFunction):
        def __init__(self) -> None:
            super().__init__()
            self.lock = TurnLock()  # type: ignore[assignment]
            self.lanes_left = [
                Lane(Engine(Virtqueue(number, 256), GuestMemory()), 0, 0, number, NOBODY, True)
                for number in range(LANES)
            ]
            self.unlocked = False
            self.queues: list[int] = []

        def note(self, what: str) -> None:
            self.unlocked = what == "attach"

        def work_unlocked(self) -> bool:
            unlocked, self.unlocked = self.unlocked, False
            return unlocked

        def lanes(self) -> list[Lane]:
            found, self.lanes_left = self.lanes_left, []
            return found

        def go_on(self, queues: Iterable[int]) -> None:
            self.queues += queues

        def service(self) -> None:
            if self.queues:
                self.serviced.set()

    function = Turns()
    thread = FunctionThread(function, tmp_path / "vf1.sock")
    thread.start()
    with RawClient(tmp_path / "vf1.sock"):
        assert function.serviced.wait(10)
    assert sorted(function.queues) == list(range(LANES))
    thread.stop()
    assert thread.join(5)
