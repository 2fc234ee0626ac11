"""The extension on its own: what clients can do to it, from well-behaved to hostile."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import struct
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from pymodel.errors import MemoryFault
from pymodel.memory import Bytes, GuestMemory
from tests.wire.raw_client import DMA_MAP, HEADER, NO_REPLY, REGION_WRITE, RESET, RawClient
from vfu_server.vfio._vfu import CONFIG_REGION, GUARDED, Context

PAGE = 4096

T = TypeVar("T")

guarded = pytest.mark.skipif(not GUARDED, reason="a system libvfio-user has these faults")


class Device:
    """A handler that keeps what it is told, and a thread that runs its context until it is closed."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.writes: list[tuple[int, int, bytes]] = []
        self.logged: list[str] = []
        self.errors: list[Exception] = []
        self.resets = 0
        self.answer: Callable[[int, int, int], bytes] = lambda region, _, length: bytes([region]) * length
        self.todo: list[tuple[Callable[[], object], threading.Event, list[object]]] = []
        self.context = Context(
            str(path), self, bars={0: 0x1000, 4: 0x4000}, msix_vectors=4, intx=True, log_level=3
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        return self.answer(region, offset, length)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.writes.append((region, offset, data))

    def reset(self) -> None:
        self.resets += 1

    def log(self, level: int, text: str) -> None:
        assert 0 <= level <= 7
        self.logged.append(text)

    def _main(self) -> None:
        while not self._stopping:
            try:
                if self.context.attached:
                    self.context.run(None)
                else:
                    self.context.attach(None)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            while self.todo:
                call, done, result = self.todo.pop()
                try:
                    result.append(call())
                except Exception as error:  # noqa: BLE001 - raised again by `do`
                    result.append(error)
                done.set()

    def do(self, call: Callable[[], T]) -> T:
        """Call on the context's own thread."""
        done = threading.Event()
        result: list[object] = []
        self.todo.append((call, done, result))
        self.context.wake()
        assert done.wait(10)
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]  # type: ignore[return-value]

    def close(self) -> None:
        self._stopping = True
        self.context.hang_up()
        self._thread.join(5)
        assert not self._thread.is_alive()
        self.context.close()


@pytest.fixture
def device(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "f.sock")
    yield made
    made.close()


@pytest.fixture
def client(device: Device) -> Iterator[RawClient]:
    with RawClient(device.path) as made:
        yield made


@contextlib.contextmanager
def memfd(size: int) -> Iterator[int]:
    fd = os.memfd_create("guest")
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def test_socket_is_private_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"
    for _ in range(2):  # the second takes over what the first would have left
        device = Device(path)
        status = path.stat()
        assert stat.S_ISSOCK(status.st_mode)
        assert stat.S_IMODE(status.st_mode) == 0o600
        device.close()
        assert not path.exists()


def test_a_file_in_the_way_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "f.sock"
    path.write_text("dear")
    with pytest.raises(FileExistsError):
        Device(path)
    assert path.read_text() == "dear"


def test_a_name_too_long_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="too long"):
        Device(tmp_path / ("x" * 120))


def test_accesses_reach_the_handler(device: Device, client: RawClient) -> None:
    assert client.read(CONFIG_REGION, 0, 4) == b"\7\7\7\7"
    assert client.read(4, 0x3FFF, 1) == b"\4"
    client.write(CONFIG_REGION, 0xFFC, b"abcd")
    client.write(0, 0x10, b"\1\2")
    client.call(RESET)
    assert device.writes == [(CONFIG_REGION, 0xFFC, b"abcd"), (0, 0x10, b"\1\2")]
    assert device.resets == 1
    with pytest.raises(OSError, match="Invalid"):
        client.read(0, 0xFFF, 2)


def test_an_exception_fails_the_access_and_comes_out_of_run(device: Device, client: RawClient) -> None:
    def fail(region: int, offset: int, length: int) -> bytes:
        raise ZeroDivisionError(f"{region} {offset} {length}")

    good = device.answer
    device.answer = fail
    with pytest.raises(OSError, match="Input/output"):
        client.read(0, 8, 4)
    device.answer = lambda *_: b"short"
    with pytest.raises(OSError, match="Input/output"):
        client.read(0, 8, 4)
    device.answer = good
    assert client.read(0, 8, 1) == b"\0"
    assert [type(error) for error in device.errors] == [ZeroDivisionError, ValueError]


