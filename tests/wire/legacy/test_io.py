"""Frames and control commands through the queues of a legacy driver."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import pytest

from tests.server_process import ServerProcess
from tests.wire.frames import BROADCAST, ethernet, mac, received
from tests.wire.legacy.rig import (
    ACKNOWLEDGE,
    CTRL_MAC_ADDR,
    CTRL_RX,
    CTRL_VQ,
    DRIVER,
    EVENT_IDX,
    INDIRECT,
    MAC,
    MRG_RXBUF,
    NEEDS_RESET,
    ONE,
    OPTIONS,
    TWO,
    Legacy,
    legacy,
    peer,
)
from tests.wire.running import running, until
from vfu_client.drivers.net import NetDriver


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with running() as start:
        yield start(*OPTIONS)


@pytest.fixture
def vf(server: ServerProcess) -> Iterator[Legacy]:
    with legacy(server) as found:
        yield found


@pytest.fixture
def other(server: ServerProcess) -> Iterator[NetDriver]:
    with peer(server) as found:
        yield found


def exchanges(vf: Legacy, other: NetDriver, payload: bytes) -> None:
    """A frame each way."""
    vf.send(ethernet(TWO, ONE, payload))
    assert received(other) == [ethernet(TWO, ONE, payload)]
    (buffer,) = vf.offer()
    other.send(ethernet(ONE, TWO, payload))
    header, frame = vf.receive(buffer)
    assert frame == ethernet(ONE, TWO, payload)
    # num_buffers, where there is one, is 1; nothing else is said.
    assert header == bytes(10) + b"\1\0" * (len(header) == 12)


@pytest.mark.spec("P-DEV-64", "P-DEV-65")
@pytest.mark.parametrize("by_address", [True, False], ids=["address", "command"])
@pytest.mark.parametrize("msix", [True, False], ids=["msix", "polled"])
@pytest.mark.parametrize(
    "features",
    [(), (MAC, EVENT_IDX, INDIRECT), (MAC, MRG_RXBUF), (MAC, MRG_RXBUF, EVENT_IDX, INDIRECT)],
    ids=["none", "rings", "mergeable", "all"],
)
def test_both_ways(
    vf: Legacy, other: NetDriver, features: tuple[int, ...], msix: bool, by_address: bool
) -> None:
    """A header of 10 bytes, of 12 with MRG_RXBUF, whatever the rings and however the device is notified."""
    vf.by_address = by_address
    vf.run(sum(1 << bit for bit in features), msix=msix)
    assert vf.status == 7
    for number in range(20):
        exchanges(vf, other, bytes([number]) * (40 + number))
    assert vf.status == 7


@pytest.mark.spec("P-DEV-64")
@pytest.mark.parametrize("cuts", [(10,), (1, 9), (24,), (10, 14), ()])
def test_any_layout(vf: Legacy, other: NetDriver, cuts: tuple[int, ...]) -> None:
    """Header and frame in descriptors of any length, both ways."""
    vf.run()
    frame = ethernet(TWO, ONE, b"any layout" * 20)
    data = bytes(10) + frame
    edges = [0, *cuts, len(data)]
    pieces = [data[start:end] for start, end in pairwise(edges)]
    buffers = [vf.memory.allocate(len(piece)) for piece in pieces]
    for buffer, piece in zip(buffers, pieces, strict=True):
        buffer.view[:] = list(piece)
    vf.queues[1].add([buffer.segment for buffer in buffers], indirect=False)
    vf.queues[1].kick()
    assert received(other) == [frame]
    rooms = [vf.memory.allocate(len(piece)) for piece in pieces]
    vf.queues[0].add([], [room.segment for room in rooms], indirect=False)
    vf.queues[0].kick()
    back = ethernet(ONE, TWO, b"any layout" * 20)
    other.send(back)
    assert vf.used(0) == [len(data)]
    assert b"".join(room.view.tobytes() for room in rooms) == bytes(10) + back


def test_a_frame_over_several_buffers(vf: Legacy, other: NetDriver) -> None:
    """MRG_RXBUF: the count in the first header; without it a frame that does not fit is dropped."""
    vf.run(1 << MAC | 1 << MRG_RXBUF)
    buffers = vf.offer(100, 4)
    frame = ethernet(ONE, TWO, bytes(range(200)))
    other.send(frame)
    lengths = vf.used(0, 3)
    data = b"".join(buffer.view[:length].tobytes() for buffer, length in zip(buffers, lengths, strict=False))
    assert data == bytes(10) + b"\3\0" + frame
    vf.run()
    vf.offer(100)
    (fits,) = vf.offer(len(frame) + 10)
    other.send(ethernet(ONE, TWO, bytes(200)))
    other.send(ethernet(ONE, TWO))
    vf.used(0)
    assert fits.view[0] == 0xEE


def control(vf: Legacy, kind: tuple[int, int], data: bytes) -> int:
    """A control command, its parts in descriptors of their own; its answer."""
    parts = [vf.memory.allocate(len(part)) for part in (bytes(kind), data)]
    parts[0].view[:] = list(kind)
    parts[1].view[:] = list(data)
    answer = vf.memory.allocate(1)
    answer.view[:] = 0xEE
    vf.queues[2].add([part.segment for part in parts], [answer.segment])
    vf.queues[2].kick()
    vf.used(2)
    return int(answer.view[0])


@pytest.mark.spec("P-DEV-64")
def test_control_queue(vf: Legacy, other: NetDriver) -> None:
    """The third queue, as MQ was not taken: an address of its own, and no frames but its."""
    vf.begin(1 << MAC | 1 << CTRL_VQ | 1 << CTRL_RX | 1 << CTRL_MAC_ADDR)
    for index in range(3):
        vf.queue(index)
    vf.ok()
    assert control(vf, (0, 0), b"\0") == 0
    assert control(vf, (1, 1), mac(0x77)) == 0
    assert control(vf, (1, 1), b"\1" + bytes(5)) == 1
    assert vf.config(0, 6) == mac(0x77)
    (buffer,) = vf.offer()
    other.send(ethernet(ONE, TWO, b"not any more"))
    other.send(ethernet(mac(0x77), TWO, b"now"))
    assert vf.receive(buffer)[1] == ethernet(mac(0x77), TWO, b"now")


@pytest.mark.spec("P-DEV-64")
def test_an_address_by_registers(vf: Legacy, other: NetDriver) -> None:
    """A driver without CTRL_MAC_ADDR writes it byte by byte, before or after anything else."""
    vf.write("device_status", 0)
    for at, byte in enumerate(mac(0x55)):
        assert vf.config(0, 6) == mac(1)
        assert vf.write_at(4, at, bytes([byte])) == (0, 0)
    assert vf.config(0, 6) == mac(0x55)
    vf.begin(1 << MAC)
    assert vf.config(0, 6) == mac(1)  # a reset brings back the device's own
    assert vf.write_at(4, 0, mac(0x66)) == (0, 0)
    for bad in (b"\1\0\0\0\0\1", bytes(6), BROADCAST):
        assert vf.write_at(4, 0, bad) == (0, 0)
        assert vf.config(0, 6) == mac(0x66)
    vf.queue(0)
    vf.queue(1)
    vf.ok()
    (buffer,) = vf.offer()
    other.send(ethernet(mac(0x66), TWO, b"new"))
    assert vf.receive(buffer)[1] == ethernet(mac(0x66), TWO, b"new")


@pytest.mark.spec("P-DEV-64")
@pytest.mark.parametrize("by_address", [True, False], ids=["address", "command"])
def test_before_driver_ok(vf: Legacy, other: NetDriver, by_address: bool) -> None:
    """A device is used before DRIVER_OK, even before features; frames come in afterwards."""
    vf.by_address = by_address
    vf.write("device_status", 0)
    vf.write("device_status", ACKNOWLEDGE | DRIVER)
    vf.queue(0)
    vf.queue(1)
    vf.send(ethernet(TWO, ONE, b"early"))
    assert received(other) == [ethernet(TWO, ONE, b"early")]
    (buffer,) = vf.offer()
    vf.ok()
    other.send(ethernet(ONE, TWO, b"late"))
    assert vf.receive(buffer)[1] == ethernet(ONE, TWO, b"late")


@pytest.mark.spec("P-DEV-65")
def test_notifications_at_the_address(vf: Legacy, other: NetDriver) -> None:
    """Queues that are not there, or not enabled, and other places of that page: nothing happens."""
    vf.begin(1 << MAC)
    for index in (0, 1, 2, 7, 0xFFFF):
        vf.function.bar_write(4, 0x4000, 2, index)
    vf.queue(0)
    vf.queue(1)
    vf.ok()
    # All queues are looked at then, and not again.
    vf.settle()
    frame = vf.memory.allocate(70)
    frame.view[10:] = list(ethernet(TWO, ONE))
    vf.queues[1].add([frame.segment])
    for at in (0x4002, 0x4004, 0x4FFE, 0x5000, 0x7FFE):
        vf.function.bar_write(4, at, 2, 1)
    vf.function.bar_write(4, 0x4000, 2, 0)
    vf.settle()
    assert vf.queues[1].device_used_idx == 0
    vf.function.bar_write(4, 0x4000, 2, 1)
    assert received(other) == [ethernet(TWO, ONE)]
    assert vf.function.bar_read(4, 0x4000, 2) == 0
    assert vf.status == 7


def test_addresses_that_are_not_there(vf: Legacy, other: NetDriver) -> None:
    """A queue that is nowhere: the device needs a reset, which mends it; others notice nothing."""
    vf.begin(1 << MAC)
    vf.write("queue_select", 1)
    vf.write("queue_address", 0xFFFFFFFF)
    assert vf.read("queue_address") == 0xFFFFFFFF
    vf.ok()
    vf.function.bar_write(4, 0x4000, 2, 1)
    until(lambda: bool(vf.status & NEEDS_RESET), "the device needs a reset")
    vf.run()
    exchanges(vf, other, b"mended")


@pytest.mark.spec("P-DEV-64")
def test_reset(vf: Legacy, other: NetDriver) -> None:
    """Everything as at first, twenty times."""
    for number in range(20):
        vf.run()
        exchanges(vf, other, bytes([number]) * 50)
        vf.write("device_status", 0)
        assert vf.status == 0
        assert vf.read("driver_features") == 0
        for index in (0, 1):
            vf.write("queue_select", index)
            assert vf.read("queue_address") == 0
        vf.function.bar_write(4, 0x4000, 2, 1)


@pytest.mark.spec("P-DEV-64")
def test_one_queue_goes(vf: Legacy, other: NetDriver) -> None:
    """Address 0 disables a queue; another address enables it, from its start."""
    vf.run()
    exchanges(vf, other, b"first")
    vf.write("queue_select", 1)
    vf.write("queue_address", 0x1234)  # it is in use
    assert vf.read("queue_address") == vf.queues[1].address >> 12
    vf.write("queue_address", 0)
    assert vf.read("queue_address") == 0
    vf.queue(1)
    exchanges(vf, other, b"second")


def test_flr(vf: Legacy, other: NetDriver) -> None:
    """A function-level reset in the middle: registers as at first, and a driver begins anew."""
    vf.run()
    exchanges(vf, other, b"before")
    vf.function.flr()
    assert vf.status == 0
    vf.function.set_command(6)
    vf.run()
    exchanges(vf, other, b"after")
