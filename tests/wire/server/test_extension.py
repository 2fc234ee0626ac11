"""The extension on its own: what clients can do to it, from well-behaved to hostile."""

from __future__ import annotations

import contextlib
import json
import os
import random
import resource
import socket
import stat
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from pymodel.errors import MemoryFault
from pymodel.memory import Bytes, GuestMemory
from tests.wire.raw_client import DMA_MAP, HEADER, NO_REPLY, REGION_WRITE, RESET, RawClient
from tests.wire.server.context_rig import PAGE, Device, fds_open, guarded, memfd
from vfu_server.vfio._vfu import CONFIG_REGION
from vfu_server.vfio.guest_memory import GuestMemory as Mapped


class Viewed(GuestMemory):
    """Guest memory of which the model's own methods find all but the views of a range."""

    def __init__(self, memory: Mapped) -> None:
        self._memory = memory

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        return self._memory.view(address, length, write=write)


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
            assert memory.is_mapped(0x12FFF, 1 << 40)
            assert memory.is_mapped(0, 0x10001)
            assert not memory.is_mapped(0, 0x10000)
            assert not memory.is_mapped(0x13000, (1 << 64) - 0x13000)

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


@guarded
def test_regions_of_a_file_take_one_mapping_and_no_descriptor(device: Device, client: RawClient) -> None:
    """As many as Linux takes of a VFIO client and one more, in any order; the one after that is refused."""
    memory = device.context.memory
    count = 65536
    name = "many-regions"
    with memfd(count * PAGE, name) as fd:
        client.map(fd, 0, PAGE)
        before = device.do(fds_open)
        for i in range(1, count):
            at = i * 40503 % count
            client.map(fd, at * PAGE, PAGE, offset=at * PAGE)
        assert len(memory) == count
        assert memory.refused == 0
        assert device.do(fds_open) == before
        assert mapped(name) == 1
        for at in (0, 1, 255, 256, 30000, 65535):
            os.pwrite(fd, struct.pack("<I", at), at * PAGE)
            assert device.do(partial(memory.read, at * PAGE, 4)) == struct.pack("<I", at)
        with pytest.raises(OSError, match="No space"):
            client.map(fd, count * PAGE, PAGE)
        assert (memory.refused, memory.refusal) == (
            1,
            "the client maps more than 65536 regions of guest memory",
        )
        client.unmap(7 * PAGE, PAGE)
        client.map(fd, count * PAGE, PAGE, offset=7 * PAGE)
        client.unmap(0, (count + 1) * PAGE)
        assert len(memory) == 0
        assert mapped(name) == 0


def mapped(name: str) -> int:
    """How many mappings of a file there are in this process."""
    return sum(f"/memfd:{name} " in line for line in Path("/proc/self/maps").read_text().splitlines())


@guarded
def test_regions_come_and_go_in_any_order(device: Device, client: RawClient) -> None:
    """The table against a dictionary: ranges of all lengths, some removed by ranges that hold many."""
    memory = device.context.memory
    source = random.Random(3)
    regions: dict[int, int] = {}
    with memfd(PAGE) as fd:
        for _ in range(6000):
            start = source.randrange(4096)
            length = source.choice([1, 1, 1, 2, 7, 300])
            inside = {at: size for at, size in regions.items() if start <= at and at + size <= start + length}
            touched = {at for at, size in regions.items() if at < start + length and start < at + size}
            if source.randrange(4):
                refused = bool(touched) and regions.get(start) != length
                call = partial(client.map, None, start * 16, length * 16)
                regions.update({} if refused else {start: length})
            else:
                refused = touched != inside.keys()
                call = partial(client.unmap, start * 16, length * 16)
                if not refused:
                    for at in inside:
                        del regions[at]
            if refused:
                with pytest.raises(OSError, match="Invalid"):
                    call()
            else:
                call()
            assert len(memory) == len(regions)
        client.map(fd, 1 << 20, PAGE)

    def reached(address: int) -> bool:
        try:
            memory.view(address, 1, write=False)
        except MemoryFault as fault:
            return "not mapped" not in str(fault)
        return True

    held = {unit for at, size in regions.items() for unit in range(at, at + size)}
    found = device.do(lambda: {unit for unit in range(4500) if reached(unit * 16)})
    assert found == held
    assert reached(1 << 20)