def test_memory_is_the_clients(device: Device, client: RawClient) -> None:
    memory = device.context.memory
    with memfd(2 * PAGE) as one, memfd(PAGE) as two:
        client.map(one, 0x10000, 2 * PAGE)
        client.map(two, 0x12000, PAGE)
        os.pwrite(one, b"AB", 2 * PAGE - 2)
        os.pwrite(two, b"CD", 0)

        def use() -> None:
            views = memory.view(0x11FFE, 4, write=True)
            assert [view.tobytes() for view in views] == [b"AB", b"CD"]
            views[1][:] = (1, 2)
            assert not memory.view(0x10000, 1, write=False)[0].flags.writeable
            assert memory.view(0x99999999, 0, write=True) == []
            memory.store_u16(0x12010, 0xBEEF)
            assert memory.load_u16(0x12010) == 0xBEEF
            memory.fence()

        device.do(use)
        assert os.pread(two, 2, 0) == b"\1\2"
        assert os.pread(two, 2, 16) == b"\xef\xbe"
        client.unmap(0x10000, 2 * PAGE)
        assert len(memory) == 1
        with pytest.raises(MemoryFault, match="not mapped"):
            device.do(lambda: memory.view(0x10000, 1, write=False))


@pytest.mark.parametrize(
    ("address", "length"),
    [
        (0x0FFFF, 2),
        (0x10FFF, 2),
        (0x11000, 1),
        (0, 1),
        (0x10000, 1 << 63),
        (0x10000, (1 << 64) - 1),
        (0x10000, (1 << 64) - 0x10000),
        (0x10000, 1 << 64),
        ((1 << 64) - 1, 1),
        ((1 << 64) - 1, 2),
        (1 << 64, 1),
        (-1, 1),
        (0x10000, -1),
    ],
)
def test_bad_addresses_are_faults(device: Device, client: RawClient, address: int, length: int) -> None:
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE)
    with pytest.raises(MemoryFault):
        device.do(lambda: device.context.memory.view(address, length, write=False))


@pytest.mark.parametrize("address", [0x10001, 0x10FFF, 0xFFFF, 0x20000, 1 << 64, -2])
def test_bad_ring_indices_are_faults(device: Device, client: RawClient, address: int) -> None:
    memory = device.context.memory
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE)
    with pytest.raises(MemoryFault):
        device.do(lambda: memory.load_u16(address))
    with pytest.raises(MemoryFault):
        device.do(lambda: memory.store_u16(address, 0))


def test_a_region_keeps_its_protection(device: Device, client: RawClient) -> None:
    memory = device.context.memory
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE, flags=1)
        client.map(fd, 0x20000, PAGE, flags=2)
        client.map(fd, 0x30000, PAGE, flags=0)
    device.do(lambda: memory.view(0x10000, 1, write=False))
    with pytest.raises(MemoryFault, match="without write"):
        device.do(lambda: memory.view(0x10000, 1, write=True))
    device.do(lambda: memory.view(0x20000, 1, write=True))
    with pytest.raises(MemoryFault, match="without read"):
        device.do(lambda: memory.view(0x20000, 1, write=False))
    with pytest.raises(MemoryFault, match="without write"):
        device.do(lambda: memory.store_u16(0x30000, 1))


def test_memory_without_a_file_names_the_cure(device: Device, client: RawClient) -> None:
    client.map(None, 0x10000, PAGE)
    with pytest.raises(MemoryFault, match=r"memory-backend-memfd.*share=on"):
        device.do(lambda: device.context.memory.view(0x10000, 1, write=False))


@guarded
def test_the_highest_address(device: Device, client: RawClient) -> None:
    top = (1 << 64) - PAGE
    with memfd(2 * PAGE) as fd:
        client.map(fd, top, PAGE)
        with pytest.raises(OSError, match="Invalid"):
            client.map(fd, top - PAGE, 3 * PAGE)
    memory = device.context.memory
    assert len(device.do(lambda: memory.view(top, PAGE, write=True))[0]) == PAGE
    with pytest.raises(MemoryFault):
        device.do(lambda: memory.view(top, PAGE + 1, write=True))


