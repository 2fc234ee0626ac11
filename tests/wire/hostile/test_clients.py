"""Clients that stall, send nonsense or vanish: theirs is the only function that notices.

Each has a neighbour under I/O meanwhile. One server must end cleanly on SIGTERM while all of them are at it.
"""

from __future__ import annotations

import os
import random
import socket
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import NEXT, WRITE, Driven, Neighbour, bring_up, driven, works
from tests.wire.raw_client import DMA_MAP, HEADER, REGION_READ, REGION_WRITE, VERSION, RawClient
from tests.wire.running import stop
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci

CONFIG = 7
ROOM = 1 << 20

# What a client does, and keeps open in the stack.
Behaviour = Callable[[ExitStack, Path], None]
STALLS: dict[str, Behaviour] = {}
INSULTS: dict[str, Behaviour] = {}


def stall(function: Behaviour) -> Behaviour:
    STALLS[function.__name__] = function
    return function


def insult(function: Behaviour) -> Behaviour:
    INSULTS[function.__name__] = function
    return function


def connected(stack: ExitStack, path: Path, *, negotiate: bool = True) -> RawClient:
    return stack.enter_context(RawClient(path, negotiate=negotiate))


def sends(stack: ExitStack, path: Path, data: bytes, *, negotiate: bool = True) -> None:
    client = connected(stack, path, negotiate=negotiate)
    # The server may hang up on the first bytes.
    with suppress(ConnectionError):
        client.socket.sendall(data)


# Clients that keep the connection and say nothing more.


@stall
def silent(stack: ExitStack, path: Path) -> None:
    connected(stack, path, negotiate=False)


@stall
def half_a_negotiation(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, VERSION, HEADER.size + 40, 0, 0) + bytes(4), negotiate=False)


@stall
def negotiated_and_silent(stack: ExitStack, path: Path) -> None:
    connected(stack, path)


@stall
def half_a_header(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, REGION_READ, 32, 0, 0)[:7])


@stall
def header_only(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, REGION_READ, 32, 0, 0))


@stall
def part_of_a_body(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, REGION_WRITE, 36, 0, 0) + struct.pack("<QI", 0, CONFIG))


@stall
def never_reads(stack: ExitStack, path: Path) -> None:
    """Asks until neither side's buffers take more."""
    client = connected(stack, path)
    message = HEADER.pack(1, REGION_READ, 32, 0, 0) + struct.pack("<QII", 0, CONFIG, 4096)
    client.socket.settimeout(0.5)
    with suppress(TimeoutError):
        while True:
            client.socket.sendall(message)


@stall
def connects_twice(stack: ExitStack, path: Path) -> None:
    first = connected(stack, path)
    connected(stack, path, negotiate=False)
    assert first.read(CONFIG, 0, 2) == b"\xf4\x1a"


@stall
def fills_the_backlog(stack: ExitStack, path: Path) -> None:
    connected(stack, path)
    with suppress(BlockingIOError):
        for _ in range(64):
            waiting = stack.enter_context(socket.socket(socket.AF_UNIX))
            waiting.setblocking(False)
            waiting.connect(str(path))


# Clients that send what makes no sense; the server may hang up on them.


@insult
def rubbish(stack: ExitStack, path: Path) -> None:
    sends(stack, path, random.Random(0).randbytes(8192))


@insult
def rubbish_instead_of_negotiation(stack: ExitStack, path: Path) -> None:
    sends(stack, path, random.Random(1).randbytes(8192), negotiate=False)


@insult
def zeros(stack: ExitStack, path: Path) -> None:
    sends(stack, path, bytes(4096))


@insult
def message_of_4_gib(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, REGION_WRITE, 0xFFFF_FFFF, 0, 0) + bytes(4096))


@insult
def message_shorter_than_its_header(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, REGION_READ, 8, 0, 0) + bytes(16))


@insult
def unknown_command(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(1, 0xFFFF, 16, 0, 0))


@insult
def write_that_says_more_than_it_has(stack: ExitStack, path: Path) -> None:
    body = struct.pack("<QII", 0, CONFIG, 0xFFFF_FFF0) + bytes(4)
    sends(stack, path, HEADER.pack(1, REGION_WRITE, HEADER.size + len(body), 0, 0) + body)


