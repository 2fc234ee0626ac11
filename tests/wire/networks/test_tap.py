"""Taps, in network namespaces of their own: frames to and from the kernel, and its TCP through the switch."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import random
import shutil
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.wire.frames import DEADLINE, Hand, ethernet, mac, wants
from vfu_server.networks.links import LinkWatch
from vfu_server.networks.switch import Switch
from vfu_server.networks.tap import TapPort
from vfu_server.networks.uplink import Uplink

CLONE_NEWNET = 0x40000000
LIBC = ctypes.CDLL(None, use_errno=True)

SIOCETHTOOL, ETHTOOL_GTXCSUM, ETHTOOL_GTSO = 0x8946, 0x16, 0x1E

GUEST_CSUM, GUEST_TSO4 = 1 << 1, 1 << 7
EXPERIMENTAL = 0x88B5
FRAME = ethernet(mac(2), mac(1), b"hello")


@contextlib.contextmanager
def namespace() -> Iterator[int]:
    """A network namespace, as a descriptor. It goes with what is in it, when nothing uses it any more."""
    with kept() as home:
        if LIBC.unshare(CLONE_NEWNET):
            pytest.skip(f"no network namespace can be made: {os.strerror(ctypes.get_errno())}")
        made = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        assert LIBC.setns(home, CLONE_NEWNET) == 0
    try:
        yield made
    finally:
        os.close(made)


@contextlib.contextmanager
def kept() -> Iterator[int]:
    """Come back to the namespace that this thread is in, if it left: that takes rights, staying none."""
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        yield home
    finally:
        if not os.path.samestat(os.fstat(home), os.stat("/proc/thread-self/ns/net")):
            assert LIBC.setns(home, CLONE_NEWNET) == 0
        os.close(home)


@contextlib.contextmanager
def inside(space: int) -> Iterator[None]:
    """Have this thread, and what it starts, in a namespace meanwhile."""
    with kept():
        assert LIBC.setns(space, CLONE_NEWNET) == 0
        yield


@pytest.fixture
def opened() -> Iterator[ExitStack]:
    if not os.path.exists("/dev/net/tun") or shutil.which("ip") is None:
        pytest.skip("there is no /dev/net/tun or no `ip`")
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def space(opened: ExitStack) -> None:
    """A namespace of its own for the test."""
    opened.enter_context(inside(opened.enter_context(namespace())))
    # Its router solicitations and the like would come between.
    with contextlib.suppress(OSError):
        Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")


def ip(*arguments: str) -> str:
    done = subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)
    return done.stdout


def tap(name: str, opened: ExitStack, links: LinkWatch | None = None) -> TapPort:
    if links is None:
        links = LinkWatch()
        opened.callback(links.close)
    port = TapPort(name, links)
    opened.callback(port.close)
    return port


def host_side(name: str, opened: ExitStack) -> socket.socket:
    """The host's side of an interface that is up: frames of the protocol of `ethernet`."""
    found = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(EXPERIMENTAL))
    opened.callback(found.close)
    found.bind((name, EXPERIMENTAL))
    found.settimeout(DEADLINE)
    return found


@pytest.fixture
def both(space: None, opened: ExitStack) -> tuple[Hand, socket.socket]:
    """A port on tap `t0`, and the host's side."""
    hand = Hand(tap("t0", opened))
    ip("link", "set", "t0", "up")
    hand.until_link(True)
    hand.port.configure(0, wants(mac(2)))
    return hand, host_side("t0", opened)


def test_frames_go_both_ways(both: tuple[Hand, socket.socket]) -> None:
    hand, host = both
    assert hand.send(FRAME, 5, 12, 30)
    assert host.recv(2000) == FRAME
    host.send(FRAME)
    host.send(ethernet(mac(3), mac(1)))
    host.send(ethernet(mac(2), mac(1), bytes(1400)))
    hand.expect([FRAME, ethernet(mac(2), mac(1), bytes(1400))])
    counters = hand.port.counters()
    assert (counters["frames-sent"], counters["bytes-sent"]) == (1, 60)
    assert (counters["frames-received"], counters["bytes-received"]) == (2, 60 + 1414)


def test_a_frame_in_more_parts_than_a_write_takes(both: tuple[Hand, socket.socket]) -> None:
    hand, host = both
    frame = ethernet(mac(2), mac(1), bytes(range(250)) * 5)
    assert hand.send(frame, *range(1, 1200))
    assert host.recv(2000) == frame