@guarded
def test_many_regions(device: Device, client: RawClient) -> None:
    """More than the 16 that the library of 2022 takes by itself: a guest with a virtual IOMMU has them."""
    memory = device.context.memory
    with memfd(200 * PAGE) as fd:
        for i in range(200):
            os.pwrite(fd, bytes([i]), i * PAGE)
            client.map(fd, ((i * 77) % 200) * PAGE, PAGE, offset=i * PAGE)
    assert len(memory) == 200
    views = device.do(lambda: memory.view(0, 200 * PAGE, write=False))
    assert [int(view[0]) for view in views] == [pow(77, -1, 200) * i % 200 for i in range(200)]


def test_scatter_lists_are_as_the_protocol_says(device: Device, client: RawClient) -> None:
    """The extension's own `views` against the Protocol's, which goes by `view`: same bytes, same faults."""
    memory = device.context.memory
    top = (1 << 64) - PAGE
    with memfd(6 * PAGE) as fd:
        os.pwrite(fd, random.Random(1).randbytes(6 * PAGE), 0)
        client.map(fd, 0, PAGE)
        client.map(fd, PAGE, PAGE, offset=3 * PAGE)
        client.map(fd, 2 * PAGE, PAGE, offset=2 * PAGE, flags=1)
        client.map(fd, 4 * PAGE, PAGE, offset=4 * PAGE)
        client.map(fd, top, PAGE, offset=5 * PAGE)
    addresses = [0, 1, PAGE - 16, PAGE, 2 * PAGE, 2 * PAGE - 16, 3 * PAGE, 4 * PAGE, top, (1 << 64) - 16]
    addresses += [(1 << 64) - 1, 1 << 64]
    lengths = [0, 1, 16, 17, PAGE, 2 * PAGE, (1 << 32) - 1]
    randomly = random.Random(2)
    outcomes = set()

    def found(
        views: Callable[..., list[Bytes]],
        segments: list[tuple[int, int]],
        start: int,
        length: int,
        *,
        write: bool,
    ) -> object:
        try:
            return [
                (view.tobytes(), view.flags.writeable) for view in views(segments, start, length, write=write)
            ]
        except MemoryFault as fault:
            return str(fault)

    def compare() -> None:
        for _ in range(4000):
            segments: list[tuple[int, int]] = []
            for _ in range(randomly.randrange(6)):
                joined = segments and randomly.randrange(3) == 0
                address = sum(segments[-1]) if joined else randomly.choice(addresses)
                segments.append((address, randomly.choice(lengths)))
            start, length = randomly.choice(lengths), randomly.choice(lengths)
            write = bool(randomly.randrange(2))
            ours = found(memory.views, segments, start, length, write=write)
            theirs = found(partial(GuestMemory.views, memory), segments, start, length, write=write)
            assert ours == theirs, (segments, start, length, write)
            outcomes.add(ours.split()[-1] if isinstance(ours, str) else len(ours))  # type: ignore[arg-type]

    device.do(compare)
    assert outcomes >= {0, 1, 2, 3, "mapped", "access", "address", "around"}


def test_a_view_outlives_an_unmap(device: Device, client: RawClient) -> None:
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE)
    view = device.do(lambda: device.context.memory.view(0x10000, PAGE, write=True)[0])
    client.unmap(0x10000, PAGE)
    view[:] = 7
    assert int(view.sum()) == 7 * PAGE


def test_a_short_file_loses_pages_and_nothing_else(device: Device, client: RawClient) -> None:
    memory = device.context.memory
    with memfd(4 * PAGE) as fd:
        client.map(fd, 0x10000, 6 * PAGE)
        view = device.do(lambda: memory.view(0x10000, 6 * PAGE, write=True)[0])
        view[:] = 1
        assert memory.lost == 2
        os.ftruncate(fd, PAGE)
        assert np.count_nonzero(view) == 3 * PAGE  # one that is left, and two that we put there
        assert memory.lost == 5
    client.unmap(0x10000, 6 * PAGE)
    assert memory.lost == 5
    assert client.read(0, 0, 1) == b"\0"