@guarded
def test_an_unmap_takes_all_that_it_holds(device: Device, client: RawClient) -> None:
    """VFIO_IOMMU_UNMAP_DMA, version 2: many, one, none; never a part of one."""
    memory = device.context.memory
    with memfd(8 * PAGE) as fd:
        for i in range(575):
            client.map(fd, 0x10000 + 2 * i * PAGE, PAGE, offset=(i % 8) * PAGE)
        client.map(fd, 0x8000_0000, 2 * PAGE)
        client.map(fd, (1 << 64) - PAGE, PAGE)
        for start, length in (
            (0x7FFF_F000, 2 * PAGE),
            (0x8000_1000, PAGE),
            (0x8000_1000, 2 * PAGE),
            (0x8000_0800, 1),
        ):
            with pytest.raises(OSError, match="Invalid"):
                client.unmap(start, length)
        for start, length in ((0, 0), ((1 << 64) - PAGE, PAGE + 1)):
            with pytest.raises(OSError, match="Invalid"):
                client.unmap(start, length)
        assert len(memory) == 577
        client.unmap(0, 1 << 31)
        assert len(memory) == 2
        assert len(device.do(lambda: memory.view(0x8000_0000, 2 * PAGE, write=True))) == 1
        with pytest.raises(MemoryFault, match="not mapped"):
            device.do(lambda: memory.view(0x10000, 1, write=False))
        client.map(fd, 0x10000, PAGE)  # where one of them was
        device.logged.clear()
        at = memory.unmapped_at
        client.unmap(0x4000_0000, 1 << 30)  # nothing was there
        client.unmap(1 << 32, 1 << 62)
        assert memory.unmapped_at == at
        assert device.logged == []
        client.unmap(1 << 63, 1 << 63)
        assert len(memory) == 2


@guarded
def test_the_same_again_and_something_else(device: Device, client: RawClient) -> None:
    with memfd(2 * PAGE) as fd, memfd(2 * PAGE) as other:
        client.map(fd, 0x10000, PAGE)
        again = os.dup(fd)
        client.map(again, 0x10000, PAGE)
        os.close(again)
        for changed in (
            partial(client.map, fd, 0x10000, PAGE, offset=PAGE),
            partial(client.map, fd, 0x10000, PAGE, flags=1),
            partial(client.map, other, 0x10000, PAGE),
            partial(client.map, None, 0x10000, PAGE),
            partial(client.map, fd, 0x10000, 2 * PAGE),
        ):
            with pytest.raises(OSError, match="Invalid"):
                changed()
        os.pwrite(fd, b"A", 0)
        assert device.do(lambda: device.context.memory.read(0x10000, 1)) == b"A"


@guarded
def test_a_read_only_descriptor_of_a_file_that_is_mapped(device: Device, client: RawClient) -> None:
    """That the file is mapped writable already gives nobody else the right to write."""
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE)
        reader = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
        with pytest.raises(OSError, match="Permission"):
            client.map(reader, 0x20000, PAGE)
        client.map(reader, 0x30000, PAGE, flags=1)
        os.close(reader)
    memory = device.context.memory
    device.do(lambda: memory.view(0x30000, PAGE, write=False))
    with pytest.raises(MemoryFault, match="without write"):
        device.do(lambda: memory.view(0x30000, PAGE, write=True))


@guarded
def test_a_file_that_grows(device: Device, client: RawClient) -> None:
    memory = device.context.memory
    with memfd(PAGE) as fd:
        client.map(fd, 0x10000, PAGE)
        os.ftruncate(fd, 4 * PAGE)
        os.pwrite(fd, b"Z", 4 * PAGE - 1)
        client.map(fd, 0x20000, PAGE, offset=3 * PAGE)
    assert device.do(lambda: memory.read(0x20FFF, 1)) == b"Z"
    assert memory.lost == 0


