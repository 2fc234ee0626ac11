"""What a broken driver can put on a ring. Each breaks its own function only, until it resets it.

Every case ends in DEVICE_NEEDS_RESET and a configuration interrupt; a neighbour goes on meanwhile, and
after a reset the function works again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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
    Neighbour,
    bring_up,
    driven,
    split_queue,
)
from tests.wire.running import until

FEATURES = (VERSION_1, INDIRECT_DESC)
NOWHERE = 0xDEAD_0000_0000
TOP = (1 << 64) - 16

Breakage = Callable[[Driven], None]
CASES: dict[str, Breakage] = {}


def case(function: Breakage) -> Breakage:
    CASES[function.__name__] = function
    return function


def chain(block: Driven, *descriptors: tuple[int, int, int, int]) -> None:
    """Direct descriptors from slot 0 on, offered."""
    for slot, descriptor in enumerate(descriptors):
        block.descriptor(slot, *descriptor)
    block.offer()


def indirect(block: Driven, *entries: tuple[int, int, int, int], length: int | None = None) -> None:
    table = block.table(*entries)
    chain(block, (table.address, table.size if length is None else length, INDIRECT, 0))


@case
def loop(block: Driven) -> None:
    header = block.header(4)
    chain(block, (header.address, 8, NEXT, 1), (header.address + 8, 8, NEXT, 0))


@case
def loop_of_writable_ones(block: Driven) -> None:
    header, room = block.header(0), block.room(16)
    chain(block, (header.address, 16, NEXT, 1), (room.address, 8, NEXT | WRITE, 1))


@case
def loop_of_empty_ones(block: Driven) -> None:
    chain(block, (0, 0, NEXT, 1), (0, 0, NEXT, 0))


@case
def head_out_of_range(block: Driven) -> None:
    block.offer(8)


@case
def head_far_out_of_range(block: Driven) -> None:
    block.offer(0xFFFF)


@case
def next_out_of_range(block: Driven) -> None:
    chain(block, (block.header(4).address, 16, NEXT, 8))


@case
def next_far_out_of_range(block: Driven) -> None:
    chain(block, (block.header(4).address, 16, NEXT, 0xFFFF))


@case
def avail_index_jumps(block: Driven) -> None:
    block.queue.avail[1] = 9
    block.queue.kick(force=True)


@case
def avail_index_goes_back(block: Driven) -> None:
    block.queue.avail[1] = 0xFFFF
    block.queue.kick(force=True)


@case
def readable_after_writable(block: Driven) -> None:
    header, room = block.header(4), block.room(1)
    chain(block, (room.address, 1, WRITE | NEXT, 1), (header.address, 16, 0, 0))


@case
def readable_after_writable_in_a_table(block: Driven) -> None:
    header, room = block.header(4), block.room(1)
    indirect(block, (room.address, 1, WRITE | NEXT, 1), (header.address, 16, 0, 0))


@case
def indirect_with_next(block: Driven) -> None:
    table = block.table((block.header(4).address, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0))
    room = block.room(1)
    chain(block, (table.address, 32, INDIRECT | NEXT, 1), (room.address, 1, WRITE, 0))


@case
def nested_indirect(block: Driven) -> None:
    table = block.table((block.header(4).address, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0))
    indirect(block, (table.address, 32, INDIRECT, 0))


@case
def indirect_of_no_length(block: Driven) -> None:
    indirect(block, (block.header(4).address, 16, 0, 0), length=0)


@case
def indirect_of_odd_length(block: Driven) -> None:
    indirect(block, (block.header(4).address, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0), length=31)


@case
def indirect_shorter_than_its_chain(block: Driven) -> None:
    indirect(block, (block.header(4).address, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0), length=16)


@case
def indirect_of_4_gib(block: Driven) -> None:
    indirect(block, (block.header(4).address, 16, 0, 0), length=0xFFFF_FFF0)


@case
def indirect_longer_than_the_queue(block: Driven) -> None:
    indirect(block, *((block.header(4).address, 0, NEXT, slot + 1) for slot in range(9)))


@case
def indirect_loop(block: Driven) -> None:
    header = block.header(4)
    indirect(block, (header.address, 8, NEXT, 1), (header.address, 8, NEXT, 0))


@case
def indirect_table_not_mapped(block: Driven) -> None:
    chain(block, (NOWHERE, 32, INDIRECT, 0))


@case
def indirect_table_past_the_top(block: Driven) -> None:
    chain(block, (TOP, 32, INDIRECT, 0))


@case
def header_not_mapped(block: Driven) -> None:
    chain(block, (NOWHERE, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0))


@case
def status_not_mapped(block: Driven) -> None:
    chain(block, (block.header(4).address, 16, NEXT, 1), (NOWHERE, 1, WRITE, 0))


@case
def header_past_the_top(block: Driven) -> None:
    chain(block, (TOP + 8, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0))


@case
def read_data_not_mapped(block: Driven) -> None:
    room = block.room(1)
    chain(
        block,
        (block.header(0).address, 16, NEXT, 1),
        (NOWHERE, 512, WRITE | NEXT, 2),
        (room.address, 1, WRITE, 0),
    )


@case
def write_data_past_the_top(block: Driven) -> None:
    room = block.room(1)
    chain(block, (block.header(1).address, 16, NEXT, 1), (TOP, 512, NEXT, 2), (room.address, 1, WRITE, 0))


@case
def write_data_beyond_its_region(block: Driven) -> None:
    end = block.device.memory.regions[-1].end
    room = block.room(1)
    chain(
        block, (block.header(1).address, 16, NEXT, 1), (end - 256, 512, NEXT, 2), (room.address, 1, WRITE, 0)
    )


@case
def more_than_4_gib(block: Driven) -> None:
    header = block.header(0)
    chain(
        block,
        (header.address, 16, NEXT, 1),
        (header.address, 0xFFFF_FFFF, WRITE | NEXT, 2),
        (header.address, 0xFFFF_FFFF, WRITE, 0),
    )


@case
def no_header(block: Driven) -> None:
    chain(block, (block.room(1).address, 1, WRITE, 0))


@case
def header_too_short(block: Driven) -> None:
    chain(block, (block.header(4).address, 15, NEXT, 1), (block.room(1).address, 1, WRITE, 0))


@case
def header_of_no_length(block: Driven) -> None:
    chain(block, (block.header(4).address, 0, NEXT, 1), (block.room(1).address, 1, WRITE, 0))


@case
def no_status(block: Driven) -> None:
    chain(block, (block.header(4).address, 16, 0, 0))


@case
def status_of_no_length(block: Driven) -> None:
    chain(block, (block.header(4).address, 16, NEXT, 1), (block.room(1).address, 0, WRITE, 0))


@pytest.fixture(scope="module")
def neighbour(shared: ServerProcess) -> Iterator[Neighbour]:
    found = Neighbour(shared.socket("vf2"))
    yield found
    found.close()


def recovers(block: Driven, features: tuple[int, ...] = FEATURES) -> None:
    """Nothing is done any more until reset, then everything again."""
    used = block.queue.device_used_idx
    block.queue.kick(force=True)
    block.settle()
    assert block.queue.device_used_idx == used
    assert sum(block.signals()) == 0
    block.device.reset()
    assert block.device.status == 0
    again = bring_up(block.device, features=features)
    again.flush()
    assert again.wait_used() == (0, 1)
    assert again.device.status == 15


@pytest.mark.parametrize("name", ["pf", "vf1"])
@pytest.mark.parametrize("breakage", CASES.values(), ids=CASES)
def test_broken_chain(shared: ServerProcess, neighbour: Neighbour, name: str, breakage: Breakage) -> None:
    with driven(shared.socket(name), features=FEATURES) as block:
        breakage(block)
        block.wait_broken()
        neighbour.answers()
        recovers(block)


@pytest.mark.parametrize("queue", [2], ids=["admin"])
@pytest.mark.parametrize("breakage", [loop, head_out_of_range, avail_index_jumps, header_not_mapped])
def test_broken_admin_queue(
    shared: ServerProcess, neighbour: Neighbour, queue: int, breakage: Breakage
) -> None:
    """The admin queue is a queue like any other: its function breaks, the VFs go on."""
    with driven(shared.socket("pf"), features=(VERSION_1, INDIRECT_DESC, 41)) as block:
        broken = Driven(block.device, split_queue(block.device, queue, size=8))
        breakage(broken)
        broken.wait_broken()
        neighbour.answers()
        recovers(block)


def test_indirect_that_was_not_negotiated(shared: ServerProcess, neighbour: Neighbour) -> None:
    with driven(shared.socket("vf1"), features=(VERSION_1,)) as block:
        indirect(block, (block.header(4).address, 16, NEXT, 1), (block.room(1).address, 1, WRITE, 0))
        block.wait_broken()
        neighbour.answers()
        recovers(block)


@pytest.mark.parametrize("features", [(VERSION_1,), (VERSION_1, EVENT_IDX)], ids=["flags", "event"])
@pytest.mark.parametrize("ring", ["queue_desc", "queue_driver", "queue_device"])
@pytest.mark.parametrize("address", [NOWHERE, TOP, (1 << 64) - 4096, 0])
def test_rings_not_mapped(
    shared: ServerProcess, neighbour: Neighbour, features: tuple[int, ...], ring: str, address: int
) -> None:
    """A ring where no memory is, or over the top of the address space, and a request on it."""
    with driven(shared.socket("vf1"), features=features, ok=False) as block:
        common = block.device.common
        common.write("queue_select", 1)
        for field, buffer in (
            ("queue_desc", block.queue.desc_buffer),
            ("queue_driver", block.queue.avail_buffer),
            ("queue_device", block.queue.used_buffer),
        ):
            common.write(field, address if field == ring else buffer.address)
        common.write("queue_size", 8)
        common.write("queue_enable", 1)
        block.flush()
        block.device.driver_ok()
        block.wait_broken()
        block.signals()  # queue 0, whose rings are good, may have told of its request
        neighbour.answers()
        recovers(block)


def test_rings_past_the_end_of_memory(shared: ServerProcess, neighbour: Neighbour) -> None:
    """Only the ring's first entries are mapped: what lies within is used until the end is met."""
    with driven(shared.socket("vf1"), ok=False) as block:
        region = block.device.memory.add_region(4096, allocatable=False)
        common = block.device.common
        common.write("queue_select", 1)
        common.write("queue_desc", region.end - 32)
        common.write("queue_driver", region.address)
        common.write("queue_device", region.address + 1024)
        common.write("queue_enable", 1)
        rings = region.view.view("<u2")
        header, room = block.header(4), block.room(1)
        region.view[-32:] = block.table(
            (header.address, 16, NEXT, 1), (room.address, 1, WRITE | NEXT, 2)
        ).view
        rings[1] = 1
        block.device.driver_ok()
        block.wait_broken()
        neighbour.answers()
        recovers(block)