def fds_open() -> int:
    return len(os.listdir("/proc/self/fd"))


@guarded
def test_fds_are_not_leaked(device: Device, client: RawClient) -> None:
    with memfd(PAGE) as fd, memfd(PAGE) as other:
        client.map(fd, 0x10000, PAGE)
        before = fds_open()
        for _ in range(20):
            client.map(fd, 0x10000, PAGE)  # the same once more
            with pytest.raises(OSError, match="Invalid"):
                client.map(other, 0x10800, PAGE)  # overlaps
            with pytest.raises(OSError, match="Invalid"):
                client.map(fd, 0x20000, 0)
            with pytest.raises(OSError, match="Invalid"):
                client.map(fd, 0x20000, PAGE, offset=1 << 63)
            with pytest.raises(OSError, match=r"Unknown|Invalid"):
                client.call(99, b"x", (fd, other))
            client.call(RESET, b"", (fd,))
        assert fds_open() <= before
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match=r"Permission|No such device"):
        client.map(read_end, 0x20000, PAGE)  # can't be mapped; the library closed the fd twice
    os.close(read_end)
    os.close(write_end)
    assert fds_open() <= before - 2


@guarded
def test_fds_of_a_broken_header_are_closed(device: Device) -> None:
    before = fds_open()
    with memfd(PAGE) as fd:
        client = RawClient(device.path)
        client.socket.sendmsg([b"\1\0"], [(1, 1, struct.pack("i", fd))])
        client.socket.close()
        with RawClient(device.path) as again:
            again.read(0, 0, 1)
    deadline = threading.Event()
    for _ in range(100):
        if fds_open() <= before:
            break
        deadline.wait(0.02)
    assert fds_open() <= before


@guarded
def test_interrupts(device: Device, client: RawClient) -> None:
    fd = os.eventfd(0, os.EFD_NONBLOCK)
    trigger = device.context.irq_trigger
    assert not device.do(lambda: trigger(1))  # no eventfd yet
    client.eventfds(fd, start=1)
    assert device.do(lambda: trigger(1))
    assert device.do(lambda: trigger(1))
    assert os.eventfd_read(fd) == 2
    assert not device.do(lambda: trigger(0))
    with pytest.raises(OSError, match="vector 4"):
        device.do(lambda: trigger(4))
    client.irqs(flags=0x24, index=2, start=1, count=1)  # give it back
    assert not device.do(lambda: trigger(1))
    client.eventfds(fd, index=0)  # INTx
    assert device.do(lambda: trigger(0))
    assert os.eventfd_read(fd) == 1
    os.close(fd)


@guarded
def test_an_interrupt_never_blocks(device: Device, client: RawClient) -> None:
    full = os.eventfd((1 << 32) - 1)  # blocking, and then at its maximum
    os.eventfd_write(full, (1 << 64) - 2 - ((1 << 32) - 1))
    read_end, write_end = os.pipe()
    os.set_blocking(write_end, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write_end, bytes(65536))
    os.set_blocking(write_end, True)
    client.eventfds(full, write_end)
    assert not device.do(lambda: device.context.irq_trigger(0))
    assert not device.do(lambda: device.context.irq_trigger(1))
    assert device.context.irqs_dropped == 2
    client.irqs(flags=0x21, index=2, start=0, count=2)  # the client triggers them itself
    os.read(read_end, 1 << 20)
    assert device.do(lambda: device.context.irq_trigger(1))
    with memfd(PAGE) as file, pytest.raises(OSError, match="Invalid"):
        client.eventfds(file)
    for fd in (full, read_end, write_end):
        os.close(fd)


@guarded
@pytest.mark.parametrize(
    ("flags", "index", "start", "count"),
    [
        (0x24, 2, 1, 0xFFFFFFFF),
        (0x24, 2, 3, 0xFFFFFFFE),
        (0x21, 2, 1, 0xFFFFFFFF),
        (0x0C, 2, 0, 5),
        (0x24, 3, 0, 1),
        (0x24, 4, 0, 1),
        (0x24, 0xFFFFFFFF, 0, 1),
        (0x21, 0, 0, 2),
        (0, 2, 0, 1),
    ],
)
def test_bad_irq_sets_are_refused(
    device: Device, client: RawClient, flags: int, index: int, start: int, count: int
) -> None:
    with pytest.raises(OSError, match="Invalid"):
        client.irqs(flags=flags, index=index, start=start, count=count)
    assert client.read(0, 0, 1) == b"\0"