@pytest.fixture
def limited(tmp_path: Path) -> Iterator[Device]:
    made = Device(tmp_path / "g.sock", eventfds_max=2, mappings_max=3, bytes_max=64 * PAGE)
    yield made
    made.close()


@guarded
def test_a_client_has_only_its_share(limited: Device) -> None:
    """What is too much is refused, counted and changes nothing; what was given back counts no more."""
    memory = limited.context.memory
    with RawClient(limited.path) as client, contextlib.ExitStack() as stack:
        files = [stack.enter_context(memfd(PAGE)) for _ in range(5)]
        for i, fd in enumerate(files[:3]):
            client.map(fd, i << 20, PAGE)
        with pytest.raises(OSError, match="No space"):
            client.map(files[3], 3 << 20, PAGE)
        assert memory.refusal == "the client maps guest memory of more than 3 files"
        client.map(files[0], 4 << 20, PAGE)  # no file more
        view = limited.do(lambda: memory.view(0, PAGE, write=True)[0])
        client.unmap(0, 5 << 20)
        client.map(files[3], 0, PAGE)
        client.map(files[4], 1 << 20, PAGE)
        with pytest.raises(OSError, match="No space"):
            client.map(files[1], 2 << 20, PAGE)  # the view still has the first one
        view[:] = 1
        del view
        limited.do(lambda: None)  # whose result takes the view's place
        client.map(files[1], 2 << 20, PAGE)
        assert (memory.refused, len(memory)) == (2, 3)
        client.unmap(0, 1 << 32)
        with memfd(1000 * PAGE) as large:
            client.map(large, 0, 60 * PAGE, offset=900 * PAGE)  # too large as a whole
            with pytest.raises(OSError, match="No space"):
                client.map(large, 1 << 20, 5 * PAGE)
            os.pwrite(large, b"B", 900 * PAGE)
            assert limited.do(lambda: memory.read(0, 1)) == b"B"


@guarded
def test_a_client_has_only_its_share_of_eventfds(limited: Device) -> None:
    fd = os.eventfd(0)
    with RawClient(limited.path) as client:
        client.eventfds(fd, fd)
        with pytest.raises(OSError, match="Too many open files"):
            client.eventfds(fd, start=2)
        client.eventfds(fd, fd, start=0)  # in place of those
        client.irqs(flags=0x24, index=2, start=0, count=2)
        client.eventfds(fd, fd, start=2)
        assert limited.do(lambda: limited.context.irq_trigger(3))
    os.close(fd)


@guarded
def test_a_message_with_more_descriptors_than_it_may_have(device: Device) -> None:
    """16 are taken, though 8 are announced; each counts against the process while it is looked at."""
    before = fds_open()
    with RawClient(device.path) as client, memfd(PAGE) as fd:
        client.call(RESET, b"", (fd,) * 16)
        client.send(RESET, b"", (fd,) * 17)
        assert client.closed()
    device.do(lambda: None)
    assert [str(error) for error in device.errors] == [
        "a message had more file descriptors than it may, or the process has too many open"
    ]
    assert fds_open() == before


