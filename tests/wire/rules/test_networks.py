"""Frames and receive buffers that a network device cannot be meant to get."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from tests.server_process import ServerProcess
from tests.wire.frames import ethernet
from tests.wire.rules.author import VERSION_1, Author, Mistake
from tests.wire.rules.conftest import VFS, Checked
from tests.wire.running import until
from vfu_client.drivers.net import NetDriver
from vfu_client.virtio.split import SplitQueue

CSUM, MTU, MAC, HOST_TSO4, HOST_TSO6, MRG_RXBUF, CTRL_VQ, MQ, HASH_REPORT = 0, 3, 5, 11, 12, 15, 17, 22, 57
GUEST_CSUM, GUEST_TSO4 = 1, 7
HOST_ECN = 13
NEEDS_CSUM, DATA_VALID, RSC_INFO, TUNNEL_CSUM = 1, 2, 4, 8
FRAME = ethernet(b"\xff" * 6, b"\2\0\0\0\0\1", bytes(46))


def _drive(author: Author, *features: int, queues: tuple[int, ...] = (0, 1)) -> dict[int, SplitQueue]:
    """A driver that runs, with these queues."""
    found = {}
    for index, queue in author.drive((VERSION_1, MAC, *features), queues).items():
        assert isinstance(queue, SplitQueue)
        found[index] = queue
    return found


def _send(
    author: Author,
    *features: int,
    flags: int = 0,
    gso: int = 0,
    hdr_len: int = 0,
    gso_size: int = 0,
    start: int = 0,
    offset: int = 0,
    buffers: int = 0,
    frame: bytes = FRAME,
    room: int = 0,
) -> None:
    queue = _drive(author, *features)[1]
    header = struct.pack("<BBHHHHH", flags, gso, hdr_len, gso_size, start, offset, buffers)
    data = author.bytes(header + frame)
    answer = [(author.bytes(bytes(room)).address, room)] if room else []
    queue.add([(data.address, data.size)], answer)
    queue.kick(force=True)


def a_short_header(author: Author) -> None:
    queue = _drive(author)[1]
    data = author.bytes(bytes(10))
    queue.add([(data.address, 10)])
    queue.kick(force=True)


def a_short_frame(author: Author) -> None:
    _send(author, frame=bytes(10))


def num_buffers(author: Author) -> None:
    _send(author, buffers=1)


def a_checksum_without_the_feature(author: Author) -> None:
    _send(author, flags=NEEDS_CSUM, start=14, offset=6)


def segments_without_a_feature(author: Author) -> None:
    _send(author, CSUM, flags=NEEDS_CSUM, gso=1, gso_size=10, hdr_len=40, start=14, offset=16)


def tcpv4_with_tso6(author: Author) -> None:
    _send(author, CSUM, HOST_TSO6, flags=NEEDS_CSUM, gso=1, gso_size=10, hdr_len=40, start=14, offset=16)


def tcpv6_with_tso4(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=4, gso_size=10, hdr_len=40, start=14, offset=16)


def ufo_with_tso4(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=3, gso_size=10, hdr_len=40, start=14, offset=6)


def uso_with_tso4(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=5, gso_size=10, hdr_len=40, start=14, offset=6)


def ecn(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=0x81, gso_size=10, hdr_len=40, start=14, offset=16)


def a_tunnel(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=0x21, gso_size=10, hdr_len=40, start=14, offset=16)


def two_tunnels(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=0x61, gso_size=10, hdr_len=40, start=14, offset=16)


def a_checksum_of_a_tunnel(author: Author) -> None:
    _send(author, CSUM, flags=TUNNEL_CSUM)


def data_valid(author: Author) -> None:
    _send(author, CSUM, flags=DATA_VALID)


def a_checksum_behind_the_frame(author: Author) -> None:
    _send(author, CSUM, flags=NEEDS_CSUM, start=58, offset=6)


def segments_without_a_checksum(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, gso=1, gso_size=10, hdr_len=40)


def segments_of_no_size(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=1, hdr_len=40, start=14, offset=16)


def no_header_length(author: Author) -> None:
    _send(author, CSUM, HOST_TSO4, flags=NEEDS_CSUM, gso=1, gso_size=10, start=14, offset=16)


def unknown_flags(author: Author) -> None:
    _send(author, CSUM, flags=0x40)


def sends_what_is_to_write(author: Author) -> None:
    _send(author, room=16)


def no_address(author: Author) -> None:
    author.agree([VERSION_1])


def reports_without_a_control_queue(author: Author) -> None:
    author.agree([VERSION_1, MAC, HASH_REPORT])


def _receive(author: Author, *features: int, size: int, readable: int = 0) -> None:
    """A buffer, and a frame from another function, so that the device takes it."""
    queues = _drive(author, *features)
    room = author.bytes(bytes(size))
    extra = [(author.bytes(bytes(readable)).address, readable)] if readable else []
    queues[0].add(extra, [(room.address, size)])
    queues[0].kick(force=True)
    with NetDriver.open(author.server.socket(f"vf{VFS}"), timeout=20) as another:
        another.send(FRAME)
        until(lambda: bool(author.told()), "the buffer is taken")


def a_short_buffer(author: Author) -> None:
    _receive(author, size=1000)


def a_short_buffer_for_segments(author: Author) -> None:
    _receive(author, GUEST_CSUM, GUEST_TSO4, size=2048)


def a_buffer_of_ten_bytes(author: Author) -> None:
    _receive(author, MRG_RXBUF, size=10)


def receives_into_what_is_to_read(author: Author) -> None:
    _receive(author, size=1526, readable=16)


def another_pair_before_it_is_set(author: Author) -> None:
    queues = _drive(author, CTRL_VQ, MQ, queues=(0, 1, 2, 3, 4))
    data = author.bytes(bytes(12) + FRAME)
    queues[3].add([(data.address, data.size)])
    queues[3].kick(force=True)


def _command(author: Author, queue: SplitQueue, data: bytes) -> None:
    command, answer = author.bytes(data), author.bytes(b"\xee")
    queue.add([(command.address, command.size)], [(answer.address, 1)])
    queue.kick(force=True)
    until(lambda: answer.view[0] != 0xEE, "the command is answered")
    assert answer.view[0] == 0


def another_pair_after_it_is_left_out(author: Author) -> None:
    queues = _drive(author, CTRL_VQ, MQ, queues=(0, 1, 2, 3, 4))
    for index in (0, 2):
        room = author.bytes(bytes(2048))
        queues[index].add([], [(room.address, 2048)])
    _command(author, queues[4], struct.pack("<BBH", 4, 0, 1))
    data = author.bytes(bytes(12) + FRAME)
    queues[3].add([(data.address, data.size)])
    queues[3].kick(force=True)


def a_pair_without_buffers(author: Author) -> None:
    queues = _drive(author, CTRL_VQ, MQ, queues=(0, 1, 2, 3, 4))
    room = author.bytes(bytes(2048))
    queues[0].add([], [(room.address, 2048)])
    _command(author, queues[4], struct.pack("<BBH", 4, 0, 2))


def _tcp(*, ip_sum: int = 0, tcp_sum: int = 0, flags: int = 0x10) -> bytes:
    """40 bytes of TCP in IPv4, between 10.0.0.1 and 10.0.0.2, that need sums of 0x66ba and, with ACK, 0x9bbb.

    The pseudo header's sum is 0x1431.
    """
    network = bytes.fromhex("4500003c000000004006") + ip_sum.to_bytes(2) + bytes.fromhex("0a0000010a000002")
    tcp = struct.pack(">HHIIBBHHH", 1, 2, 0, 0, 0x50, flags, 0, tcp_sum, 0)
    return b"\xff" * 6 + b"\2\0\0\0\0\1" + b"\x08\x00" + network + tcp + bytes(20)


def a_wrong_checksum(author: Author) -> None:
    _send(author, frame=_tcp(ip_sum=0x66BA, tcp_sum=0x1234))


def a_wrong_header(author: Author) -> None:
    frame = _tcp(ip_sum=0x1234, tcp_sum=0x1431)
    _send(author, CSUM, flags=NEEDS_CSUM, start=34, offset=16, frame=frame)


def no_pseudo_header(author: Author) -> None:
    _send(author, CSUM, flags=NEEDS_CSUM, start=34, offset=16, frame=_tcp(ip_sum=0x66BA))


def congestion_without_its_bit(author: Author) -> None:
    frame = _tcp(ip_sum=0x66BA, tcp_sum=0x1431, flags=0x90)
    header = {"flags": NEEDS_CSUM, "gso": 1, "gso_size": 10, "hdr_len": 54, "start": 34, "offset": 16}
    _send(author, CSUM, HOST_TSO4, HOST_ECN, frame=frame, **header)


MISTAKES = [
    Mistake("NET-01", a_short_header, "queue 1, ring position 0, head 0: 10 bytes", where={"queue": 1}),
    Mistake("NET-30", a_short_frame, "22 bytes", where={"expected": "26 at least"}),
    Mistake("NET-02", num_buffers, "num_buffers 1", where={"expected": "0"}),
    Mistake("NET-03", a_checksum_without_the_feature, "flags 0x1"),
    Mistake("NET-04", segments_without_a_feature, "gso_type 0x1"),
    Mistake("NET-05", tcpv4_with_tso6, "gso_type TCPV4 without feature bit 11"),
    Mistake("NET-06", tcpv6_with_tso4, "gso_type TCPV6 without feature bit 12"),
    Mistake("NET-07", ufo_with_tso4, "gso_type UDP without feature bit 14"),
    Mistake("NET-08", uso_with_tso4, "gso_type UDP_L4 without feature bit 56"),
    Mistake("NET-09", ecn, "gso_type 0x81 without feature bit 13"),
    Mistake("NET-10", a_tunnel, "gso_type 0x21 without feature bit 46"),
    Mistake("NET-11", two_tunnels, "gso_type 0x61", frozenset({"NET-10"})),
    Mistake("NET-12", a_checksum_of_a_tunnel, "flags 0x8 without feature bit 47"),
    Mistake("NET-13", data_valid, "flags 0x2"),
    Mistake("NET-14", a_checksum_behind_the_frame, "csum_start 58, csum_offset 6 in a frame of 60 bytes"),
    Mistake("NET-15", segments_without_a_checksum, "gso_type 0x1, flags 0x0"),
    Mistake("NET-16", segments_of_no_size, "gso_type 0x1, gso_size 0"),
    Mistake("NET-17", no_header_length, "hdr_len 0, csum_start 14"),
    Mistake("NET-18", unknown_flags, "flags 0x40"),
    Mistake("NET-19", sends_what_is_to_write, "16 bytes to write"),
    Mistake("NET-31", a_wrong_checksum, "a checksum of TCP of 0x1234"),
    Mistake("NET-32", a_wrong_header, "a wrong checksum of the IPv4 header"),
    Mistake("NET-33", no_pseudo_header, "0x0000 as checksum of TCP", where={"expected": "0x1431"}),
    Mistake("NET-34", congestion_without_its_bit, "gso_type 0x1, and TCP with CWR"),
    Mistake("NET-21", no_address, r"without MAC \(bit 5\)"),
    Mistake("NET-23", reports_without_a_control_queue, r"with HASH_REPORT \(bit 57\)"),
    Mistake("NET-24", another_pair_before_it_is_set, "transmit queue 3 notified, and 1 pairs are in use"),
    Mistake("NET-25", another_pair_after_it_is_left_out, "transmit queue 3 notified, and 1 pairs"),
    Mistake("NET-26", a_short_buffer, "1000 bytes", where={"expected": "1526 at least", "queue": 0}),
    Mistake("NET-26", a_short_buffer_for_segments, "2048 bytes", where={"expected": "65601 at least"}),
    Mistake("NET-27", a_buffer_of_ten_bytes, "10 bytes", where={"expected": "12 at least"}),
    Mistake("NET-28", receives_into_what_is_to_read, "16 bytes to read"),
    Mistake("NET-29", a_pair_without_buffers, "VQ_PAIRS_SET to 2, and queue 2 has no buffer"),
]


@pytest.mark.parametrize("mistake", MISTAKES, ids=lambda mistake: mistake.id)
def test_mistake(net_author: Author, told: Callable[[Author, Mistake], None], mistake: Mistake) -> None:
    told(net_author, mistake)


def test_right_checksums(net_author: Author) -> None:
    """Nothing is told of them."""
    queue = _drive(net_author)[1]
    for frame in (_tcp(ip_sum=0x66BA, tcp_sum=0x9BBB), FRAME):
        data = net_author.bytes(bytes(12) + frame)
        queue.add([(data.address, data.size)])
        queue.kick(force=True)
    until(lambda: queue.device_used_idx == 2, "both are sent")
    assert net_author.told() == {}


def longer_than_the_mtu(author: Author) -> None:
    _send(author, MTU, frame=FRAME + bytes(1000))


def a_buffer_shorter_than_the_mtu(author: Author) -> None:
    queues = _drive(author, MTU)
    room = author.bytes(bytes(1025))
    queues[0].add([], [(room.address, 1025)])
    queues[0].kick(force=True)
    with NetDriver.open(author.server.socket("pf"), timeout=20) as another:
        another.send(FRAME)
        until(lambda: bool(author.told()), "the buffer is taken")


def no_mtu(author: Author) -> None:
    author.agree([VERSION_1, MAC])


@pytest.mark.parametrize(
    "mistake",
    [
        Mistake("NET-20", longer_than_the_mtu, "a frame of 1060 bytes", where={"expected": "1014 at most"}),
        Mistake(
            "NET-35",
            a_buffer_shorter_than_the_mtu,
            "1025 bytes",
            frozenset({"NET-26"}),
            where={"expected": "1026 at least"},
        ),
        Mistake("NET-22", no_mtu, r"without MTU \(bit 3\)"),
    ],
    ids=lambda mistake: mistake.id,
)
def test_mistake_where_there_is_an_mtu(
    serve: Callable[..., ServerProcess], told: Callable[[Author, Mistake], None], mistake: Mistake
) -> None:
    checked = Checked(serve("--device", "net", "--vfs", "1", "--mtu", "1000", "--check-driver"))
    with checked.author() as author:
        told(author, mistake)
    checked.close()
