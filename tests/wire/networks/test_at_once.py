"""Frames that never meet the interpreter: what a driver gets and sends is the same, whichever way they go."""

from __future__ import annotations

import random
import struct
import threading
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from pymodel.memory import Bytes
from pymodel.transport import transport
from tests.wire.frames import BROADCAST, ethernet, mac
from tests.wire.networks.pair_port import EMPTY, PairPort, served
from vfu_client.drivers.net import FEATURES, Header, NetDriver, Received
from vfu_client.vfio import protocol
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.function import KNOWN_FEATURES
from vfu_client.virtio.split import SplitQueue
from vfu_server import function_thread
from vfu_server.datapath import COMPILED

pytestmark = pytest.mark.skipif(not COMPILED, reason="without compiled modules all frames meet it")

MRG_RXBUF, HASH_REPORT, RSS, MTU = 15, 57, 60, 3
CSUM, GUEST_CSUM, GUEST_TSO4, HOST_TSO4, GUEST_OFFLOADS = 0, 1, 7, 11, 2
INDIRECT, EVENT_IDX, RING_PACKED, IN_ORDER = 28, 29, 34, 35
OFFLOADS = 1 << CSUM | 1 << GUEST_CSUM | 1 << GUEST_TSO4 | 1 << HOST_TSO4

ME, PEER, OTHER = mac(1), mac(9), mac(8)
LONGEST = 65535 + 14 + 8
KEY = bytes.fromhex("6d5a56da255b0ec24167253d43a38fb0d0ca2bcbae7b30b477cb2da38030f20c6a42b73bbeac01fa")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Path, PairPort]]:
    with served(offloads=OFFLOADS) as found:
        yield found


@pytest.fixture
def net(server: tuple[Path, PairPort]) -> tuple[Path, PairPort]:
    """A function that nobody has, and a network with nothing under way from it."""
    server[1].drain()
    return server


def ring(*, packed: bool, in_order: bool, event_idx: bool = True) -> frozenset[int]:
    without = set()
    for bit, wanted in ((RING_PACKED, packed), (IN_ORDER, in_order), (EVENT_IDX, event_idx)):
        if not wanted:
            without.add(bit)
    return KNOWN_FEATURES - without


RINGS = [
    pytest.param(ring(packed=packed, in_order=in_order, event_idx=event_idx), id=name)
    for name, packed, in_order, event_idx in (
        ("split", False, False, True),
        ("split, in order, no event index", False, True, False),
        ("packed", True, False, True),
        ("packed, in order", True, True, True),
    )
]


def frame_of(size: int, to: bytes = ME) -> bytes:
    return (to + PEER + b"\x88\xb5" + random.Random(size).randbytes(size))[:size]


def fetched(driver: NetDriver, count: int, *, refill: bool = True) -> list[Received]:
    """So many frames, in the order in which the driver got them."""
    found: list[Received] = []
    while len(found) < count:
        found += driver.receive(20, refill=refill)
    assert len(found) == count
    return found


def driven(path: Path, **options: Any) -> NetDriver:
    """VF 1, notified as QEMU does it."""
    return NetDriver.open(path / "vf1.sock", posted_writes=True, **options)


def warm(driver: NetDriver, port: PairPort) -> None:
    """Have both queues used once: who has never seen a buffer looks for the reason in Python."""
    driver.refill(count=1)
    port.peer.send(EMPTY + frame_of(60))
    fetched(driver, 1, refill=False)
    driver.send(frame_of(60))
    driver.flush()
    port.peer.recv(1 << 17)
    port.asked[:] = [0, 0]


