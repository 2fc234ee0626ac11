"""Split rings under a well-behaved driver: how buffers are cut, how indices wrap, who is told when."""

from __future__ import annotations

import itertools
import random
import struct
from collections.abc import Callable

import numpy as np
import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import (
    EVENT_IDX,
    INDIRECT,
    INDIRECT_DESC,
    NEXT,
    RING_RESET,
    VERSION_1,
    WRITE,
    Driven,
    bring_up,
    driven,
    split_queue,
)
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.owner import OwnerDriver
from vfu_client.virtio.function import VirtioPci

BOTH = pytest.mark.parametrize("name", ["pf", "vf1"])
FEATURE_SETS = pytest.mark.parametrize(
    "features",
    [
        (VERSION_1,),
        (VERSION_1, INDIRECT_DESC),
        (VERSION_1, EVENT_IDX),
        (VERSION_1, INDIRECT_DESC, EVENT_IDX),
    ],
    ids=lambda bits: "+".join(map(str, bits)),
)


@BOTH
@FEATURE_SETS
@pytest.mark.parametrize("size", [4, 32, 256])
def test_many_in_flight(shared: ServerProcess, name: str, features: tuple[int, ...], size: int) -> None:
    """As many requests as fit, again and again; each answer is that of its own request."""
    with VirtioPci.open(shared.socket(name), timeout=10) as device:
        disk = BlockDriver(device, queue_size=size, features=frozenset(features))
        depth = size if INDIRECT_DESC in features else size // 3
        for sector in range(64):
            disk.write(sector, bytes([sector]) * 512)
        randomly = random.Random(size)
        for _ in range(3):
            buffers = [device.memory.allocate(512) for _ in range(depth)]
            sectors = [randomly.randrange(64) for _ in buffers]
            for number, (buffer, sector) in enumerate(zip(buffers, sectors, strict=True)):
                disk.submit(0, sector, buffer, kick=number % 7 == 0 or number == depth - 1)
            while disk.in_flight:
                for request in disk.completions():
                    request.check()
            for buffer, sector in zip(buffers, sectors, strict=True):
                assert buffer.view.tobytes() == bytes([sector]) * 512
                device.memory.free(buffer)


@FEATURE_SETS
@pytest.mark.parametrize("size", [2, 256])
def test_indices_wrap(shared: ServerProcess, features: tuple[int, ...], size: int) -> None:
    """The 16-bit indices go through 65535 to 0: a context write puts the ring shortly before."""
    start = 65530
    with (
        OwnerDriver.open(shared.socket("pf"), timeout=10) as owner,
        driven(shared.socket("vf1"), features=features, size=size) as block,
    ):
        owner.mode_set(1, 2)
        owner.context_write(1, moved_to(start))
        queue = block.queue
        queue.avail[1] = queue.used[1] = start
        queue.avail[-1] = start  # used_event
        queue._avail_idx = queue._kicked_idx = queue._used_idx = block.used = start
        owner.mode_set(1, 0)
        for _ in range(12):
            block.flush()
            queue.avail[-1] = block.used
            assert block.wait_used() == (0, 1)
        assert int(queue.used[1]) == (start + 12) & 0xFFFF
        assert block.device.status == 15


def moved_to(index: int) -> bytes:
    """A context that says where queue 0 is, and nothing else."""
    state = struct.pack("<HHHH", 0, index, index, 0)
    field = struct.pack("<IIQ", 0x15, 0, len(state)) + state
    return struct.pack("<IIQ", 0, 0, 0) + field + struct.pack("<IIQ", 1, 0, 0)


def offer_cut(block: Driven, segments: list[tuple[int, int, int]], how: str) -> None:
    """Offer (address, length, flags) as direct descriptors, as an indirect table, or half and half."""
    direct = len(segments) if how == "direct" else 0 if how == "indirect" else len(segments) // 2
    for slot, (address, length, flags) in enumerate(segments[:direct]):
        last = slot == len(segments) - 1
        block.descriptor(slot, address, length, flags | (0 if last else NEXT), slot + 1)
    if direct < len(segments):
        rest = segments[direct:]
        table = block.table(
            *(
                (address, length, flags | (NEXT if number < len(rest) - 1 else 0), number + 1)
                for number, (address, length, flags) in enumerate(rest)
            )
        )
        # The WRITE flag of a descriptor that refers to a table means nothing.
        block.descriptor(direct, table.address, table.size, INDIRECT | WRITE)
    block.offer()


