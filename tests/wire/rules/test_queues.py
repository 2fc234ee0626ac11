"""Queues that are set up wrongly: registers, rings in memory, vectors."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.wire.rules.author import (
    NEEDS_RESET,
    RING_RESET,
    VERSION_1,
    Author,
    Mistake,
)
from vfu_client.virtio.packed import PackedQueue
from vfu_client.virtio.split import SplitQueue


def writes_num_queues(author: Author) -> None:
    author.agree()
    author.write("num_queues", 4)


def writes_where_a_legacy_driver_would(author: Author) -> None:
    """Its device_status is at 18."""
    author.device.common.raw_write(18, 1, 1)


def a_size_of_100(author: Author) -> None:
    author.agree([VERSION_1])
    author.select(1)
    author.write("queue_size", 100)
    assert author.read("queue_size") == 256


def a_size_of_0(author: Author) -> None:
    author.agree()
    author.select()
    author.write("queue_size", 0)
    assert author.read("queue_size") == 256


def a_size_of_1024(author: Author) -> None:
    author.agree([VERSION_1])
    author.select()
    author.write("queue_size", 1024)


def no_used_ring(author: Author) -> None:
    author.agree([VERSION_1])
    author.select()
    author.write("queue_desc", 0x1000)
    author.write("queue_driver", 0x2000)
    author.write("queue_enable", 1)


def an_address_while_enabled(author: Author) -> None:
    author.run()
    author.select()
    author.write("queue_desc", 0x1000)


def disables(author: Author) -> None:
    author.run()
    author.select()
    author.write("queue_enable", 0)
    assert author.read("queue_enable") == 1


def does_not_look_at_queue_reset(author: Author) -> None:
    author.run()
    author.select()
    author.write("queue_reset", 1)
    author.write("queue_size", 8)


def resets_without_the_feature(author: Author) -> None:
    author.run([VERSION_1])
    author.select()
    author.write("queue_reset", 1)
    assert author.read("queue_enable") == 1


def resets_what_is_not_enabled(author: Author) -> None:
    author.run([VERSION_1, RING_RESET])
    author.select(1)
    author.write("queue_reset", 1)


def a_queue_that_is_not_there(author: Author) -> None:
    author.agree()
    author.select(7)
    author.write("queue_size", 8)


def enables_with_2(author: Author) -> None:
    author.agree()
    author.select()
    author.write("queue_enable", 2)


def writes_admin_queue_num(author: Author) -> None:
    author.agree()
    author.write("admin_queue_num", 1)


def _places(author: Author, desc: int, driver: int, device: int, *, queue: int = 0) -> None:
    author.select(queue)
    author.write("queue_size", 8)
    author.write("queue_desc", desc)
    author.write("queue_driver", driver)
    author.write("queue_device", device)
    author.write("queue_enable", 1)


def a_table_that_is_not_aligned(author: Author) -> None:
    author.agree([VERSION_1])
    at = author.memory.allocate(4096, 4096).address
    _places(author, at + 8, at + 1024, at + 2048)
    assert author.read("device_status") & NEEDS_RESET


def an_available_ring_that_is_not_aligned(author: Author) -> None:
    author.agree([VERSION_1])
    at = author.memory.allocate(4096, 4096).address
    _places(author, at, at + 1025, at + 2048)


def an_event_structure_that_is_not_aligned(author: Author) -> None:
    author.agree()
    at = author.memory.allocate(4096, 4096).address
    _places(author, at, at + 1024, at + 2050)


def two_queues_on_one_ring(author: Author) -> None:
    author.agree([VERSION_1])
    at = author.memory.allocate(4096, 4096).address
    _places(author, at, at + 1024, at + 2048)
    _places(author, at, at + 1536, at + 3072, queue=1)


def a_used_ring_inside_of_the_table(author: Author) -> None:
    author.agree([VERSION_1])
    at = author.memory.allocate(4096, 4096).address
    _places(author, at, at + 1024, at + 64)


def a_ring_in_no_memory(author: Author) -> None:
    author.agree([VERSION_1])
    _places(author, 0x7F_0000_0000, 0x7F_0000_1000, 0x7F_0000_2000)


def does_not_know_its_size(author: Author) -> None:
    author.agree([VERSION_1])
    at = author.memory.allocate(3 * 4096, 4096).address
    author.select()
    author.write("queue_desc", at)
    author.write("queue_driver", at + 4096)
    author.write("queue_device", at + 8192)
    author.write("queue_enable", 1)


def maps_vectors_and_enables_none(author: Author) -> None:
    author.agree([VERSION_1])
    assert author.device.msix is not None
    author.queue(enable=False)
    author.write("queue_msix_vector", 1)
    assert author.read("queue_msix_vector") == 1
    author.write("queue_enable", 1)
    author.device.msix.disable()
    author.go()


def flags_in_a_used_ring(author: Author) -> None:
    author.agree([VERSION_1])
    queue = author.queue(enable=False)
    assert isinstance(queue, SplitQueue)
    queue.used[0] = 1
    author.write("queue_enable", 1)


def a_used_index_of_before(author: Author) -> None:
    author.agree([VERSION_1])
    queue = author.queue(enable=False)
    assert isinstance(queue, SplitQueue)
    queue.used[1] = 5
    author.write("queue_enable", 1)


def used_descriptors_of_before(author: Author) -> None:
    author.agree()
    queue = author.queue(enable=False)
    assert isinstance(queue, PackedQueue)
    queue.parts[0].view[16 * 3 + 14 : 16 * 4] = [0x80, 0x80]
    author.write("queue_enable", 1)


def vector_99000(author: Author) -> None:
    author.agree()
    author.select()
    author.write("queue_msix_vector", 9900)
    assert author.read("queue_msix_vector") == 0xFFFF


def does_not_read_the_vector(author: Author) -> None:
    author.agree()
    author.write("config_msix_vector", 0)
    author.go()


def reads_isr(author: Author) -> None:
    author.run()
    author.device.isr_read()


MISTAKES = [
    Mistake("CFG-01", writes_num_queues, "0x4 written to num_queues", where={"register": "num_queues"}),
    Mistake(
        "CFG-01",
        writes_where_a_legacy_driver_would,
        "legacy drivers have device_status at this offset",
        frozenset({"PCI-01"}),
    ),
    Mistake("CFG-02", a_size_of_100, "^100 written to queue_size of queue 1", where={"queue": 1}),
    Mistake("CFG-03", a_size_of_0, "^0 written to queue_size of queue 0"),
    Mistake("CFG-04", a_size_of_1024, "^1024 written", where={"expected": "at most 256"}),
    Mistake("CFG-05", no_used_ring, "queue 0 enabled, and queue_device never written"),
    Mistake("CFG-06", an_address_while_enabled, "0x1000 written to queue_desc of queue 0, which is enabled"),
    Mistake("CFG-07", disables, "^0 written to queue_enable of queue 0"),
    Mistake("CFG-08", does_not_look_at_queue_reset, "0x8 written to queue_size"),
    Mistake("CFG-09", resets_without_the_feature, "without RING_RESET"),
    Mistake("CFG-09", resets_what_is_not_enabled, "queue 1, which is not enabled"),
    Mistake("CFG-10", a_queue_that_is_not_there, "of queue 7", where={"expected": "one of 0, 1"}),
    Mistake("CFG-11", enables_with_2, "^2 written to queue_enable"),
    Mistake("CFG-11", writes_admin_queue_num, "0x1 written to admin_queue_num"),
    Mistake(
        "CFG-12",
        does_not_know_its_size,
        "^queue 0 enabled with the size of 256 that it has at first",
        where={"register": "queue_size"},
    ),
    Mistake(
        "VQ-01",
        a_table_that_is_not_aligned,
        "descriptor table of queue 0 at 0x.*8",
        where={"expected": "a multiple of 16"},
    ),
    Mistake(
        "VQ-01",
        an_available_ring_that_is_not_aligned,
        "the available ring",
        where={"register": "queue_driver"},
    ),
    Mistake("VQ-01", an_event_structure_that_is_not_aligned, "the device event suppression structure"),
    Mistake(
        "VQ-02",
        two_queues_on_one_ring,
        "descriptor table of queue 1 at 0x[0-9a-f]+, 128 bytes for a size of 8, overlaps the desc",
    ),
    Mistake("VQ-02", a_used_ring_inside_of_the_table, "overlaps the used ring of queue 0"),
    Mistake("VQ-03", a_ring_in_no_memory, "descriptor table of queue 0 at 0x7f00000000, 128 bytes"),
    Mistake("VQ-04", flags_in_a_used_ring, "flags 0x1 in the used ring of queue 0"),
    Mistake("VQ-05", a_used_index_of_before, "index 5 in the used ring of queue 0"),
    Mistake(
        "VQ-05",
        used_descriptors_of_before,
        "descriptor 3 of queue 0 has flags 0x8080",
        where={"descriptor": 3},
    ),
    Mistake("MSIX-01", vector_99000, "vector 9900 written to queue_msix_vector of queue 0"),
    Mistake("MSIX-02", does_not_read_the_vector, "vector 0 was written to config_msix_vector"),
    Mistake(
        "MSIX-03",
        maps_vectors_and_enables_none,
        "DRIVER_OK, vector 1 for queue 0, and MSI-X Enable is clear",
    ),
    Mistake("ISR-01", reads_isr, "ISR status read as 0"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)


def test_bus_master_may_come_later(author: Author) -> None:
    """Without it the device sees no memory, and says nothing of where rings are."""
    author.agree([VERSION_1])
    author.device.function.set_command(2)
    at = author.memory.allocate(4096, 4096).address
    _places(author, at, at + 1024, at + 2048)
    author.device.function.set_command(6)
    author.go()
    assert author.told() == {}