@pytest.mark.parametrize("ring_features", RINGS)
@pytest.mark.parametrize("hashes", [False, True], ids=["", "hashes"])
def test_all_sizes_over_merged_buffers(
    net: tuple[Path, PairPort], ring_features: frozenset[int], hashes: bool
) -> None:
    path, port = net
    features = FEATURES | ({HASH_REPORT} if hashes else set())
    sizes = [14, 15, 16, 17, 60, 500, 501, 1514, 9000, 40000, LONGEST]
    with driven(
        path,
        features=features,
        ring_features=ring_features,
        buffer_size=700,
    ) as driver:
        warm(driver, port)
        for size in sizes * 2:
            port.peer.send(EMPTY + frame_of(size))
            (found,) = fetched(driver, 1)
            assert found.data == frame_of(size)
            assert found.num_buffers == -(-(size + driver.header_size) // 700)
            driver.send(frame_of(size))
            driver.flush()
            assert port.peer.recv(1 << 17) == EMPTY + frame_of(size)
        # Many at a time, small and large ones mixed.
        order = random.Random(3).choices(sizes[:8], k=60)
        for size in order:
            port.peer.send(EMPTY + frame_of(size))
        assert [len(found.data) for found in fetched(driver, len(order))] == order
    assert port.asked == [0, 0]


@pytest.mark.parametrize("ring_features", RINGS)
def test_one_buffer_each(net: tuple[Path, PairPort], ring_features: frozenset[int]) -> None:
    path, port = net
    features = FEATURES - {MRG_RXBUF}
    with driven(path, features=features, ring_features=ring_features) as driver:
        warm(driver, port)
        for size in (14, 60, 1514, 2036):
            port.peer.send(EMPTY + frame_of(size))
            (found,) = fetched(driver, 1)
            assert (found.data, found.num_buffers) == (frame_of(size), 1)
        assert port.asked == [0, 0]
        # One byte too many is a frame that can't be had; what comes after it can.
        port.peer.send(EMPTY + frame_of(2037))
        port.peer.send(EMPTY + frame_of(100))
        assert fetched(driver, 1)[0].data == frame_of(100)


def pieces_of(room: Buffer, *ends: int) -> list[tuple[int, int]]:
    """A buffer cut into pieces that end there."""
    return [(room.address + start, end - start) for start, end in pairwise((0, *ends))]


def test_scattered_buffers(net: tuple[Path, PairPort]) -> None:
    """Headers in descriptors of their own, frames cut anywhere, by indirect tables too."""
    path, port = net
    for features in (KNOWN_FEATURES, KNOWN_FEATURES - {RING_PACKED}, KNOWN_FEATURES - {INDIRECT}):
        with driven(path, ring_features=features, fill=False) as driver:
            memory = driver.device.memory
            room = memory.allocate(4096)
            frame = frame_of(1000)
            for _ in range(3):
                for cuts in ((12,), (12, 28), (12, 40, 1000), (28,), (100, 101), (5,), (13,), (12, 20)):
                    room.view[:] = 0xEE
                    driver.receivers[0].add((), pieces_of(room, *cuts, 2000))
                    driver.receivers[0].kick()
                    port.peer.send(EMPTY + frame)
                    (done,) = driver.receivers[0].wait(20)
                    assert done.length == 1012
                    assert room.view[:1012].tobytes() == EMPTY[:10] + b"\1\0" + frame
                    room.view[:1012] = list(EMPTY + frame)
                    driver.transmitters[0].add(pieces_of(room, *cuts, 1012))
                    driver.transmitters[0].kick()
                    driver.transmitters[0].wait(20)
                    assert port.peer.recv(1 << 17) == EMPTY + frame


def test_an_odd_buffer_keeps_nobody_busy(net: tuple[Path, PairPort]) -> None:
    """One that is not for this way waits for its frame as others do."""
    path, port = net
    with driven(path, fill=False) as driver:
        warm(driver, port)
        room = driver.device.memory.allocate(2000)
        driver.receivers[0].add((), pieces_of(room, 5, 2000))
        driver.receivers[0].kick(force=True)
        for _ in range(64):
            driver.device.function.config_read(0, 2)
        turns = port.turns
        for _ in range(64):
            driver.device.function.config_read(0, 2)
        assert port.turns - turns < 8
        port.peer.send(EMPTY + frame_of(60))
        assert driver.receivers[0].wait(20)[0].length == 72


def test_a_frame_that_comes_in_another_turn(net: tuple[Path, PairPort]) -> None:
    """The driver was asked for no notification: what Python finds goes into the buffers that are there."""
    path, port = net
    with driven(path, fill=False) as driver:
        warm(driver, port)
        driver.refill(count=4)
        driver.device.function.config_read(0, 2)
        usual = port.receive

        def late() -> Bytes | None:
            port.receive = usual  # type: ignore[method-assign]
            port.peer.send(EMPTY + frame_of(61))
            return usual()

        port.receive = late  # type: ignore[method-assign]
        driver.device.common.write("queue_select", 0)
        assert fetched(driver, 1, refill=False)[0].data == frame_of(61)
        assert port.asked == [0, 1]


def test_memory_that_is_back_in_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client's messages are read while rings are missing, or it could never bring them back."""
    for module in (transport, function_thread):
        # However slow this machine is.
        monkeypatch.setattr(module, "FLUX_SECONDS", 60)
    with served(offloads=0) as (path, port), driven(path, fill=False) as driver:
        warm(driver, port)
        driver.refill(count=4)
        (region,) = driver.device.memory.regions
        connection = driver.device.connection
        driver.device.function.config_read(0, 2)
        turns = port.turns
        connection.dma_unmap(region.address, region.size)
        driver.device.notify(0)
        for _ in range(64):
            driver.device.function.config_read(0, 2)
        # One for each of these, and nobody is kept busy in between.
        assert port.turns - turns < 64 + 16
        connection.dma_map(region.fd, 0, region.address, region.size)
        port.peer.send(EMPTY + frame_of(61))
        assert fetched(driver, 1, refill=False)[0].data == frame_of(61)


def test_messages_beside_a_queue_that_never_ends(net: tuple[Path, PairPort]) -> None:
    """What an engine leaves alone, and a driver has more of all the time, is not all that is looked at."""
    path, port = net
    rings = KNOWN_FEATURES - {RING_PACKED}
    with driven(path, ring_features=rings, fill=False) as driver:
        warm(driver, port)
        queue = driver.transmitters[0]
        assert isinstance(queue, SplitQueue)
        # More than any frame has; two of them are a batch.
        head = queue.add([(driver.device.memory.regions[0].address, 16 << 20)])
        queue.avail[2 : 2 + queue.size] = head
        enough = threading.Event()

        def more() -> None:
            while not enough.is_set():
                queue.avail[1] = (queue.device_used_idx + queue.size // 2) & 0xFFFF

        thread = threading.Thread(target=more)
        thread.start()
        try:
            driver.device.notify(1)
            for _ in range(4):
                assert driver.device.function.config_read(0, 2) == 0x1AF4
        finally:
            enough.set()
            thread.join()


def test_buffers_for_the_device_alone(net: tuple[Path, PairPort]) -> None:
    """Memory that an IOMMU lets the device only write to has room for a frame."""
    path, port = net
    with driven(path, fill=False) as driver:
        warm(driver, port)
        memory = driver.device.memory
        region = memory.add_region(4096, allocatable=False)
        connection = driver.device.connection
        connection.dma_unmap(region.address, region.size)
        only = protocol.DMA_MAP.pack(
            protocol.DMA_MAP.size, protocol.DMA_MAP_WRITE, 0, region.address, region.size
        )
        connection.request(protocol.Command.DMA_MAP, only, [region.fd])
        for size in (61, 62, 63):
            # The first one may come in a turn of what was done before.
            driver.receivers[0].add((), [(region.address, region.size)])
            driver.receivers[0].kick()
            port.peer.send(EMPTY + frame_of(size))
            assert driver.receivers[0].wait(20)[0].length == 12 + size
            assert region.view[: 12 + size].tobytes() == EMPTY[:10] + b"\1\0" + frame_of(size)
        assert port.asked[1] <= 1


def test_what_does_not_fit_waits_for_more(net: tuple[Path, PairPort]) -> None:
    """A frame for which there are too few buffers has them when the driver adds some, and keeps its place."""
    path, port = net
    with driven(path, buffer_size=1000, fill=False) as driver:
        driver.refill(count=2)
        port.peer.send(EMPTY + frame_of(60))
        port.peer.send(EMPTY + frame_of(61))
        assert [len(found.data) for found in fetched(driver, 2, refill=False)] == [60, 61]
        # Now without any buffer: nothing is lost.
        for size in (4000, 62, 5000, 63):
            port.peer.send(EMPTY + frame_of(size))
        found: list[Received] = []
        while len(found) < 4:
            driver.refill(count=1)
            found += driver.poll(refill=False)
        assert [frame.data for frame in found] == [frame_of(size) for size in (4000, 62, 5000, 63)]


def test_too_few_buffers_for_long(net: tuple[Path, PairPort]) -> None:
    """One that never gets enough is lost, and said so; those behind it are not."""
    path, port = net
    with driven(path, buffer_size=1000, fill=False) as driver:
        driver.refill(count=2)
        port.peer.send(EMPTY + frame_of(4000))
        port.peer.send(EMPTY + frame_of(60))
        assert driver.receive(20, refill=False)[0].data == frame_of(60)


@pytest.mark.parametrize(
    ("bits", "sent", "got"),
    [
        pytest.param((), (1, 0, 0, 0, 34, 16), None, id="checksum not agreed to"),
        pytest.param((GUEST_CSUM,), (1, 0, 0, 0, 34, 16), (1, 0, 0, 0, 34, 16), id="checksum"),
        pytest.param((GUEST_CSUM,), (2, 0, 9, 9, 0, 0), (2, 0, 0, 0, 0, 0), id="checked already"),
        pytest.param((GUEST_CSUM,), (1, 0, 0, 0, 990, 16), None, id="checksum behind the end"),
        pytest.param((GUEST_CSUM,), (1, 1, 54, 500, 34, 16), None, id="segments not agreed to"),
        pytest.param(
            (GUEST_CSUM, GUEST_TSO4), (1, 1, 9999, 500, 34, 16), (1, 1, 1000, 500, 34, 16), id="segments"
        ),
    ],
)
def test_headers_that_come_in(
    net: tuple[Path, PairPort],
    bits: tuple[int, ...],
    sent: tuple[int, ...],
    got: tuple[int, ...] | None,
) -> None:
    path, port = net
    with driven(path, features=FEATURES | set(bits)) as driver:
        warm(driver, port)
        port.peer.send(struct.pack("<BBHHHHH", *sent, 77) + frame_of(1000))
        port.peer.send(EMPTY + frame_of(60))
        found = fetched(driver, 1 if got is None else 2)
        assert found[-1].data == frame_of(60)
        if got is not None:
            assert (found[0].data, found[0][1:7], found[0].num_buffers) == (frame_of(1000), got, 1)


@pytest.mark.parametrize(
    ("bits", "sent", "got"),
    [
        pytest.param((CSUM,), (1, 0, 7, 0, 34, 16), (1, 0, 0, 0, 34, 16), id="checksum"),
        pytest.param((), (1, 0, 0, 0, 34, 16), None, id="checksum not agreed to"),
        pytest.param((CSUM, HOST_TSO4), (1, 1, 54, 500, 34, 16), (1, 1, 54, 500, 34, 16), id="segments"),
        pytest.param((CSUM,), (1, 1, 54, 500, 34, 16), None, id="segments not agreed to"),
        pytest.param((CSUM,), (2, 0x80, 1, 2, 3, 4), (0, 0, 0, 0, 0, 0), id="what means nothing"),
    ],
)
def test_headers_that_go_out(
    net: tuple[Path, PairPort],
    bits: tuple[int, ...],
    sent: tuple[int, ...],
    got: tuple[int, ...] | None,
) -> None:
    path, port = net
    with driven(path, features=FEATURES | set(bits)) as driver:
        warm(driver, port)
        driver.send(frame_of(1000), header=Header(*sent))
        driver.send(frame_of(60))
        driver.flush()
        if got is not None:
            assert port.peer.recv(1 << 17) == struct.pack("<BBHHHHH", *got, 0) + frame_of(1000)
        assert port.peer.recv(1 << 17) == EMPTY + frame_of(60)


def test_short_frames(net: tuple[Path, PairPort]) -> None:
    """What has no whole Ethernet header is no frame, in either direction."""
    path, port = net
    with driven(path) as driver:
        warm(driver, port)
        for size in range(14):
            port.peer.send(EMPTY + bytes(size))
            driver.send(bytes(size))
        port.peer.send(EMPTY[:5])
        port.peer.send(EMPTY + frame_of(14))
        driver.send(frame_of(14))
        assert fetched(driver, 1)[0].data == frame_of(14)
        driver.flush()
        assert port.peer.recv(1 << 17) == EMPTY + frame_of(14)


def test_filters(net: tuple[Path, PairPort]) -> None:
    """By address, group and VLAN, as they are when a frame comes."""
    path, port = net
    with driven(path, features=FEATURES) as driver:
        driver.set_mode(0, False)
        driver.set_vlan(7)
        warm(driver, port)
        group, last = b"\x01\0\x5e\0\0\7", ethernet(ME, PEER, b"last")
        tried = [
            ethernet(OTHER, PEER, b"other"),
            ethernet(BROADCAST, PEER, b"all"),
            ethernet(group, PEER, b"group"),
            ethernet(ME, PEER, b"seven", vlan=7),
            ethernet(ME, PEER, b"eight", vlan=8),
            ethernet(ME, PEER, b"priority", vlan=0x2000),
            last,
        ]
        dropped = port.counters()["dropped-receiving"]
        for frame in tried:
            port.peer.send(EMPTY + frame)
        found = [frame.data for frame in fetched(driver, 4)]
        assert found == [tried[1], tried[3], tried[5], last]
        assert port.counters()["dropped-receiving"] - dropped == 3
        assert port.asked == [0, 0]
        driver.set_mac_table([OTHER], [group])
        for frame in tried:
            port.peer.send(EMPTY + frame)
        assert [frame.data for frame in fetched(driver, 6)] == [
            frame for frame in tried if frame is not tried[4]
        ]


def test_hashes_are_those_of_the_standard(net: tuple[Path, PairPort]) -> None:
    """The published values, for frames that never meet the interpreter."""
    path, port = net
    features = FEATURES | {HASH_REPORT}
    ip = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 40, 0, 0, 64, 6, 0, b"\x42\x09\x95\xbb", b"\xa1\x8e\x64\x50")
    tcp = struct.pack(">HHIIBBHHH", 2794, 1766, 0, 0, 0x50, 0, 0, 0, 0)
    with driven(path, features=features) as driver:
        driver.set_hash(0x3F, KEY)
        warm(driver, port)
        port.peer.send(EMPTY + ME + PEER + b"\x08\0" + ip + tcp)
        port.peer.send(EMPTY + frame_of(60))
        first, second = fetched(driver, 2)
        assert (first.hash_value, first.hash_report) == (0x51CCC178, 2)
        assert (second.hash_value, second.hash_report) == (0, 0)
        assert port.asked == [0, 0]


def test_counters_are_the_same_either_way(net: tuple[Path, PairPort]) -> None:
    path, port = net
    with driven(path) as driver:
        warm(driver, port)
        before = port.counters()
        for size in (60, 1000):
            port.peer.send(EMPTY + frame_of(size))
            fetched(driver, 1)
            driver.send(frame_of(size))
        driver.flush()
        after = port.counters()
        assert {name: after[name] - before[name] for name in after if after[name] != before[name]} == {
            "frames-sent": 2,
            "bytes-sent": 1060,
            "frames-received": 2,
            "bytes-received": 1060,
        }


def test_a_port_without_room_keeps_the_frame(net: tuple[Path, PairPort]) -> None:
    """A peer that reads nothing: the driver's frames wait, in order, and none is lost."""
    path, port = net
    with driven(path) as driver:
        warm(driver, port)
        sizes = [1000 + number for number in range(200)]
        for size in sizes:
            driver.send(frame_of(size))
        with pytest.raises(TimeoutError):
            driver.flush(timeout=0.2)
        reader = threading.Thread(target=driver.flush)
        reader.start()
        assert [len(port.peer.recv(1 << 17)) - 12 for _ in sizes] == sizes
        reader.join()


def test_both_ways_at_once_under_other_turns(net: tuple[Path, PairPort]) -> None:
    """Commands in between have frames go the other way for a moment: none is lost, doubled or overtaken."""
    path, port = net
    with driven(path, buffer_size=1500) as driver:
        warm(driver, port)
        count = 400

        def feed() -> None:
            for number in range(count):
                port.peer.send(EMPTY + frame_of(200 + number * 7))

        left: list[int] = []

        def read() -> None:
            while len(left) < count:
                left.append(len(port.peer.recv(1 << 17)) - 12)

        threads = [threading.Thread(target=work) for work in (feed, read)]
        for thread in threads:
            thread.start()
        found: list[Received] = []
        for number in range(count):
            driver.send(frame_of(60 + number))
            found += driver.poll()
            if number % 16 == 0:
                driver.set_mode(1, bool(number & 16))
        found += fetched(driver, count - len(found))
        for thread in threads:
            thread.join()
        assert [frame.data for frame in found] == [frame_of(200 + number * 7) for number in range(count)]
        assert left == [60 + number for number in range(count)]