@BOTH
@pytest.mark.parametrize("how", ["direct", "indirect", "mixed"])
@pytest.mark.spec("Message Framing")
def test_any_framing(shared: ServerProcess, name: str, how: str) -> None:
    """Header, data and status cut anywhere: byte by byte, across their borders, with empty pieces."""
    randomly = random.Random(how)
    with driven(shared.socket(name), size=128) as block:
        for turn in range(24):
            sectors = randomly.choice([1, 2, 3])
            data = randomly.randbytes(512 * sectors)
            out = block.bytes(struct.pack("<IIQ", 1, 0, turn) + data)
            back = block.room(512 * sectors + 1)
            statuses = block.room(1)
            write_parts = [*pieces(out.address, out.size, randomly, turn == 0, 0)]
            offer_cut(block, [*write_parts, (statuses.address, 1, WRITE)], how)
            assert block.wait_used() == (0, 1)
            assert statuses.view[0] == 0
            header = block.header(0, turn)
            read_parts = [
                *pieces(header.address, 16, randomly, turn == 0, 0),
                *pieces(back.address, back.size, randomly, False, WRITE),
            ]
            offer_cut(block, read_parts, how)
            assert block.wait_used() == (0, back.size)
            assert back.view.tobytes() == data + b"\0"
            for buffer in (out, back, statuses, header):
                block.device.memory.free(buffer)


def pieces(
    address: int, size: int, randomly: random.Random, single: bool, flags: int
) -> list[tuple[int, int, int]]:
    """[address, address + size) in up to 21 pieces, empty ones too, or its first 16 bytes singly."""
    cuts = range(1, 17) if single else randomly.choices(range(size + 1), k=randomly.randrange(20))
    edges = [0, *sorted(cuts), size]
    return [(address + a, b - a, flags) for a, b in itertools.pairwise(edges)]


def test_status_next_to_data_across_regions(shared: ServerProcess) -> None:
    """One descriptor over the seam of two regions that the client mapped apart."""
    with driven(shared.socket("vf1")) as block:
        memory = block.device.memory
        first = memory.add_region(4096, allocatable=False)
        second = memory.add_region(4096, allocatable=False)
        assert first.end == second.address
        header = block.header(0, 0)
        block.descriptor(0, header.address, 16, NEXT, 1)
        block.descriptor(1, second.address - 256, 513, WRITE)
        first.view[:] = second.view[:] = 0xEE
        block.offer()
        assert block.wait_used() == (0, 513)
        assert second.view[256] == 0
        assert second.view[257] == 0xEE


def test_no_interrupt_flag(shared: ServerProcess) -> None:
    """avail.flags = 1: requests are done, nobody is told."""
    with driven(shared.socket("vf1"), features=(VERSION_1,)) as block:
        block.queue.avail[0] = 1
        block.flushed()
        assert sum(block.signals()) == 0
        block.queue.avail[0] = 0
        block.flushed()
        assert block.signals()[1] == 1
        assert int(block.queue.used[0]) == 0  # it wants to be kicked


def test_used_event(shared: ServerProcess) -> None:
    """EVENT_IDX: an interrupt when used.idx passes used_event, only then; avail.flags is not looked at."""
    with driven(shared.socket("vf1"), features=(VERSION_1, EVENT_IDX)) as block:
        queue = block.queue
        queue.avail[0] = 1
        done = 0
        steps = ((0, 1, 1), (3, 1, 0), (3, 1, 0), (3, 1, 1), (2, 1, 0), (9, 3, 0), (8, 2, 1))
        for event, requests, told in steps:
            queue.avail[-1] = event
            done += requests
            for _ in range(requests - 1):
                for slot, (buffer, flags) in enumerate(((block.header(4), NEXT), (block.room(1), WRITE))):
                    block.descriptor(slot, buffer.address, buffer.size, flags, 1)
                queue.publish(0)
            block.flush()
            until(lambda: queue.device_used_idx == done, "done")  # noqa: B023 - called at once
            assert block.signals() == [0, told, 0], (event, done)
            assert int(queue.used[0]) == 0


def test_avail_event(shared: ServerProcess) -> None:
    """EVENT_IDX: the device asks for a kick at the next request it has not seen."""
    with driven(shared.socket("vf1"), features=(VERSION_1, EVENT_IDX)) as block:
        for number in range(1, 4):
            block.flushed()
            assert int(block.queue.used[-1]) == number


@BOTH
def test_queue_reset(serve: Callable[..., ServerProcess], name: str) -> None:
    """RING_RESET: that queue only; what was fetched is forgotten; enabled again with other parameters."""
    server = serve("--vfs", "1", "--queues", "2", "--io-delay-ms", "300" if name == "vf1" else "0")
    with driven(server.socket(name), features=(VERSION_1, RING_RESET)) as block:
        device = block.device
        other = split_queue(device, 1, size=4)
        old = block.queue
        if name == "vf1":
            block.flush()
            block.settle()  # it is fetched, and held
        device.common.write("queue_select", 0)
        assert device.common.read("queue_reset") == 0
        device.common.write("queue_reset", 1)
        assert device.common.read("queue_reset") == 0
        assert device.common.read("queue_enable") == 0
        assert device.common.read("queue_msix_vector") == 0xFFFF
        assert device.common.read("queue_desc") == 0
        assert device.common.read("queue_size") == 256
        device.common.write("queue_select", 1)
        assert device.common.read("queue_enable") == 1
        again = Driven(device, split_queue(device, 0, size=32, vector=2))
        again.flush()
        assert again.wait_used() == (0, 1)
        assert old.device_used_idx == 0
        second = Driven(device, other)
        second.flush()
        assert second.wait_used() == (0, 1)
        assert device.status == 15


