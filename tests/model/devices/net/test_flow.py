"""Flows and their Toeplitz hash, against the values that its inventor published for drivers to verify."""

from __future__ import annotations

import ipaddress
import struct

import pytest

from pymodel.devices.net.flow import Flow, Toeplitz

KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")
IPV4, TCPV4, UDPV4, IPV6, TCPV6, UDPV6 = 1, 2, 4, 8, 16, 32
TCP, UDP, ICMP = 6, 17, 1

READER = Flow()

# Destination and source with their ports, the hash without the ports and with them.
VECTORS = [
    ("161.142.100.80", 1766, "66.9.149.187", 2794, 0x323E8FC2, 0x51CCC178),
    ("65.69.140.83", 4739, "199.92.111.2", 14230, 0xD718262A, 0xC626B0EA),
    ("12.22.207.184", 38024, "24.19.198.95", 12898, 0xD2D0A5DE, 0x5C2B394A),
    ("3ffe:2501:200:3::1", 1766, "3ffe:2501:200:1fff::7", 2794, 0x2CC18CD5, 0x40207D3D),
    ("ff02::1", 4739, "3ffe:501:8::260:97ff:fe40:efab", 14230, 0x0F0C461C, 0xDDE51BBF),
]


def packet(
    source: str, to: str, protocol: int, payload: bytes, *, fragment: int = 0, options: bytes = b""
) -> bytes:
    """A frame with an IP packet in it; `options` are IPv6 headers, or IPv4 options."""
    first, second = ipaddress.ip_address(source), ipaddress.ip_address(to)
    if first.version == 4:
        ip = struct.pack(
            ">BBHHHBBH", 0x45 + len(options) // 4, 0, 20 + len(payload), 0, fragment, 64, protocol, 0
        )
        return bytes(12) + b"\x08\0" + ip + first.packed + second.packed + options + payload
    ip = struct.pack(">IHBB", 6 << 28, len(payload), protocol, 64)
    return bytes(12) + b"\x86\xdd" + ip + first.packed + second.packed + options + payload


Found = tuple[int, int, bytes]


def flow(source: str, to: str, protocol: int, ports: bytes) -> Found:
    first, second = ipaddress.ip_address(source), ipaddress.ip_address(to)
    return first.version, protocol, first.packed + second.packed + ports


def flow_of(frame: bytes) -> Found | None:
    """What is found in a frame, by a reader that had another one before."""
    found = READER.load(frame)
    return (found.version, found.protocol, found.key) if found.version else None


def hashed(key: bytes, types: int, frame: bytes) -> tuple[int, int]:
    """(hash value, hash report) of a frame."""
    toeplitz = Toeplitz(key, types)
    found = toeplitz.of(READER.load(frame))
    assert bool(found) == bool(toeplitz.report)
    return toeplitz.value, toeplitz.report


@pytest.mark.parametrize(("to", "to_port", "source", "port", "plain", "with_ports"), VECTORS)
@pytest.mark.parametrize("protocol", [TCP, UDP])
def test_published_hashes(
    to: str, to_port: int, source: str, port: int, plain: int, with_ports: int, protocol: int
) -> None:
    ports = struct.pack(">HH", port, to_port)
    frame = packet(source, to, protocol, ports + bytes(16))
    assert flow_of(frame) == flow(source, to, protocol, ports)
    version4 = ":" not in to
    reports = {(True, TCP): 2, (True, UDP): 3, (False, TCP): 5, (False, UDP): 6}
    report = reports[version4, protocol]
    assert hashed(KEY, 0x3F, frame) == (with_ports, report)
    assert hashed(KEY, IPV4 | IPV6, frame) == (plain, 1 if version4 else 4)
    # The first type that is enabled counts; types of others say nothing.
    others = 0x3F & ~(1 << report - 1) & ~(IPV4 | IPV6)
    assert hashed(KEY, others, frame) == (0, 0)


def test_no_ports() -> None:
    """Other protocols, and fragments: by their addresses."""
    source, to = "66.9.149.187", "161.142.100.80"
    ports = struct.pack(">HH", 2794, 1766)
    for frame in (
        packet(source, to, ICMP, ports),
        packet(source, to, TCP, ports, fragment=0x2000),  # the first one
        packet(source, to, TCP, ports, fragment=0x0010),  # a later one
        packet(source, to, TCP, b""),
    ):
        assert hashed(KEY, 0x3F, frame) == (0x323E8FC2, 1)
    # Don't fragment is no fragment.
    assert hashed(KEY, 0x3F, packet(source, to, TCP, ports, fragment=0x4000)) == (0x51CCC178, 2)


def test_headers_in_between() -> None:
    """IPv4 options and IPv6 extension headers are passed over; a fragment header ends the search."""
    ports = struct.pack(">HH", 1, 2)
    assert flow_of(packet("1.2.3.4", "5.6.7.8", UDP, ports, options=bytes(8))) == flow(
        "1.2.3.4", "5.6.7.8", UDP, ports
    )
    hop, destination = bytes([60, 0]) + bytes(6), bytes([UDP, 1]) + bytes(14)
    assert flow_of(packet("fe80::1", "fe80::2", 0, ports, options=hop + destination)) == flow(
        "fe80::1", "fe80::2", UDP, ports
    )
    fragment = bytes([UDP, 0]) + bytes(6)
    assert flow_of(packet("fe80::1", "fe80::2", 44, ports, options=fragment)) == flow(
        "fe80::1", "fe80::2", 0, b""
    )


@pytest.mark.parametrize("tags", [b"\x81\0\0\7", b"\x88\xa8\0\1\x81\0\0\7"])
def test_tags_are_passed_over(tags: bytes) -> None:
    frame = packet("1.2.3.4", "5.6.7.8", UDP, b"\0\1\0\2")
    assert flow_of(frame) is not None
    assert flow_of(frame[:12] + tags + frame[12:]) == flow_of(frame)


@pytest.mark.parametrize("data", [b"", bytes(14), bytes(12) + b"\x08\x06" + bytes(46), b"\xff" * 200])
def test_no_flow(data: bytes) -> None:
    assert flow_of(data) is None
    assert hashed(KEY, 0x3F, data) == (0, 0)


@pytest.mark.parametrize("version", ["1.2.3.4", "fe80::1"])
def test_cut_short(version: str) -> None:
    """Any beginning of a frame has a flow or none, and never raises."""
    frame = packet(
        version, version, TCP, bytes(20), options=bytes([TCP, 0]) + bytes(6) if ":" in version else b""
    )
    for length in range(len(frame)):
        flow_of(frame[:length])


def test_short_key() -> None:
    """Bits that a key lacks are 0."""
    frame = packet("66.9.149.187", "161.142.100.80", TCP, struct.pack(">HH", 2794, 1766))
    assert hashed(b"", 0x3F, frame) == (0, 2)
    assert hashed(b"\x80", TCPV4, packet("128.0.0.0", "5.6.7.8", TCP, bytes(4))) == (0x80000000, 2)