@insult
def read_of_4_gib(stack: ExitStack, path: Path) -> None:
    body = struct.pack("<QII", 0, CONFIG, 0xFFFF_FFFF)
    sends(stack, path, HEADER.pack(1, REGION_READ, HEADER.size + len(body), 0, 0) + body)


@insult
def map_that_is_cut(stack: ExitStack, path: Path) -> None:
    body = struct.pack("<IIQ", 32, 3, 0)
    sends(stack, path, HEADER.pack(1, DMA_MAP, HEADER.size + len(body), 0, 0) + body)


@insult
def map_over_the_top(stack: ExitStack, path: Path) -> None:
    client = connected(stack, path)
    fd = os.memfd_create("memory")
    os.ftruncate(fd, 4096)
    with suppress(OSError):
        client.map(fd, (1 << 64) - 4096, 1 << 20)
    os.close(fd)


@insult
def replies_that_nobody_asked_for(stack: ExitStack, path: Path) -> None:
    sends(stack, path, HEADER.pack(7, REGION_READ, 32, 1, 0) + bytes(16))


@pytest.fixture(scope="module")
def neighbour(shared: ServerProcess) -> Iterator[Neighbour]:
    found = Neighbour(shared.socket("vf2"))
    yield found
    found.close()


@pytest.mark.parametrize("behaviour", (STALLS | INSULTS).values(), ids=STALLS | INSULTS)
def test_a_hostile_client(shared: ServerProcess, neighbour: Neighbour, behaviour: Behaviour) -> None:
    """Neighbours answer within a second; when it has left, the next client is served."""
    with ExitStack() as stack:
        behaviour(stack, shared.socket("vf1"))
        behaviour(stack, shared.socket("pf"))
        for _ in range(3):
            neighbour.answers()
    works(shared.socket("vf1"))
    works(shared.socket("pf"))


@pytest.mark.parametrize("behaviours", [STALLS, INSULTS], ids=["stalls", "insults"])
def test_sigterm_among_hostile_clients(
    serve: Callable[..., ServerProcess], behaviours: dict[str, Behaviour]
) -> None:
    """All of them at once, each with a VF of its own: SIGTERM ends the server within 5 s."""
    server = serve("--vfs", str(len(behaviours) + 1), "--disk", "ram:1M")
    neighbour = Neighbour(server.socket(f"vf{len(behaviours) + 1}"))
    with ExitStack() as stack:
        for number, behaviour in enumerate(behaviours.values(), 1):
            behaviour(stack, server.socket(f"vf{number}"))
        neighbour.answers()
        stop(server)
    neighbour.close()


def test_an_oversized_message_is_not_waited_for(shared: ServerProcess) -> None:
    """The server answers with an error or hangs up; it does not collect 4 GiB first."""
    with RawClient(shared.socket("vf1")) as client:
        client.socket.sendall(HEADER.pack(1, REGION_WRITE, 0xFFFF_FFFF, 0, 0))
        with pytest.raises(OSError, match=r".") as caught:
            client.receive()
        assert not isinstance(caught.value, TimeoutError)


KILLED = """
import sys
from vfu_client.drivers.block import BlockDriver
disk = BlockDriver.open(sys.argv[1])
print("attached", flush=True)
while True:
    disk.write(0, bytes(4096))
"""