def test_queue_reset_needs_its_feature(shared: ServerProcess) -> None:
    with driven(shared.socket("vf1"), features=(VERSION_1,)) as block:
        block.device.common.write("queue_select", 0)
        block.device.common.write("queue_reset", 1)
        assert block.device.common.read("queue_enable") == 1
        block.flush()
        assert block.wait_used() == (0, 1)


def test_device_reset_forgets_what_is_in_flight(serve: Callable[..., ServerProcess]) -> None:
    """No DMA after reset: a request that was fetched before is never completed."""
    server = serve("--vfs", "1", "--io-delay-ms", "200")
    with driven(server.socket("vf1")) as block:
        status = block.room(1)
        block.request((block.header(4), False), (status, True))
        block.settle()
        old = block.queue.used_buffer.view
        block.device.common.write("device_status", 0)
        assert block.device.status == 0
        device = block.device
        del device.queues[0]  # its memory stays as it is
        again = bring_up(device)
        again.flush()  # completes after the first one would have
        again.wait_used()
        assert not np.any(old)
        assert status.view[0] == 0xEE


def test_four_queues(serve: Callable[..., ServerProcess]) -> None:
    """Each queue has its own rings, doorbell and vector; MQ is offered."""
    server = serve("--vfs", "1", "--queues", "4", "--disk", "ram:1M")
    with VirtioPci.open(server.socket("vf1"), timeout=10) as device:
        assert device.common.read("num_queues") == 4
        assert device.common.features() >> 12 & 1
        assert struct.unpack("<H", device.config_bytes(34, 2)) == (4,)
        disk = BlockDriver(device, queues=4)
        assert device.msix is not None
        assert len(device.msix.interrupts) == 5
        for turn in range(8):
            requests = []
            for queue in range(4):
                data = device.memory.allocate(512)
                data.view[:] = 16 * turn + queue
                requests.append(disk.submit(1, queue, data, queue=queue, owns_data=True))
            for request in reversed(requests):
                disk.finish(request)
        for queue in range(4):
            assert disk.read(queue).tobytes() == bytes([16 * 7 + queue]) * 512
        device.common.write("queue_select", 4)
        assert device.common.read("queue_size") == 0


@BOTH
def test_bus_master_enable(shared: ServerProcess, name: str) -> None:
    """Off: nothing is fetched, however often it is kicked. On: found without another kick."""
    with driven(shared.socket(name)) as block:
        block.device.function.clear_command(4)
        block.flush()
        block.queue.kick(force=True)
        block.settle()
        assert block.queue.device_used_idx == 0
        assert block.device.status == 15
        block.device.function.set_command(4)
        assert block.wait_used() == (0, 1)


@BOTH
def test_nothing_before_driver_ok(shared: ServerProcess, name: str) -> None:
    """Enabled and kicked, but not DRIVER_OK: nothing is used. DRIVER_OK finds it."""
    with driven(shared.socket(name), ok=False) as block:
        block.flush()
        block.settle()
        assert block.queue.device_used_idx == 0
        block.device.driver_ok()
        assert block.wait_used() == (0, 1)


@BOTH
def test_spurious_notifications(shared: ServerProcess, name: str) -> None:
    """Of empty queues, queues that are not enabled or not there, in any width: harmless."""
    with driven(shared.socket(name)) as block:
        notify = block.device.structures[2]
        for offset in (0, 4, 8, 12, 1, 2, 0x100, 0xFFC):
            for width in (1, 2, 4, 8):
                if notify.offset + offset + width <= 0x4000:
                    block.device.function.bar_write(notify.bar, notify.offset + offset, width, 0xFF)
        assert block.device.status == 15
        block.flush()
        assert block.wait_used() == (0, 1)


def test_kicks_of_one_function_are_not_another_s(shared: ServerProcess) -> None:
    """Two VFs and the PF work at the same time, each on its own disk."""
    names = ("pf", "vf1", "vf2")
    disks = {name: BlockDriver.open(shared.socket(name), timeout=10) for name in names}
    try:
        for number, name in enumerate(names):
            disks[name].write(0, bytes([number]) * 512)
        for number, name in enumerate(names):
            assert disks[name].read(0).tobytes() == bytes([number]) * 512
    finally:
        for disk in disks.values():
            disk.close()
