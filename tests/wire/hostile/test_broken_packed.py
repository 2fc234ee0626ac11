"""What a broken driver can put on a packed ring. Each breaks its own function only, until it resets it.

As in test_broken_drivers: DEVICE_NEEDS_RESET, a configuration interrupt, a neighbour that goes on, and a
function that works after a reset.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest

from tests.server_process import ServerProcess
from tests.wire.driving import INDIRECT, INDIRECT_DESC, NEXT, VERSION_1, WRITE, Grip, Neighbour
from tests.wire.running import until
from vfu_client.virtio.function import VirtioPci
from vfu_client.virtio.packed import PackedQueue

EVENT_IDX, RING_PACKED, IN_ORDER, ADMIN_VQ = 29, 34, 35, 41
FEATURES = (VERSION_1, INDIRECT_DESC, RING_PACKED)
NOWHERE = 0xDEAD_0000_0000
TOP = (1 << 64) - 16
AVAILABLE, USED = 0x0080, 0x8000

Entry = tuple[int, int, int]


@dataclass
class Packed(Grip):
    """A function with one packed queue of 8 descriptors, on its first lap."""

    queue: PackedQueue

    def offer(self, *entries: Entry, state: int = AVAILABLE) -> None:
        """Descriptors (address, length, flags) from the first one on, as they are; a kick."""
        for slot, (address, length, flags) in enumerate(entries):
            self.queue.desc[slot] = (address, length, 0x55, flags | state)
        self.queue.kick(force=True)

    def table(self, *entries: tuple[int, int, int, int], length: int | None = None) -> None:  # type: ignore[override]
        """Offer an indirect table of (address, length, id, flags)."""
        made = super().table(*entries)
        self.offer((made.address, made.size if length is None else length, INDIRECT))

    def flush(self) -> tuple[Entry, Entry]:
        """A good request, as entries."""
        header, room = self.header(4), self.room(1)
        return (header.address, 16, NEXT), (room.address, 1, WRITE)


def packed(device: VirtioPci, *features: int, index: int = 0, ok: bool = True) -> Packed:
    """From reset to DRIVER_OK."""
    device.initialize(wanted=(*FEATURES, *features))
    queue = device.setup_queue(index, size=8)
    assert isinstance(queue, PackedQueue)
    if ok:
        device.driver_ok()
    return Packed(device, queue)


def chain_without_end(block: Packed) -> None:
    block.offer(*[(block.header(4).address, 2, NEXT)] * 8)


def chain_without_end_of_empty_ones(block: Packed) -> None:
    block.offer(*[(0, 0, NEXT)] * 8)


def chain_into_what_is_not_available(block: Packed) -> None:
    block.offer((block.header(4).address, 16, NEXT))


def chain_into_what_is_used(block: Packed) -> None:
    block.queue.desc[1] = (block.room(1).address, 1, 0, WRITE | AVAILABLE | USED)
    block.offer((block.header(4).address, 16, NEXT))


def chain_into_another_lap(block: Packed) -> None:
    block.queue.desc[1] = (block.room(1).address, 1, 0, WRITE | USED)
    block.offer((block.header(4).address, 16, NEXT))


def readable_after_writable(block: Packed) -> None:
    block.offer((block.room(1).address, 1, WRITE | NEXT), (block.header(4).address, 16, 0))


def readable_after_writable_in_a_table(block: Packed) -> None:
    block.table((block.room(1).address, 1, 0, WRITE), (block.header(4).address, 16, 0, 0))


def indirect_with_next(block: Packed) -> None:
    made = Grip.table(block, (block.header(4).address, 16, 0, 0), (block.room(1).address, 1, 0, WRITE))
    block.offer((made.address, 32, INDIRECT | NEXT), (block.room(1).address, 1, WRITE))


def indirect_at_the_end_of_a_chain(block: Packed) -> None:
    made = Grip.table(block, (block.room(1).address, 1, 0, WRITE))
    block.offer((block.header(4).address, 16, NEXT), (made.address, 16, INDIRECT))


def indirect_of_no_length(block: Packed) -> None:
    block.table((block.header(4).address, 16, 0, 0), length=0)


def indirect_of_odd_length(block: Packed) -> None:
    block.table((block.header(4).address, 16, 0, 0), (block.room(1).address, 1, 0, WRITE), length=31)


def indirect_of_4_gib(block: Packed) -> None:
    block.table((block.header(4).address, 16, 0, 0), length=0xFFFF_FFF0)


def indirect_longer_than_the_queue(block: Packed) -> None:
    block.table(*[(block.header(4).address, 0, 0, 0)] * 9)


def indirect_table_not_mapped(block: Packed) -> None:
    block.offer((NOWHERE, 32, INDIRECT))


def indirect_table_past_the_top(block: Packed) -> None:
    block.offer((TOP, 32, INDIRECT))


def header_not_mapped(block: Packed) -> None:
    block.offer((NOWHERE, 16, NEXT), (block.room(1).address, 1, WRITE))


def status_past_the_top(block: Packed) -> None:
    block.offer((block.header(4).address, 16, NEXT), (TOP + 15, 2, WRITE))


def more_than_4_gib(block: Packed) -> None:
    header = block.header(0).address
    block.offer((header, 16, NEXT), (header, 0xFFFF_FFFF, WRITE | NEXT), (header, 0xFFFF_FFFF, WRITE))


def no_status(block: Packed) -> None:
    block.offer((block.header(4).address, 16, 0))


BREAKAGES: list[Callable[[Packed], None]] = [
    chain_without_end,
    chain_without_end_of_empty_ones,
    chain_into_what_is_not_available,
    chain_into_what_is_used,
    chain_into_another_lap,
    readable_after_writable,
    readable_after_writable_in_a_table,
    indirect_with_next,
    indirect_at_the_end_of_a_chain,
    indirect_of_no_length,
    indirect_of_odd_length,
    indirect_of_4_gib,
    indirect_longer_than_the_queue,
    indirect_table_not_mapped,
    indirect_table_past_the_top,
    header_not_mapped,
    status_past_the_top,
    more_than_4_gib,
    no_status,
]


@pytest.fixture(scope="module")
def neighbour(shared: ServerProcess) -> Iterator[Neighbour]:
    found = Neighbour(shared.socket("vf2"))
    yield found
    found.close()


def recovers(block: Packed) -> None:
    """Nothing is done any more until reset, then everything again."""
    before = block.queue.desc.tobytes()
    block.queue.kick(force=True)
    block.settle()
    assert block.queue.desc.tobytes() == before
    assert sum(block.signals()) == 0
    block.device.reset()
    assert block.device.status == 0
    again = packed(block.device)
    again.offer(*again.flush())
    until(lambda: again.queue.desc[0].tolist()[1:] == (1, 0x55, WRITE | AVAILABLE | USED), "the flush")
    assert again.device.status == 15


@pytest.mark.parametrize("breakage", BREAKAGES, ids=lambda breakage: breakage.__name__)
def test_broken_chain(
    shared: ServerProcess, neighbour: Neighbour, breakage: Callable[[Packed], None]
) -> None:
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        block = packed(device, IN_ORDER)
        breakage(block)
        block.wait_broken()
        neighbour.answers()
        recovers(block)


@pytest.mark.parametrize("breakage", [chain_without_end, indirect_of_no_length, header_not_mapped])
def test_broken_admin_queue(
    shared: ServerProcess, neighbour: Neighbour, breakage: Callable[[Packed], None]
) -> None:
    with VirtioPci.open(shared.socket("pf"), timeout=10) as device:
        block = packed(device, ADMIN_VQ, index=2)
        breakage(block)
        block.wait_broken()
        neighbour.answers()
        recovers(block)


@pytest.mark.parametrize("features", [(), (EVENT_IDX,)], ids=["flags", "event"])
@pytest.mark.parametrize("area", ["queue_desc", "queue_driver", "queue_device"])
@pytest.mark.parametrize("address", [NOWHERE, TOP, (1 << 64) - 4096, 0])
def test_rings_not_mapped(
    shared: ServerProcess, neighbour: Neighbour, features: tuple[int, ...], area: str, address: int
) -> None:
    """A ring or an event structure where no memory is, and a request."""
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        device.initialize(wanted=(*FEATURES, *features))
        queue = device.setup_queue(0, size=8, enable=False)
        assert isinstance(queue, PackedQueue)
        device.common.write(area, address)
        device.common.write("queue_enable", 1)
        block = Packed(device, queue)
        block.offer(*block.flush())
        device.driver_ok()
        block.wait_broken()
        block.signals()  # a request whose interrupt could not be decided upon may be told
        neighbour.answers()
        recovers(block)


@pytest.mark.parametrize(
    ("area", "address"), [("queue_desc", 8), ("queue_driver", 2), ("queue_device", 2), ("queue_driver", 1)]
)
def test_areas_not_aligned(shared: ServerProcess, area: str, address: int) -> None:
    """16 bytes for the ring, 4 for the event structures: else the device needs a reset."""
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        device.initialize(wanted=FEATURES)
        queue = device.setup_queue(0, size=8, enable=False)
        place = dict(zip(("queue_desc", "queue_driver", "queue_device"), queue.parts, strict=True))[area]
        device.common.write(area, place.address + address)
        device.common.write("queue_enable", 1)
        assert device.status & 64
        assert device.common.read("queue_enable") == 0


def test_sizes(shared: ServerProcess) -> None:
    """Any size from 1 to the largest; 0 and more are refused, and what was there stays."""
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        device.initialize(wanted=FEATURES)
        device.common.write("queue_select", 0)
        largest = device.common.read("queue_size")
        assert largest == 256
        for size, found in ((7, 7), (0, 7), (1, 1), (257, 1), (0xFFFF, 1), (255, 255), (256, 256)):
            device.common.write("queue_size", size)
            assert device.common.read("queue_size") == found


def test_completed_before_the_breakage_stays_completed(shared: ServerProcess) -> None:
    """Good requests ahead of a broken one in the same kick are answered."""
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        block = packed(device)
        block.offer(*block.flush(), *block.flush(), (NOWHERE, 16, INDIRECT))
        block.wait_broken()
        for slot in (0, 2):
            assert block.queue.desc[slot].tolist()[1:] == (1, 0x55, WRITE | AVAILABLE | USED)
        assert int(block.queue.desc["flags"][4]) == INDIRECT | AVAILABLE
        recovers(block)
