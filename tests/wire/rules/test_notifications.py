"""Notifications of the wrong form, at the wrong place, at the wrong time, and those that are missing."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.wire.rules.author import (
    EVENT_IDX,
    NOTIF_CONFIG_DATA,
    NOTIFICATION_DATA,
    RING_PACKED,
    VERSION_1,
    Author,
    Mistake,
)
from tests.wire.running import until
from vfu_client.virtio.driver_queue import DriverQueue


def _request(author: Author, queue: DriverQueue) -> None:
    """A GET_ID."""
    header, answer = author.bytes(bytes([8]) + bytes(15)), author.bytes(bytes(21))
    queue.add([(header.address, 16)], [(answer.address, 21)])


def eight_bits(author: Author) -> None:
    queue = author.split()
    _request(author, queue)
    author.notify(0, b"\0")


def thirty_two_bits(author: Author) -> None:
    queue = author.split()
    _request(author, queue)
    author.notify(0, b"\0\0\0\0")


def sixteen_bits_of_32(author: Author) -> None:
    queue = author.run([VERSION_1, NOTIFICATION_DATA])
    _request(author, queue)
    author.notify(0, b"\0\0")


def another_queue(author: Author) -> None:
    queue = author.split()
    _request(author, queue)
    author.notify(0, b"\1\0")


def the_index_instead_of_the_name(author: Author) -> None:
    queue = author.run([VERSION_1, NOTIF_CONFIG_DATA])
    _request(author, queue)
    author.notify(0, b"\0\0")


def between_two_queues(author: Author) -> None:
    author.split()
    author.notify(2, b"\0\0")


def a_queue_that_is_not_there(author: Author) -> None:
    author.split()
    author.notify(8, b"\2\0")


def a_queue_that_is_not_enabled(author: Author) -> None:
    author.split()
    author.notify(4, b"\1\0")


def says_another_position(author: Author) -> None:
    queue = author.run([VERSION_1, RING_PACKED, NOTIFICATION_DATA])
    _request(author, queue)
    author.notify(0, b"\0\0\7\x80")


def though_the_device_looks(author: Author) -> None:
    """Many buffers, and a notification for each, where the device asked for that of the first."""
    queue = author.split(EVENT_IDX, size=128)
    with author.together():
        for _ in range(33):
            _request(author, queue)
            queue.kick(force=True)


def does_not_notify(author: Author) -> None:
    queue = author.split()
    _request(author, queue)
    queue.kick()
    until(lambda: queue.device_used_idx == 1, "the first is done")
    author.settle()
    _request(author, queue)
    author.until_told("KICK-09")


def forgets_the_index(author: Author) -> None:
    author.split()
    author.notify(0, b"\0\0")


def no_bus_master(author: Author) -> None:
    queue = author.split()
    author.device.function.clear_command(4)
    _request(author, queue)
    queue.kick()


def takes_a_buffer_back(author: Author) -> None:
    queue = author.split()
    for _ in range(2):
        _request(author, queue)
        queue.kick()
    until(lambda: queue.device_used_idx == 2, "both are done")
    author.settle()
    queue.avail[1] = 1
    author.notify(0, b"\0\0")


MISTAKES = [
    Mistake("KICK-01", eight_bits, "8 bits", where={"expected": "16", "queue": 0}),
    Mistake("KICK-01", thirty_two_bits, "32 bits", where={"expected": "16"}),
    Mistake("KICK-02", sixteen_bits_of_32, "16 bits", where={"expected": "32"}),
    Mistake("KICK-03", another_queue, "0x1$", where={"expected": "0x0", "queue": 0}),
    Mistake("KICK-04", the_index_instead_of_the_name, "0x0$", where={"expected": "0x100"}),
    Mistake("KICK-05", between_two_queues, "0000 written at 0x2 of the notify structure"),
    Mistake(
        "KICK-06",
        a_queue_that_is_not_there,
        "0x0002 written at 0x8",
        where={"expected": "queue 0 at 0x0 to queue 1 at 0x4"},
    ),
    Mistake("KICK-06", a_queue_that_is_not_enabled, "queue 1 is not enabled", where={"queue": 1}),
    Mistake("KICK-07", says_another_position, "0x8007 in the upper half of the notification of queue 0"),
    Mistake("KICK-08", though_the_device_looks, "queue 0 notified 33 times where the device asked for one"),
    Mistake(
        "KICK-09",
        does_not_notify,
        "the driver of queue 0 is at index 2, the device at index 1, and no notification came for 1 s",
    ),
    Mistake("KICK-10", forgets_the_index, "its available index is still 0"),
    Mistake("KICK-11", no_bus_master, "queue 0 notified, and Bus Master Enable is clear"),
    Mistake(
        "KICK-12",
        takes_a_buffer_back,
        "the available index of queue 0 is 1, and was 2",
        frozenset({"SPLIT-07"}),
    ),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)