def test_a_client_that_is_killed(shared: ServerProcess, neighbour: Neighbour) -> None:
    """Kill -9 in the middle of its I/O: the function is free for the next one, every time."""
    for _ in range(3):
        process = subprocess.Popen(
            [sys.executable, "-c", KILLED, str(shared.socket("vf1"))], stdout=subprocess.PIPE, text=True
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == "attached\n"
        process.kill()
        process.wait()
        neighbour.answers()
        with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
            assert device.status == 0
            assert device.function.config_read(4, 2) == 0
        works(shared.socket("vf1"))


def test_the_second_client_gets_its_turn(shared: ServerProcess) -> None:
    """Who connects while another is attached is served when that one leaves."""
    with (
        RawClient(shared.socket("vf1")) as first,
        RawClient(shared.socket("vf1"), negotiate=False) as second,
    ):
        assert first.read(CONFIG, 0, 2) == b"\xf4\x1a"
        second.send(VERSION, struct.pack("<HH", 0, 1) + b'{"capabilities":{}}\0')
        first.socket.close()
        second.receive()
        assert second.read(CONFIG, 0, 2) == b"\xf4\x1a"


def test_many_maps(shared: ServerProcess, neighbour: Neighbour) -> None:
    """More regions than libvfio-user's own 16, in any order, each with data, unmapped and mapped again."""
    memory = GuestMemory()
    order = list(range(120))
    random.Random(2).shuffle(order)
    regions = [memory.add_region(8192, 0x1_0000_0000 + 0x10000 * index) for index in order]
    main = memory.add_region(ROOM, 0x8000_0000)
    memory.regions.insert(0, memory.regions.pop(memory.regions.index(main)))
    with VirtioPci.open(shared.socket("vf1"), memory=memory, timeout=10) as device:
        block = bring_up(device)
        for index, region in enumerate(regions):
            if index % 3 == 0:
                memory.unmap(region)
                memory.map(region)
            region.view[:512] = index
            status = block.room(1)
            block.descriptor(0, block.header(1, index).address, 16, NEXT, 1)
            block.descriptor(1, region.address, 512, NEXT, 2)
            block.descriptor(2, status.address, 1, WRITE)
            block.offer()
            assert block.wait_used() == (0, 1)
            assert status.view[0] == 0
        neighbour.answers()
    memory.close()
    works(shared.socket("vf1"))


@pytest.mark.parametrize("where", ["ring", "data"])
def test_memory_that_is_not_shared(shared: ServerProcess, neighbour: Neighbour, where: str) -> None:
    """DMA_MAP without a file, and a ring or buffer in it: the device breaks, the log names the cure."""
    with driven(shared.socket("vf1"), ok=False) as block:
        hole = 0x40_0000_0000
        block.device.connection.dma_map(None, 0, hole, 1 << 20)
        if where == "ring":
            block.device.reset()
            with driven_on(block, hole) as broken:
                broken.device.driver_ok()
                broken.wait_broken()
        else:
            block.device.driver_ok()
            block.descriptor(0, hole, 16, NEXT, 1)
            block.descriptor(1, block.room(1).address, 1, WRITE)
            block.offer()
            block.wait_broken()
        neighbour.answers()
    shared.wait_log(r"virtio.vf1: .*memory-backend-memfd,.*share=on")
    works(shared.socket("vf1"))


@contextmanager
def driven_on(block: Driven, address: int) -> Iterator[Driven]:
    """Set the function up again, queue 0's rings at `address`, short of DRIVER_OK."""
    block.device.initialize(wanted=(32,))
    common = block.device.common
    common.write("queue_select", 0)
    for field in ("queue_desc", "queue_driver", "queue_device"):
        common.write(field, address)
    common.write("queue_enable", 1)
    yield block


@pytest.mark.parametrize("where", ["ring", "header", "data"])
def test_a_file_that_is_shorter_than_its_map(shared: ServerProcess, neighbour: Neighbour, where: str) -> None:
    """What lies past the end of the file is no memory: SIGBUS territory. The function breaks, alone."""
    with driven(shared.socket("vf1"), ok=False) as block:
        fd = os.memfd_create("short")
        os.ftruncate(fd, 4096)
        hole = 0x40_0000_0000
        block.device.connection.dma_map(fd, 0, hole, 1 << 20)
        if where == "ring":
            block.device.reset()
            with driven_on(block, hole + 0x8000) as broken:
                broken.device.driver_ok()
                broken.wait_broken()
        else:
            block.device.driver_ok()
            header = block.header(0).address if where == "data" else hole + 0x8000
            block.descriptor(0, header, 16, NEXT, 1)
            block.descriptor(1, hole + 0x9000, 512, WRITE | NEXT, 2)
            block.descriptor(2, block.room(1).address, 1, WRITE)
            block.offer()
            block.wait_broken()
        neighbour.answers()
        os.close(fd)
    shared.wait_log(r"virtio.vf1: .*past the end")
    works(shared.socket("vf1"))


def test_sigterm_under_load(serve: Callable[..., ServerProcess]) -> None:
    """Drivers with requests in flight do not keep the server from ending."""
    server = serve("--vfs", "2", "--io-delay-ms", "2000")
    with driven(server.socket("vf1")) as first, driven(server.socket("vf2")) as second:
        first.flush()
        second.flush()
        first.settle()
        second.settle()
        stop(server)