def test_a_function_without_room_is_not_called_again(both: tuple[Hand, socket.socket]) -> None:
    hand, host = both
    for _ in range(3):
        host.send(FRAME)
    assert hand.next() == FRAME
    assert list(hand.port.waits) == []
    assert len(hand.drain()) == 2
    assert hand.quiet()
    hand.port.configure(0, None)
    host.send(FRAME)
    assert list(hand.port.waits) == []


@pytest.mark.parametrize(
    "header",
    [
        pytest.param(struct.pack("<BBHHHHH", 1, 0, 0, 0, 1000, 16, 0), id="checksum past the end"),
        pytest.param(struct.pack("<BBHHHHH", 1, 9, 54, 1000, 34, 16, 0), id="unknown segmentation"),
        pytest.param(struct.pack("<BBHHHHH", 1, 1, 54, 0, 34, 16, 0), id="segments of 0 bytes"),
    ],
)
def test_what_the_kernel_does_not_believe_is_dropped(both: tuple[Hand, socket.socket], header: bytes) -> None:
    hand, host = both
    assert hand.send(FRAME, header=header)
    assert hand.port.counters()["dropped-sending"] == 1
    assert hand.send(FRAME)
    assert host.recv(2000) == FRAME


def test_the_link_follows_the_interface(both: tuple[Hand, socket.socket]) -> None:
    hand, _ = both
    for up in (False, True, False):
        ip("link", "set", "t0", "up" if up else "down")
        hand.until_link(up)
    assert hand.send(FRAME)
    assert hand.port.counters()["dropped-sending"] == 1


def test_an_interface_that_is_deleted_is_let_go(
    both: tuple[Hand, socket.socket], opened: ExitStack, caplog: pytest.LogCaptureFixture
) -> None:
    hand, _ = both
    ip("link", "delete", "t0")
    hand.until_link(False)
    while hand.port.waits:
        assert hand.wait()
        assert hand.receive() is None
    assert hand.send(FRAME)
    assert caplog.text.count("tap t0 is gone") == 1
    assert hand.quiet()
    # One of the same name is another one; the next interface's news comes after its own.
    ip("tuntap", "add", "dev", "t0", "mode", "tap")
    ip("link", "set", "t0", "up")
    assert isinstance(hand.port, TapPort)
    other = Hand(tap("t1", opened, hand.port._links))
    ip("link", "set", "t1", "up")
    other.until_link(True)
    assert not hand.port.link_up


def test_an_interface_that_exists_is_used_and_left(space: None, opened: ExitStack) -> None:
    ip("tuntap", "add", "dev", "t0", "mode", "tap")
    links = LinkWatch()
    opened.callback(links.close)
    port = TapPort("t0", links)
    with pytest.raises(OSError, match="tap t0: another program has it"):
        TapPort("t0", links)
    port.close()
    assert "t0" in ip("link")
    new = TapPort("t1", links)
    assert "t1" in ip("link")
    new.close()
    assert "t1" not in ip("link")


@pytest.mark.parametrize("name", ["", "sixteen-bytes-xx", "a b", "a/b", "tap%d"])
def test_a_name_that_no_interface_has(name: str, opened: ExitStack) -> None:
    with pytest.raises(OSError, match="no name of an interface"):
        tap(name, opened)


def test_what_is_no_tap_is_refused(space: None, opened: ExitStack) -> None:
    ip("tuntap", "add", "dev", "t0", "mode", "tap", "multi_queue")
    for name in ("t0", "lo"):
        with pytest.raises(OSError, match=f"tap {name}: it is no tap interface with one queue"):
            tap(name, opened)