@guarded
def test_a_dirty_bitmap_is_refused(device: Device, client: RawClient) -> None:
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE)
    unmap = struct.pack("<IIQQ", 48, 1, 0x10000, PAGE) + struct.pack("<QQ", PAGE, 8) + bytes(8)
    with pytest.raises(OSError, match="not supported"):
        client.call(3, unmap)
    assert client.read(0, 0, 1) == b"\0"


@guarded
def test_a_message_in_pieces(device: Device, client: RawClient) -> None:
    body = struct.pack("<QII", 0, 4, 0x4000) + bytes(range(256)) * 64
    message = HEADER.pack(1, REGION_WRITE, HEADER.size + len(body), 0, 0) + body
    for start in range(0, 32, 5):
        client.socket.sendall(message[start : start + 5])
    client.socket.sendall(message[35:1000])
    client.socket.sendall(message[1000:])
    client.receive()
    assert device.writes == [(4, 0, body[16:])]


def test_posted_writes_come_before_a_read(device: Device, client: RawClient) -> None:
    for i in range(500):
        client.send(REGION_WRITE, struct.pack("<QIIB", i, 4, 1, i & 0xFF), flags=NO_REPLY)
    client.read(4, 0, 1)
    assert [offset for _, offset, _ in device.writes] == list(range(500))


def test_the_next_client_starts_afresh(device: Device) -> None:
    fd = os.eventfd(0)
    for _ in range(20):
        with RawClient(device.path) as client, memfd(PAGE) as guest:
            assert len(device.context.memory) == 0
            assert not device.do(lambda: device.context.irq_trigger(0))
            client.map(guest, 0x10000, PAGE)
            client.eventfds(fd)
            assert device.do(lambda: device.context.irq_trigger(0))
    os.close(fd)
    assert {type(error) for error in device.errors} <= {ConnectionResetError}


@guarded
@pytest.mark.parametrize(
    "junk",
    [
        b"",
        b"GET / HTTP/1.1\r\n\r\n",
        HEADER.pack(0, 1, 0xFFFFFFFF, 0, 0),
        HEADER.pack(0, 1, 15, 0, 0),
        HEADER.pack(0, 2, 48, 0, 0) + bytes(32),
        HEADER.pack(0, 1, 20, 0, 0) + struct.pack("<HH", 7, 0),
        HEADER.pack(0, 1, 25, 0, 0) + struct.pack("<HH", 0, 0) + b"[[[[\0",
    ],
)
def test_junk_instead_of_negotiation(device: Device, junk: bytes) -> None:
    with RawClient(device.path, negotiate=False) as client:
        client.socket.sendall(junk)
        client.socket.shutdown(1)
        with contextlib.suppress(ConnectionResetError):  # it left some of it unread
            while client.socket.recv(4096):
                pass
    with RawClient(device.path) as good:
        assert good.read(0, 0, 1) == b"\0"


@guarded
@pytest.mark.parametrize("half", [b"", b"\1\0\2", HEADER.pack(1, DMA_MAP, 48, 0, 0) + bytes(5)])
@pytest.mark.parametrize("negotiate", [True, False])
def test_hang_up_ends_any_wait(tmp_path: Path, half: bytes, negotiate: bool) -> None:
    device = Device(tmp_path / "f.sock")
    client = RawClient(device.path, negotiate=negotiate)
    client.socket.sendall(half)
    if negotiate and not half:
        device.do(int)
    device.close()
    assert client.closed()
    client.socket.close()


@guarded
def test_hang_up_on_a_client_that_takes_no_replies(tmp_path: Path) -> None:
    device = Device(tmp_path / "f.sock")
    client = RawClient(device.path)
    client.socket.settimeout(0.3)
    with contextlib.suppress(TimeoutError):
        while True:
            client.send(9, struct.pack("<QII", 0, 4, 0x4000))
    device.close()
    client.socket.close()