def test_read_only_memory(shared: ServerProcess, neighbour: Neighbour) -> None:
    """Memory that the client mapped for reading is not written."""
    with driven(shared.socket("vf1")) as block:
        region = block.device.memory.add_region(4096, writable=False, allocatable=False)
        chain(block, (block.header(4).address, 16, NEXT, 1), (region.address, 1, WRITE, 0))
        block.wait_broken()
        assert not region.view.any()
        neighbour.answers()
        recovers(block)


@pytest.mark.parametrize("what", ["rings", "data"])
def test_unmapped_in_the_middle(serve: Callable[..., ServerProcess], what: str) -> None:
    """Memory goes while a request is between fetch and completion."""
    server = serve("--vfs", "2", "--io-delay-ms", "100")
    neighbour = Neighbour(server.socket("vf2"))
    with driven(server.socket("vf1")) as block:
        memory = block.device.memory
        rings = memory.regions[0]
        data = memory.add_region(4096, allocatable=False)
        header = block.header(0)
        block.descriptor(0, header.address, 16, NEXT, 1)
        block.descriptor(1, data.address, 513, WRITE)
        block.offer()
        block.settle()  # it is fetched
        gone = rings if what == "rings" else data
        memory.unmap(gone)
        block.wait_broken()
        neighbour.answers(within=5)
        memory.map(gone)
        recovers(block)
    neighbour.close()


