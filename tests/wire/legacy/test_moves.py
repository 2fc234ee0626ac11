"""A VF moves with its legacy driver to another server, as a device context or as device parts."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.frames import ethernet, mac, received
from tests.wire.legacy.rig import (
    ACKNOWLEDGE,
    ACTIVE,
    CTX_DISCARD,
    CTX_READ,
    CTX_WRITE,
    DRIVER,
    EVENT_IDX,
    FIELD,
    FREEZE,
    INDIRECT,
    MAC,
    MRG_RXBUF,
    OK,
    ONE,
    OPTIONS,
    TWO,
    Legacy,
    legacy,
    peer,
)
from tests.wire.running import running

CREATE, DESTROY, PARTS_GET, PARTS_SET, PARTS_MODE = 0x0A, 0x0D, 0x0F, 0x10, 0x11
GET, SET = 0, 1


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    with running() as start:
        yield start(*OPTIONS), start(*OPTIONS)


@pytest.fixture(scope="module")
def modern() -> Iterator[ServerProcess]:
    """A server without a legacy interface."""
    with running() as start:
        yield start(*(option for option in OPTIONS if option != "--legacy"))


def object_of(vf: Legacy, operation: int) -> bytes:
    """Make resource object 0; what names it."""
    limits = vf.admin.execute(0x09, group=0, data=bytes(8) + b"\1\1")
    assert limits.status == 0
    assert vf.command(CREATE, bytes(16) + bytes([operation]) + bytes(7))[0] == OK
    return bytes(8)


def by_context(source: Legacy, destination: Legacy) -> tuple[int, int]:
    source.set_mode(FREEZE)
    assert source.command(CTX_DISCARD)[0] == OK
    status, found = source.command(CTX_READ, b"", 1 << 16)
    assert status == OK
    left, size = struct.unpack("<II", found[:8])
    assert left == 0
    destination.set_mode(FREEZE)
    status = destination.command(CTX_WRITE, found[8 : 8 + size])[0]
    destination.set_mode(ACTIVE)
    source.connection.device_reset()
    source.set_mode(ACTIVE)
    return status


def by_parts(source: Legacy, destination: Legacy) -> tuple[int, int]:
    assert source.command(PARTS_MODE, b"\1")[0] == OK
    named = object_of(source, GET)
    status, found = source.command(PARTS_GET, named + b"\1" + bytes(7), 1 << 16)
    assert status == OK
    assert source.command(DESTROY, named)[0] == OK
    assert destination.command(PARTS_MODE, b"\1")[0] == OK
    named = object_of(destination, SET)
    status = destination.command(PARTS_SET, named + found.rstrip(b"\xee"))[0]
    assert destination.command(DESTROY, named)[0] == OK
    assert destination.command(PARTS_MODE, b"\0")[0] == OK
    source.connection.device_reset()
    return status


Move = Callable[[Legacy, Legacy], tuple[int, int]]
WAYS = pytest.mark.parametrize("move", [by_context, by_parts])


@contextlib.contextmanager
def both(servers: tuple[ServerProcess, ServerProcess]) -> Iterator[tuple[Legacy, Legacy]]:
    """VF 1 of two servers, and one guest's memory."""
    with legacy(servers[0]) as source, legacy(servers[1], source.memory) as destination:
        yield source, destination


@WAYS
@pytest.mark.parametrize("features", [(MAC,), (MAC, MRG_RXBUF, EVENT_IDX, INDIRECT)], ids=["least", "most"])
def test_frames_go_on(
    servers: tuple[ServerProcess, ServerProcess], move: Move, features: tuple[int, ...]
) -> None:
    """Queues, features and the address that the driver wrote; buffers that were offered before are filled."""
    with both(servers) as (source, destination), peer(servers[0]) as here, peer(servers[1]) as there:
        source.run(sum(1 << bit for bit in features))
        assert source.write_at(4, 0, mac(0x77)) == OK
        for number in range(5):
            source.send(ethernet(TWO, ONE, bytes([number])))
        assert received(here, 5) == [ethernet(TWO, ONE, bytes([number])) for number in range(5)]
        (buffer,) = source.offer()
        assert move(source, destination) == OK
        destination.take_over(source)
        assert destination.status == 7
        assert destination.read("driver_features") == source.features
        assert destination.config(0, 6) == mac(0x77)
        for index in (0, 1):
            destination.write("queue_select", index)
            assert destination.read("queue_address") == source.queues[index].address >> 12
        # It tells the network where it is, before anything else.
        assert received(there)[0][6:12] == mac(0x77)
        there.send(ethernet(mac(0x77), TWO, b"after"))
        header, frame = destination.receive(buffer)
        assert (len(header), frame) == (
            12 if MRG_RXBUF in features else 10,
            ethernet(mac(0x77), TWO, b"after"),
        )
        destination.send(ethernet(TWO, ONE, b"from there"))
        assert received(there) == [ethernet(TWO, ONE, b"from there")]
        destination.write("device_status", 0)
        destination.run()
        destination.send(ethernet(TWO, ONE, b"anew"))
        assert received(there) == [ethernet(TWO, ONE, b"anew")]


@WAYS
def test_in_the_middle_of_its_beginning(servers: tuple[ServerProcess, ServerProcess], move: Move) -> None:
    """The features are written, no queue is there yet."""
    with both(servers) as (source, destination), peer(servers[1]) as there:
        source.begin(1 << MAC | 1 << MRG_RXBUF)
        assert move(source, destination) == OK
        destination.take_over(source)
        assert destination.status == ACKNOWLEDGE | DRIVER
        destination.queue(0)
        destination.queue(1)
        destination.ok()
        assert destination.read("driver_features") == 1 << MAC | 1 << MRG_RXBUF
        destination.send(ethernet(TWO, ONE, b"begun"))
        assert ethernet(TWO, ONE, b"begun") in received(there, 2)


@WAYS
def test_where_no_legacy_driver_can_be(
    servers: tuple[ServerProcess, ServerProcess], modern: ServerProcess, move: Move
) -> None:
    """Refused, and the log says why; the VF there goes on as it was."""
    with both(servers) as (source, _), legacy(modern, source.memory) as destination:
        source.run()
        assert move(source, destination) == FIELD
        assert "legacy driver" in modern.log
