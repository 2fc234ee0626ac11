"""Commands of the control queue that are not a driver's to send, or not like this."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.wire.rules.author import VERSION_1, Author, Mistake

MAC, CTRL_VQ, CTRL_RX, MQ, RSS, HASH_REPORT, CTRL_GUEST_OFFLOADS, GUEST_CSUM = 5, 17, 18, 22, 60, 57, 2, 1


def _commands(
    *features: int, data: bytes, name: str, queues: tuple[int, ...] = ()
) -> Callable[[Author], None]:
    """Sends one command; with MQ and RSS the control queue is the fifth."""

    def send(author: Author) -> None:
        control = 4 if {MQ, RSS} & set(features) else 2
        queue = author.drive((VERSION_1, MAC, CTRL_VQ, *features), (*queues, control))[control]
        command, answer = author.bytes(data), author.bytes(b"\xee")
        queue.add([(command.address, command.size)], [(answer.address, 1)])
        queue.kick(force=True)

    send.__name__ = name
    return send


def _rss(*entries: int, types: int = 0, mask: int | None = None) -> bytes:
    mask = len(entries) - 1 if mask is None else mask
    head = struct.pack("<BBIHH", 4, 1, types, mask, 0)
    return head + struct.pack(f"<{len(entries)}H", *entries) + struct.pack("<HB", 1, 0)


def no_room_for_an_answer(author: Author) -> None:
    queue = author.drive((VERSION_1, MAC, CTRL_VQ), (2,))[2]
    command = author.bytes(b"\0\0\1")
    queue.add([(command.address, 3)])
    queue.kick(force=True)


WITHOUT = {
    "CTRL-01": (b"\0\0\1", "RX_PROMISC without feature bit 18"),
    "CTRL-02": (b"\0\2\1", "RX_ALLUNI without feature bit 20"),
    "CTRL-03": (b"\1\0" + bytes(8), "MAC_TABLE_SET without feature bit 18"),
    "CTRL-04": (b"\1\1\2\0\0\0\0\1", "MAC_ADDR_SET without feature bit 23"),
    "CTRL-05": (b"\2\0\1\0", "VLAN_ADD without feature bit 19"),
    "CTRL-06": (b"\3\0", "ANNOUNCE_ACK without feature bit 21"),
    "CTRL-07": (b"\4\0\1\0", "MQ_VQ_PAIRS_SET without feature bit 22"),
    "CTRL-08": (_rss(0), "MQ_RSS_CONFIG without feature bit 60"),
    "CTRL-09": (b"\4\2" + bytes(13), "MQ_HASH_CONFIG without feature bit 57"),
    "CTRL-10": (b"\5\0" + bytes(8), "GUEST_OFFLOADS_SET without feature bit 2"),
    "CTRL-11": (b"\6\0" + bytes(8), "class 6, command 0"),
    "CTRL-12": (b"\6\2" + bytes(12), "class 6, command 2"),
    "CTRL-13": (b"\7\0" + bytes(4), "class 7, command 0"),
    "CTRL-14": (b"\x09\0" + bytes(8), "class 9, command 0"),
}
PAIRS = (0, 1, 2, 3)
MISTAKES = [
    *(
        Mistake(rule, _commands(data=data, name="without_the_feature"), seen, where={"queue": 2, "head": 0})
        for rule, (data, seen) in WITHOUT.items()
    ),
    Mistake(
        "CTRL-03",
        _commands(23, data=b"\1\1\2\0\0\0\0\1", name="an_address_without_filters"),
        "MAC_ADDR_SET without feature bit 18",
    ),
    Mistake(
        "CTRL-15",
        _commands(CTRL_RX, data=b"\1\0" + struct.pack("<I", 2) + bytes(6), name="a_cut_table"),
        "MAC_TABLE_SET: 2 addresses in 6 bytes",
    ),
    Mistake(
        "CTRL-15",
        _commands(
            CTRL_RX, data=b"\1\0" + struct.pack("<I", 1) + b"\1\0\x5e\0\0\1" + bytes(4), name="a_group_first"
        ),
        "01:00:5e:00:00:01 in the unicast table",
    ),
    Mistake(
        "CTRL-16",
        _commands(MQ, data=b"\4\0\0\0", name="no_pairs", queues=PAIRS),
        "MQ_VQ_PAIRS_SET to 0",
        where={"expected": "1 to 2"},
    ),
    Mistake(
        "CTRL-17",
        _commands(MQ, data=b"\4\0\2\0", name="a_queue_that_is_not_enabled", queues=(0, 1, 2)),
        "MQ_VQ_PAIRS_SET to 2, and queue 3 is not enabled",
        frozenset({"NET-29"}),
    ),
    Mistake(
        "CTRL-18",
        _commands(RSS, data=_rss(0, 1), name="an_entry_that_is_not_enabled", queues=(0, 1)),
        r"entry 1 is receive queue 2 \(index 2\)",
    ),
    Mistake("CTRL-19", _commands(RSS, data=_rss(0, 0, 0), name="three_entries", queues=PAIRS), "mask of 2"),
    Mistake(
        "CTRL-20",
        _commands(RSS, data=_rss(*[0] * 256), name="too_many_entries", queues=PAIRS),
        "mask of 255",
        where={"expected": "127 at most"},
    ),
    Mistake(
        "CTRL-21",
        _commands(RSS, data=_rss(0, types=0x100), name="hash_types", queues=PAIRS),
        "MQ_RSS_CONFIG with hash types 0x100",
    ),
    Mistake(
        "CTRL-22",
        _commands(
            CTRL_GUEST_OFFLOADS, GUEST_CSUM, data=b"\5\0" + struct.pack("<Q", 1 << 7 | 2), name="an_offload"
        ),
        "GUEST_OFFLOADS_SET to 0x82: 0x80 too many",
    ),
    Mistake("CTRL-23", _commands(data=b"\x63\0", name="class_99"), "class 99, command 0"),
    Mistake("CTRL-24", no_room_for_an_answer, "3 bytes to read, 0 to write"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(net_author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(net_author, mistake)