def test_completed_before_the_breakage_stays_completed(shared: ServerProcess) -> None:
    """Good requests ahead of a broken one in the same kick are answered."""
    with driven(shared.socket("vf1")) as block:
        statuses = [block.room(1) for _ in range(3)]
        for number, status in enumerate(statuses):
            block.descriptor(2 * number, block.header(4).address, 16, NEXT, 2 * number + 1)
            block.descriptor(2 * number + 1, status.address, 1, WRITE)
            block.queue.publish(2 * number)
        block.offer(99)
        block.wait_broken()
        assert [int(status.view[0]) for status in statuses] == [0, 0, 0]
        assert block.queue.device_used_idx == 3
        recovers(block)


def test_one_queue_breaks_all(shared: ServerProcess) -> None:
    """DEVICE_NEEDS_RESET stops the whole function: other queues, and a queue reset, do not help."""
    with driven(shared.socket("vf1"), features=(VERSION_1, RING_RESET)) as block:
        other = Driven(block.device, split_queue(block.device, 1, size=8))
        block.offer(99)
        block.wait_broken()
        other.flush()
        other.settle()
        assert other.queue.device_used_idx == 0
        block.device.reset_queue(0)
        other.queue.kick(force=True)
        other.settle()
        assert other.queue.device_used_idx == 0
        assert block.device.status & 64
        recovers(block, (VERSION_1, RING_RESET))


def test_zero_length_pieces_are_no_breakage(shared: ServerProcess) -> None:
    """An empty descriptor inside a good chain holds no bytes, wherever it points."""
    with driven(shared.socket("vf1")) as block:
        status = block.room(1)
        chain(
            block,
            (NOWHERE, 0, NEXT, 1),
            (block.header(4).address, 16, NEXT, 2),
            (TOP, 0, WRITE | NEXT, 3),
            (status.address, 1, WRITE, 0),
        )
        assert block.wait_used() == (0, 1)
        assert status.view[0] == 0


def test_the_log_says_why(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--vfs", "1", log_level="info")
    with driven(server.socket("vf1")) as block:
        avail_index_jumps(block)
        block.wait_broken()
        until(lambda: "virtio.vf1: device needs reset: queue 0" in server.log, "the reason")