@guarded
def test_no_descriptor_for_another_client(device: Device) -> None:
    """Who connects waits; the server says so once in a while, and does not try again all the time."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with socket.socket(socket.AF_UNIX) as waiting:
        resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
        try:
            waiting.connect(str(device.path))
            while not device.errors:
                device.do(lambda: None)
            for _ in range(200):
                device.do(lambda: None)
            tried = len(device.errors)
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        assert isinstance(device.errors[0], BlockingIOError)
        assert tried < 100
        caps = b'{"capabilities":{}}\0'
        waiting.settimeout(10)
        waiting.sendall(
            HEADER.pack(1, 1, HEADER.size + 4 + len(caps), 0, 0) + struct.pack("<HH", 0, 1) + caps
        )
        assert waiting.recv(4)[:2] == b"\1\0"


@guarded
def test_what_is_announced(device: Device) -> None:
    """QEMU takes a `max_dma_maps` of 65535 at most (hw/vfio-user/proxy.c, check_max_dma)."""
    with RawClient(device.path, negotiate=False) as client:
        reply = client.call(1, struct.pack("<HH", 0, 1) + b'{"capabilities":{}}\0')
    assert reply[:4] == b"\0\0\1\0"
    assert reply.endswith(b"}\0")
    assert json.loads(reply[4:-1]) == {
        "capabilities": {"max_msg_fds": 8, "max_data_xfer_size": 1048576, "max_dma_maps": 65535}
    }


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
            theirs = found(Viewed(memory).views, segments, start, length, write=write)
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
    with pytest.raises(MemoryFault, match="past the end"):
        device.do(lambda: memory.view(0x10000, 1, write=False))
    client.unmap(0x10000, 6 * PAGE)
    assert memory.lost == 5
    assert client.read(0, 0, 1) == b"\0"


@guarded
def test_a_file_that_is_cut_short_page_by_page(device: Device, client: RawClient) -> None:
    """A process may have 65530 mappings, and loses a function's memory with two of them."""
    memory = device.context.memory
    count = 3000
    with memfd(count * PAGE) as fd:
        client.map(fd, 0, count * PAGE)
        view = device.do(lambda: memory.view(0, count * PAGE, write=True)[0])
        before = len(Path("/proc/self/maps").read_text().splitlines())
        os.ftruncate(fd, PAGE)
        for page in range(count - 1, 0, -2):
            view[page * PAGE] = 1
        assert memory.lost == count - 1
        assert len(Path("/proc/self/maps").read_text().splitlines()) <= before + 2
        client.map(fd, 1 << 40, PAGE)  # anew
    device.do(lambda: memory.view(1 << 40, PAGE, write=True))


@pytest.fixture
def large_blocks(tmp_path: Path) -> Iterator[Path]:
    """A folder of a file system whose st_blksize is not its page size."""
    folder = tmp_path / "large"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "huge=always,size=16M", "none", folder],
        check=False,
        capture_output=True,
    )
    if mounted.returncode:
        pytest.skip("may not mount a tmpfs here, or it has no huge pages")
    try:
        yield folder
    finally:
        # What maps a file of it may be around for a while.
        subprocess.run(["umount", "--lazy", folder], check=True)


def test_a_short_file_where_blocks_are_large(device: Device, client: RawClient, large_blocks: Path) -> None:
    """Blocks of a file system are no pages: each page that is lost counts, and nothing in front of it is."""
    memory = device.context.memory
    path = large_blocks / "guest"
    path.write_bytes(b"\1" * (4 * PAGE))
    assert path.stat().st_blksize > PAGE
    fd = os.open(path, os.O_RDWR)
    client.map(fd, 0x10000, 4 * PAGE)
    os.close(fd)
    view = device.do(lambda: memory.view(0x10000, 4 * PAGE, write=True)[0])
    assert np.count_nonzero(view) == 4 * PAGE
    os.truncate(path, PAGE)
    assert np.count_nonzero(view) == PAGE
    assert memory.lost == 3
    client.unmap(0x10000, 4 * PAGE)


@guarded
def test_fds_are_not_leaked(device: Device, client: RawClient) -> None:
    with memfd(PAGE) as fd, memfd(PAGE) as other:
        client.map(fd, 0x10000, PAGE)
        before = device.do(fds_open)
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
        assert device.do(fds_open) <= before
    read_end, write_end = os.pipe()
    with pytest.raises(OSError, match=r"Permission|No such device"):
        client.map(read_end, 0x20000, PAGE)  # can't be mapped; the library closed the fd twice
    os.close(read_end)
    os.close(write_end)
    assert device.do(fds_open) <= before - 2


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