def test_one_who_may_not_is_told_what_an_administrator_types(tmp_path: Path, opened: ExitStack) -> None:
    if os.geteuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("rights can't be given up: not root, or no `setpriv`")
    command = ["setpriv", "--bounding-set=-net_admin", sys.executable, "-m", "vfu_server"]
    command += ["--device", "net", "--socket-dir", str(tmp_path / "s"), "--net", "pf=tap:t0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.returncode == 1
    assert "usage" not in done.stderr
    assert "ip tuntap add dev t0 mode tap user root && ip link set t0 up" in done.stderr


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EACCES, "`chmod 666 /dev/net/tun`"),
        (errno.EPERM, "`chmod 666 /dev/net/tun`"),
        (errno.ENOENT, "`modprobe tun`"),
        (errno.ENODEV, "`modprobe tun`"),
        (errno.EMFILE, "Too many open files"),
    ],
)
def test_without_the_tun_device_the_reason_is_told(
    monkeypatch: pytest.MonkeyPatch, number: int, advice: str
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    links = LinkWatch()
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="tap t0: /dev/net/tun: ") as caught:
        TapPort("t0", links)
    assert advice in str(caught.value)
    assert ("modprobe" in str(caught.value)) == ("modprobe" in advice)


def test_what_it_offers_and_what_the_kernel_leaves_to_the_driver(both: tuple[Hand, socket.socket]) -> None:
    hand, _ = both
    # CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, GUEST_ECN, HOST_TSO4, HOST_TSO6, HOST_ECN
    assert hand.port.offloads & 0xFFFFFFFF == 0b0011_1011_1000_0011
    for features, expected in (
        (0, (False, False)),
        (GUEST_CSUM, (True, False)),
        (GUEST_CSUM | GUEST_TSO4, (True, True)),
        (GUEST_TSO4, (False, False)),
    ):
        hand.port.configure(features, wants(mac(2)))
        assert (_feature("t0", ETHTOOL_GTXCSUM), _feature("t0", ETHTOOL_GTSO)) == expected


def _feature(name: str, command: int) -> bool:
    """Whether a feature of an interface is on (ethtool's old commands, one for each)."""
    value = ctypes.create_string_buffer(struct.pack("II", command, 0), 8)
    request = struct.pack("16sP16x", name.encode(), ctypes.addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        fcntl.ioctl(asked, SIOCETHTOOL, request)
    return bool(struct.unpack("II", value.raw)[1])


@pytest.mark.parametrize(
    ("carried", "address"),
    [
        pytest.param((True, True), "10.9.0.{}", id="all offloads"),
        pytest.param((True, False), "10.9.0.{}", id="the receiver has none"),
        pytest.param((False, True), "10.9.0.{}", id="the sender has none"),
        pytest.param((True, False), "fd09::{}", id="IPv6, and the receiver has none"),
    ],
)
def test_tcp_of_the_kernel_passes_the_switch(
    opened: ExitStack, carried: tuple[bool, bool], address: str
) -> None:
    """Two namespaces, each behind a tap: the kernel takes no segment of ours with a bad checksum."""
    switch = Switch()
    spaces = []
    uplinks = []
    for number, offloads in enumerate(carried, 1):
        space = opened.enter_context(namespace())
        with inside(space):
            links = LinkWatch()
            opened.callback(links.close)
            port = TapPort("t0", links)
            if not offloads:
                port.offloads = 0
            ip(
                "address",
                "add",
                address.format(number) + "/24",
                "dev",
                "t0",
                *(["nodad"] if ":" in address else []),
            )
            ip("link", "set", "t0", "up")
            uplink = Uplink(port, switch)
            opened.callback(uplink.close)
        spaces.append(space)
        uplinks.append(uplink)
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    data = random.Random(1).randbytes(3 << 20)
    with inside(spaces[1]):
        listener = opened.enter_context(socket.create_server((address.format(2), 5000), family=family))
    with inside(spaces[0]):
        sender = opened.enter_context(socket.socket(family))
    listener.settimeout(DEADLINE)
    sender.settimeout(DEADLINE)
    sender.connect((address.format(2), 5000))
    receiver = opened.enter_context(listener.accept()[0])
    receiver.settimeout(DEADLINE)
    thread = threading.Thread(target=sender.sendall, args=(data,))
    thread.start()
    got = hashlib.sha256()
    left = len(data)
    while left:
        part = receiver.recv(1 << 20)
        assert part
        got.update(part)
        left -= len(part)
    thread.join(DEADLINE)
    assert got.digest() == hashlib.sha256(data).digest()
    sent = uplinks[0].counters()["frames-received"]
    came = uplinks[1].counters()["frames-sent"]
    # 1460 bytes and less in a segment; many more than that in a frame that is yet to be cut.
    segments = len(data) // 1460
    assert (sent < segments / 2) == carried[0]
    assert (came < segments / 2) == (carried == (True, True))
