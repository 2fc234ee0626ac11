"""What a driver leaves undone once its configuration changed."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from pymodel.spec import block, net
from tests.wire.frames import ethernet
from tests.wire.rules.author import VERSION_1, Author, Mistake
from tests.wire.rules.conftest import Checked
from tests.wire.running import until
from vfu_client.virtio.driver_queue import DriverQueue

MAC, STATUS, CTRL_VQ, GUEST_ANNOUNCE, SPEED_DUPLEX = 5, 16, 17, 21, 63
LINK_UP, ANNOUNCE = 1, 2
RECEIVE, TRANSMIT, CONTROL = 0, 1, 2
OURS, ALL = b"\2\0\0\0\0\1", b"\xff" * 6


def _drive(author: Author, *features: int) -> dict[int, DriverQueue]:
    """A network card's driver that runs, with its control queue."""
    return author.drive((VERSION_1, MAC, CTRL_VQ, *features), (RECEIVE, TRANSMIT, CONTROL))


def _read(author: Author, name: str) -> int:
    return int.from_bytes(author.device.config_field(net.CONFIG, name), "little")


def _tell(author: Author, command: str = "config-change") -> None:
    """Have the configuration change, and wait for the driver to be told."""
    assert author.device.msix is not None
    author.write("config_msix_vector", 0)
    assert author.read("config_msix_vector") == 0
    author.server.ask(command, function=author.function)
    author.device.msix.interrupts[0].wait(20)


def _send(author: Author, queue: DriverQueue, to: bytes = ALL) -> None:
    data = author.bytes(bytes(12) + ethernet(to, OURS, bytes(46)))
    queue.add([(data.address, data.size)])
    queue.kick(force=True)


def never_reads_capacity(author: Author) -> None:
    author.run((VERSION_1,))
    _tell(author)
    author.until_told("CHANGE-01")


def sends_without_a_look(author: Author) -> None:
    _send(author, _drive(author, STATUS)[TRANSMIT])


def never_looks_again(author: Author) -> None:
    _drive(author, STATUS)
    assert _read(author, "status") == LINK_UP
    _tell(author)
    author.until_told("CHANGE-02")


def reads_the_link_only(author: Author) -> None:
    _drive(author, STATUS, SPEED_DUPLEX)
    _tell(author)
    _read(author, "status")
    author.until_told("CHANGE-03")


def reads_no_duplex(author: Author) -> None:
    _drive(author, SPEED_DUPLEX)
    _tell(author)
    _read(author, "speed")
    author.until_told("CHANGE-03")


def _asked(author: Author) -> dict[int, DriverQueue]:
    """A driver that was asked to announce itself, and saw it."""
    queues = _drive(author, STATUS, GUEST_ANNOUNCE)
    _tell(author, "announce-self")
    assert _read(author, "status") == LINK_UP | ANNOUNCE
    return queues


def _acknowledge(author: Author, queue: DriverQueue) -> None:
    command, answer = author.bytes(struct.pack("<BB", 3, 0)), author.bytes(b"\xff")
    queue.add([(command.address, 2)], [(answer.address, 1)])
    queue.kick(force=True)
    until(lambda: bytes(answer.view) == b"\0", "it is answered")


def tells_nobody(author: Author) -> None:
    queues = _asked(author)
    _acknowledge(author, queues[CONTROL])
    _send(author, queues[TRANSMIT], b"\2\0\0\0\0\2")
    author.until_told("CHANGE-04")


def does_not_acknowledge(author: Author) -> None:
    queues = _asked(author)
    _send(author, queues[TRANSMIT])
    author.until_told("CHANGE-05")


OF_DISKS = [
    Mistake(
        "CHANGE-01",
        never_reads_capacity,
        "told of a configuration change, and capacity was not read for 3 s",
        where={"expected": "a read of capacity", "level": "SHOULD"},
    )
]
OF_NETWORKS = [
    Mistake(
        "CHANGE-02",
        sends_without_a_look,
        "queue 1, ring position 0, head 0: a frame, and status was not read",
        where={"queue": 1, "register": "status"},
    ),
    Mistake("CHANGE-02", never_looks_again, "status was not read for 3 s"),
    Mistake("CHANGE-03", reads_the_link_only, "(speed|duplex) was not read for 3 s"),
    Mistake("CHANGE-03", reads_no_duplex, "duplex was not read for 3 s"),
    Mistake("CHANGE-04", tells_nobody, "ANNOUNCE read in status, and an announcement was not sent"),
    Mistake(
        "CHANGE-05",
        does_not_acknowledge,
        "ANNOUNCE read in status, and ANNOUNCE_ACK was not sent for 3 s",
        where={"level": "MUST"},
    ),
]


@pytest.mark.parametrize("mistake", OF_DISKS, ids=lambda mistake: mistake.id)
def test_disk_mistake(author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(author, mistake)


@pytest.mark.parametrize("mistake", OF_NETWORKS, ids=lambda mistake: mistake.id)
def test_mistake(net_author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(net_author, mistake)


def test_who_answers_is_told_nothing(author: Author, net_author: Author, checked_net: Checked) -> None:
    """Another driver than theirs is told of a later change: by then theirs would have been told of."""
    author.run((VERSION_1,))
    _tell(author)
    author.device.config_field(block.CONFIG, "capacity")
    queues = _drive(net_author, STATUS, SPEED_DUPLEX, GUEST_ANNOUNCE)
    _tell(net_author, "announce-self")
    for name in ("status", "speed", "duplex"):
        _read(net_author, name)
    _send(net_author, queues[TRANSMIT])
    _acknowledge(net_author, queues[CONTROL])
    with checked_net.author() as late:
        never_looks_again(late)
    assert net_author.told() == {}
    assert author.told() == {}
