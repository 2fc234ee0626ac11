"""The header in front of frames: what is passed on, and what drops the frame."""

from __future__ import annotations

import struct

import pytest

from pymodel.devices.net.header import RECEIVE, TRANSMIT, checked, received

NEEDS_CSUM, DATA_VALID = 1, 2
TCPV4, UDP, TCPV6, UDP_L4, ECN = 1, 3, 4, 5, 0x80
LENGTH = 1000
ALL = (1 << 64) - 1
CSUM, HOST_TSO4, HOST_TSO6, HOST_ECN, HOST_UFO, HOST_USO = 0, 11, 12, 13, 14, 56
GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, GUEST_UFO, GUEST_USO4, GUEST_USO6 = 1, 7, 8, 9, 10, 54, 55


def header(*fields: int) -> bytes:
    """flags, gso_type, hdr_len, gso_size, csum_start, csum_offset, num_buffers."""
    return struct.pack("<BBHHHHH", *fields)


def bits(*features: int) -> int:
    return sum(1 << bit for bit in features)


def test_nothing_asked() -> None:
    assert checked(bytes(12), 60, 0, TRANSMIT) == bytes(12)


def test_what_means_nothing_is_cleared() -> None:
    """Fields that no flag gives a meaning, unknown flags, and a count of buffers."""
    raw = header(0xFC, 0, 99, 77, 55, 33, 9)
    assert checked(raw, LENGTH, bits(CSUM, GUEST_CSUM), TRANSMIT) == bytes(12)
    assert checked(raw, LENGTH, bits(CSUM, GUEST_CSUM), RECEIVE) == bytes(12)


@pytest.mark.parametrize(
    ("start", "offset", "good"),
    [
        (34, 16, True),
        (0, 0, True),
        (998, 0, True),
        (999, 0, False),
        (34, 965, False),
        (0xFFFF, 0xFFFF, False),
    ],
)
def test_checksum_lies_in_the_frame(start: int, offset: int, good: bool) -> None:
    raw = header(NEEDS_CSUM, 0, 0, 0, start, offset, 0)
    assert (checked(raw, LENGTH, bits(CSUM), TRANSMIT) == raw) is good
    assert (checked(raw, LENGTH, bits(GUEST_CSUM), RECEIVE) == raw) is good


def test_checksum_needs_its_feature() -> None:
    raw = header(NEEDS_CSUM, 0, 0, 0, 34, 16, 0)
    assert checked(raw, LENGTH, bits(GUEST_CSUM), TRANSMIT) is None
    assert checked(raw, LENGTH, bits(CSUM), RECEIVE) is None


def test_data_valid_is_for_drivers_that_know_it() -> None:
    """A driver MUST NOT set it; a device sets it only where GUEST_CSUM was negotiated."""
    raw = header(DATA_VALID, 0, 0, 0, 0, 0, 0)
    assert checked(raw, LENGTH, bits(CSUM), TRANSMIT) == bytes(12)
    assert checked(raw, LENGTH, bits(CSUM), RECEIVE) == bytes(12)
    assert checked(raw, LENGTH, bits(GUEST_CSUM), RECEIVE) == raw


@pytest.mark.parametrize(
    ("gso", "sending", "receiving"),
    [
        (TCPV4, HOST_TSO4, GUEST_TSO4),
        (TCPV6, HOST_TSO6, GUEST_TSO6),
        (UDP, HOST_UFO, GUEST_UFO),
        (UDP_L4, HOST_USO, GUEST_USO4),
        (UDP_L4, HOST_USO, GUEST_USO6),
    ],
)
def test_segmentation_needs_its_feature(gso: int, sending: int, receiving: int) -> None:
    raw = header(NEEDS_CSUM, gso, 54, 500, 34, 16, 0)
    assert checked(raw, LENGTH, bits(CSUM, sending), TRANSMIT) == raw
    assert checked(raw, LENGTH, bits(GUEST_CSUM, receiving), RECEIVE) == raw
    assert checked(raw, LENGTH, ALL ^ bits(sending), TRANSMIT) is None
    assert checked(raw, LENGTH, ALL & ~bits(receiving) & ~bits(GUEST_USO4, GUEST_USO6), RECEIVE) is None


def test_ecn_needs_its_feature() -> None:
    raw = header(NEEDS_CSUM, TCPV4 | ECN, 54, 500, 34, 16, 0)
    assert checked(raw, LENGTH, bits(CSUM, HOST_TSO4), TRANSMIT) is None
    assert checked(raw, LENGTH, bits(CSUM, HOST_TSO4, HOST_ECN), TRANSMIT) == raw
    assert checked(raw, LENGTH, bits(GUEST_CSUM, GUEST_TSO4), RECEIVE) is None
    assert checked(raw, LENGTH, bits(GUEST_CSUM, GUEST_TSO4, GUEST_ECN), RECEIVE) == raw


@pytest.mark.parametrize(
    "raw",
    [
        header(0, TCPV4, 54, 500, 0, 0, 0),  # without NEEDS_CSUM
        header(NEEDS_CSUM, TCPV4, 54, 0, 34, 16, 0),  # segments of no bytes
        header(NEEDS_CSUM, 2, 54, 500, 34, 16, 0),  # no such type
        header(NEEDS_CSUM, 0x21, 54, 500, 34, 16, 0),  # a tunnel
        header(NEEDS_CSUM, 0x7F, 54, 500, 34, 16, 0),
    ],
)
def test_bad_segmentation(raw: bytes) -> None:
    assert checked(raw, LENGTH, ALL, TRANSMIT) is None
    assert checked(raw, LENGTH, ALL, RECEIVE) is None


def test_header_length_is_a_hint() -> None:
    """Nothing goes by it, but it is not to point out of the frame."""
    raw = header(NEEDS_CSUM, TCPV4, LENGTH + 1, 500, 34, 16, 0)
    good = header(NEEDS_CSUM, TCPV4, LENGTH, 500, 34, 16, 0)
    assert checked(raw, LENGTH, ALL, TRANSMIT) == good
    assert checked(raw, LENGTH, ALL, RECEIVE) == good


def test_as_the_driver_gets_it() -> None:
    raw = header(NEEDS_CSUM, TCPV4, 54, 500, 34, 16, 0)
    assert received(raw, 3, None) == header(NEEDS_CSUM, TCPV4, 54, 500, 34, 16, 3)
    hashed = received(bytes(12), 1, (0x51CCC178, 2))
    assert hashed == header(0, 0, 0, 0, 0, 0, 1) + bytes.fromhex("78c1cc51 0200 0000")
