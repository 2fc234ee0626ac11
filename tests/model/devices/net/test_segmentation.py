"""Checksums and segments in software, compared with what a slow computation of our own says."""

from __future__ import annotations

import struct

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pymodel.devices.net import segmentation
from pymodel.memory import Bytes

NEEDS_CSUM = 1
TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80
GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN = 1 << 1, 1 << 7, 1 << 8, 1 << 9
GUEST_USO4, GUEST_USO6 = 1 << 54, 1 << 55
FIN, SYN, PSH, ACK, ECE, CWR = 0x01, 0x02, 0x08, 0x10, 0x40, 0x80

IPV4_ADDRESSES = bytes.fromhex("0a000001 0a000002")
IPV6_ADDRESSES = bytes.fromhex("fd00000000000000000000000000000a fd00000000000000000000000000000b")


def ones_sum(data: bytes | bytearray) -> int:
    """RFC 1071: the sum of the words in network order, carries added at the end."""
    total: int = sum(struct.unpack(f">{(len(data) + 1) // 2}H", bytes(data) + bytes(len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def pseudo(version: int, protocol: int, length: int) -> bytes:
    if version == 4:
        return IPV4_ADDRESSES + struct.pack(">BBH", 0, protocol, length)
    return IPV6_ADDRESSES + struct.pack(">II", length, protocol)


def ethernet(version: int, tags: int = 0) -> bytes:
    tag = bytes.fromhex("81000007") * tags
    return bytes.fromhex("0200000000bb0200000000aa") + tag + (b"\x08\x00" if version == 4 else b"\x86\xdd")


def network(version: int, protocol: int, length: int, ident: int = 0, options: bytes = b"") -> bytes:
    if version == 4:
        head = struct.pack(
            ">BBHHHBBH",
            0x45 + len(options) // 4,
            0,
            20 + len(options) + length,
            ident,
            0x4000,
            64,
            protocol,
            0,
        )
        raw = bytearray(head + IPV4_ADDRESSES + options)
        struct.pack_into(">H", raw, 10, ~ones_sum(raw) & 0xFFFF)
        return bytes(raw)
    if options:
        head = struct.pack(">IHBB", 0x60000000, len(options) + length, 60, 64)
        return head + IPV6_ADDRESSES + bytes((protocol,)) + options[1:]
    return struct.pack(">IHBB", 0x60000000, length, protocol, 64) + IPV6_ADDRESSES


def tcp(sequence: int, flags: int, options: bytes = b"") -> bytes:
    return struct.pack(">HHIIBBHHH", 1, 2, sequence, 9, 80 + len(options) * 4, flags, 500, 0, 0) + options


def header(
    gso: int, size: int, start: int, offset: int, *, hdr_len: int = 0, flags: int = NEEDS_CSUM
) -> bytes:
    return struct.pack("<BBHHHHH", flags, gso, hdr_len, size, start, offset, 0)


def array(data: bytes) -> Bytes:
    return np.frombuffer(bytearray(data), np.uint8)


def big_tcp(
    payload: bytes,
    *,
    version: int = 4,
    size: int = 1448,
    flags: int = ACK,
    sequence: int = 0,
    ident: int = 0,
    tags: int = 0,
    ip_options: bytes = b"",
    options: bytes = b"",
    gso: int | None = None,
) -> bytes:
    """As a driver gives it: the checksum field holds the sum of the pseudo-header."""
    head = bytearray(tcp(sequence, flags, options))
    length = len(head) + len(payload)
    struct.pack_into(">H", head, 16, ones_sum(pseudo(version, 6, length)))
    front = ethernet(version, tags) + network(version, 6, length, ident, ip_options)
    kind = gso if gso is not None else TCPV4 if version == 4 else TCPV6
    return header(kind, size, len(front), 16, hdr_len=len(front)) + front + head + payload


def carried(frame: bytes, features: int) -> list[bytes]:
    checked = segmentation.check(array(frame))
    assert checked is not None
    return [part.tobytes() for part in checked.carried(features)]


@given(
    payload=st.integers(0, 9000).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
    version=st.sampled_from((4, 6)),
    size=st.integers(100, 9001),
    flags=st.integers(0, 255),
    sequence=st.integers(0, 0xFFFFFFFF),
    ident=st.integers(0, 0xFFFF),
    tags=st.integers(0, 2),
    ip_options=st.sampled_from((b"", bytes(8))),
    options=st.sampled_from((b"", b"\x01" * 12)),
)
@example(b"x" * 3000, 4, 1000, FIN | PSH | ACK | CWR, 0xFFFFFF00, 0xFFFF, 0, b"", b"")
def test_segments_are_what_a_sender_without_offloads_would_have_sent(
    payload: bytes,
    version: int,
    size: int,
    flags: int,
    sequence: int,
    ident: int,
    tags: int,
    ip_options: bytes,
    options: bytes,
) -> None:
    whole = big_tcp(
        payload,
        version=version,
        size=size,
        flags=flags,
        sequence=sequence,
        ident=ident,
        tags=tags,
        ip_options=ip_options,
        options=options,
    )
    expected = []
    pieces = [payload[at : at + size] for at in range(0, len(payload), size)] or [b""]
    for index, piece in enumerate(pieces):
        kept = flags
        if index < len(pieces) - 1:
            kept &= ~(FIN | PSH)
        if index:
            kept &= ~CWR
        head = bytearray(tcp((sequence + index * size) % 2**32, kept, options))
        length = len(head) + len(piece)
        struct.pack_into(
            ">H", head, 16, (~ones_sum(pseudo(version, 6, length) + head + piece) & 0xFFFF) or 0xFFFF
        )
        front = network(version, 6, length, (ident + index) & 0xFFFF, ip_options)
        expected.append(bytes(12) + ethernet(version, tags) + front + head + piece)
    assert carried(whole, GUEST_CSUM) == expected


@given(st.integers(1, 1500).flatmap(lambda n: st.binary(min_size=n, max_size=n)), st.integers(0, 3))
def test_a_checksum_is_completed(payload: bytes, prefix: int) -> None:
    head = bytearray(struct.pack(">HHHH", 1, 2, 8 + len(payload), 0))
    length = len(head) + len(payload)
    struct.pack_into(">H", head, 6, ones_sum(pseudo(4, 17, length)))
    front = ethernet(4) + network(4, 17, length)
    (done,) = carried(header(0, 0, len(front), 6) + front + head + payload, 0)
    assert done[:12] == bytes(12)
    assert done[12 : 12 + len(front)] == front
    assert ones_sum(pseudo(4, 17, length) + done[12 + len(front) :]) == 0xFFFF
    assert done[12 + len(front) + 6 :][:2] != b"\0\0"  # which would be none


def test_a_checksum_of_0_is_sent_as_its_other_form() -> None:
    front = ethernet(4) + network(4, 17, 8)
    frame = header(0, 0, len(front), 6) + front + bytes.fromhex("0001 fffe 0000 0000")
    assert carried(frame, 0)[0][-2:] == b"\xff\xff"


def test_udp_segments_have_their_lengths_and_checksums() -> None:
    head = struct.pack(">HHHH", 1, 2, 0, 0)
    front = ethernet(6) + network(6, 17, 8 + 250)
    payload = bytes(range(250))
    first, second, third = carried(header(UDP_L4, 100, len(front), 6) + front + head + payload, GUEST_CSUM)
    at = 12 + len(front)
    assert [len(part) - at - 8 for part in (first, second, third)] == [100, 100, 50]
    assert first[at + 8 :] + second[at + 8 :] + third[at + 8 :] == payload
    assert third[at + 4 : at + 6] == b"\0\x3a"
    assert third[12 + 18 : 12 + 20] == b"\0\x3a"
    for part in (first, second, third):
        assert ones_sum(pseudo(6, 17, len(part) - at) + part[at:]) == 0xFFFF


@pytest.mark.parametrize(
    ("version", "gso", "needed"),
    [
        (4, TCPV4, GUEST_CSUM | GUEST_TSO4),
        (6, TCPV6, GUEST_CSUM | GUEST_TSO6),
        (4, TCPV4 | ECN, GUEST_CSUM | GUEST_TSO4 | GUEST_ECN),
        (6, TCPV6 | ECN, GUEST_CSUM | GUEST_TSO6 | GUEST_ECN),
    ],
)
def test_a_receiver_that_took_all_that_it_takes_has_it_whole(version: int, gso: int, needed: int) -> None:
    frame = big_tcp(b"x" * 3000, version=version, gso=gso)
    (whole,) = carried(frame, needed)
    assert whole[12:] == frame[12:]
    for bit in (GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN):
        if needed & bit:
            assert len(carried(frame, needed & ~bit)) == 3


def test_a_header_is_put_in_order_for_its_receiver() -> None:
    # hdr_len: 14 + 20 + 20; a driver's is a hint, and was 34.
    (whole,) = carried(big_tcp(b"x" * 3000), GUEST_CSUM | GUEST_TSO4)
    assert whole[:12] == struct.pack("<BBHHHHH", NEEDS_CSUM, TCPV4, 54, 1448, 34, 16, 0)
    # RSC_INFO and DATA_VALID are no driver's to say, nor is anything else where no checksum is needed.
    (plain,) = carried(header(0, 7, 7, 7, hdr_len=7, flags=2 | 4) + ethernet(4) + bytes(46), 0)
    assert plain[:12] == bytes(12)


def test_a_segment_holds_no_memory_but_its_own() -> None:
    checked = segmentation.check(array(GOOD))
    assert checked is not None
    assert [part.base for part in checked.carried(0)] == [None, None, None]


def test_a_frame_that_is_short_enough_is_one_segment() -> None:
    (one,) = carried(big_tcp(b"x" * 10, flags=ACK | PSH | CWR), 0)
    assert one[12 + 34 + 13] == ACK | PSH | CWR
    assert one[-10:] == b"x" * 10


def changed(frame: bytes, at: int, data: bytes) -> bytes:
    return frame[:at] + data + frame[at + len(data) :]


GOOD = big_tcp(b"x" * 3000)
GOOD6 = big_tcp(b"x" * 3000, version=6)


@pytest.mark.parametrize(
    "frame",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(GOOD[:25], id="no whole Ethernet header"),
        pytest.param(changed(GOOD, 0, b"\0"), id="segments without a checksum"),
        pytest.param(changed(GOOD, 1, b"\x02"), id="an unknown type"),
        pytest.param(changed(GOOD, 1, bytes((UDP,))), id="UDP fragments, which nobody offered"),
        pytest.param(changed(GOOD, 1, bytes((TCPV6,))), id="not the version of IP"),
        pytest.param(changed(GOOD6, 1, bytes((TCPV4,))), id="not the version of IP, 6"),
        pytest.param(changed(GOOD, 1, bytes((UDP_L4,))), id="not the protocol"),
        pytest.param(changed(GOOD, 1, b"\x80"), id="ECN of nothing"),
        pytest.param(changed(GOOD, 4, b"\0\0"), id="segments of 0 bytes"),
        pytest.param(changed(GOOD, 4, b"\2\0"), id="more segments than anybody sends"),
        pytest.param(changed(GOOD, 6, b"\xff\xff"), id="checksum past the end"),
        pytest.param(changed(GOOD, 6, b"\0\0"), id="checksum of the Ethernet header"),
        pytest.param(changed(GOOD, 6, b"\x26\0"), id="checksum not from the TCP header on"),
        pytest.param(changed(GOOD, 8, b"\xff\xff"), id="checksum field past the end"),
        pytest.param(changed(GOOD, 8, b"\6\0"), id="checksum field that is not TCP's"),
        pytest.param(changed(GOOD, 12 + 12, b"\x08\x06"), id="not IP"),
        pytest.param(changed(GOOD, 12 + 14, b"\x44"), id="an IP header of 16 bytes"),
        pytest.param(changed(GOOD, 12 + 14, b"\x65"), id="another version of IP"),
        pytest.param(changed(GOOD, 12 + 20, b"\x20\0"), id="a fragment"),
        pytest.param(changed(GOOD, 12 + 23, b"\x11"), id="UDP"),
        pytest.param(changed(GOOD, 12 + 34 + 12, b"\x40"), id="a TCP header of 16 bytes"),
        pytest.param(GOOD[: 12 + 34 + 19], id="half a TCP header"),
        pytest.param(
            GOOD[: 12 + 34 + 20][:-20] + GOOD[12 + 34 :][:12] + b"\xf0" + bytes(7),
            id="TCP options past the end",
        ),
        pytest.param(changed(GOOD6, 12 + 14 + 6, b"\x2c"), id="an IPv6 fragment"),
        pytest.param(
            changed(GOOD6, 12 + 14 + 6, b"\0" + bytes(1) + b"\0" * 1), id="an endless chain of options"
        ),
        pytest.param(GOOD6[: 12 + 14 + 30], id="half an IPv6 header"),
        pytest.param(GOOD[:12] + ethernet(4, 2)[:-2], id="two tags and no more"),
    ],
)
def test_what_contradicts_itself_is_no_frame(frame: bytes) -> None:
    assert segmentation.check(array(frame)) is None


@given(
    frame=st.one_of(st.just(GOOD), st.just(GOOD6), st.binary(max_size=200)),
    cut=st.integers(0, 3100),
    patches=st.lists(st.tuples(st.integers(0, 120), st.binary(min_size=1, max_size=4)), max_size=4),
    features=st.sampled_from((0, GUEST_CSUM, GUEST_CSUM | GUEST_TSO4)),
)
def test_no_frame_of_a_driver_raises(
    frame: bytes, cut: int, patches: list[tuple[int, bytes]], features: int
) -> None:
    data = bytearray(frame[:cut])
    for at, patch in patches:
        data[at : at + len(patch)] = patch[: max(len(data) - at, 0)]
    checked = segmentation.check(array(bytes(data)))
    if checked is not None:
        parts = checked.carried(features)
        assert sum(map(len, parts)) <= len(data) + 1366 * 200
        assert all(len(part) >= 26 for part in parts)
