"""Contexts that build on an earlier one (A-06 otherwise): pre-copy works, and nobody takes one by mistake."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import (
    ACTIVE,
    CTX_DISCARD,
    CTX_WRITE,
    EXTENT,
    FREEZE,
    MODE_SET,
    OK,
    PATTERN,
    STOP,
    TIMEOUT,
    WRONG_CONTENT,
    Rig,
    parse,
    value,
    whole,
)
from tests.wire.running import running
from vfu_client.drivers.block import BlockDriver
from vfu_client.move.pf import Former, Pf, SideError
from vfu_client.owner.owner import OwnerDriver

CHANGE, BASE, CONTENT = 0x201, 0x202, 0x203
SIZE = 64 << 10


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    """Two VFs, each on a disk of 64 KiB."""
    with running() as start:
        yield start("--vfs", "2", "--queues", "2", "--disk", "ram:64k")


@pytest.fixture
def rig(rig: Rig) -> Iterator[Rig]:
    """VF 1's disk is full of a pattern. VF 2 is left Active."""
    rig.disk.write(0, PATTERN * (SIZE // 512))
    yield rig
    assert rig.adm(CTX_DISCARD, vf=2).code == OK
    assert rig.adm(MODE_SET, bytes(8), vf=2).code == OK


def disk_fields(stream: bytes) -> list[int]:
    """The types of the fields about the disk."""
    assert whole(stream)
    return [kind for kind, _ in parse(stream) if kind >= EXTENT]


def freeze(rig: Rig, vf: int) -> None:
    assert rig.adm(MODE_SET, bytes([FREEZE]).ljust(8, b"\0"), vf=vf).code == OK


def write(rig: Rig, vf: int, stream: bytes) -> tuple[int, int]:
    return rig.adm(CTX_WRITE, stream, vf=vf).code


def of_disk(server: ServerProcess, vf: int) -> bytes:
    """All of a VF's disk, as its driver reads it."""
    with BlockDriver.open(server.socket(f"vf{vf}"), timeout=TIMEOUT) as disk:
        return disk.read(0, SIZE // 512).tobytes()


def test_a_vf_that_does_not_hold_the_base_refuses(rig: Rig) -> None:
    """Read to the end in Active, then in Freeze: the second context alone is not taken; the log says why."""
    first = rig.read_rest()
    rig.go(FREEZE)
    second = rig.read_rest()
    assert disk_fields(first) == [EXTENT, CONTENT]
    assert disk_fields(second) == [BASE, CONTENT]
    assert value(second, BASE) == value(first, CONTENT)
    freeze(rig, 2)
    mark = rig.server.mark()
    for _ in range(3):
        assert write(rig, 2, second) == WRONG_CONTENT
    line = rig.server.wait_log(r"virtio\.vf2: a context is refused", since=mark)
    assert f"builds on content {value(first, CONTENT).hex()}" in line
    assert rig.server.log[mark:].count("a context is refused") == 1, "once is enough"
    # Nothing is staged, and a whole one is taken, after which the other is.
    assert write(rig, 2, first) == OK
    assert write(rig, 2, second) == OK


def test_pre_copy(rig: Rig) -> None:
    """What changed between the two is all that the second one has."""
    freeze(rig, 2)
    assert write(rig, 2, rig.read_rest()) == OK
    rig.disk.write(9, b"\x99" * 512)
    rig.go(FREEZE)
    second = rig.read_rest()
    assert disk_fields(second) == [CHANGE, BASE, CONTENT]
    assert len(value(second, CHANGE)) == 8 + 4096
    assert write(rig, 2, second) == OK
    assert rig.adm(MODE_SET, bytes(8), vf=2).code == OK
    assert of_disk(rig.server, 2) == PATTERN * 9 + b"\x99" * 512 + PATTERN * (SIZE // 512 - 10)


def test_a_vf_that_was_written_by_its_driver_refuses(rig: Rig) -> None:
    """Even the same bytes: that it is the same nobody has looked."""
    freeze(rig, 2)
    assert write(rig, 2, rig.read_rest()) == OK
    assert rig.adm(MODE_SET, bytes(8), vf=2).code == OK
    with BlockDriver.open(rig.server.socket("vf2"), timeout=TIMEOUT) as disk:
        disk.write(0, PATTERN)
    freeze(rig, 2)
    rig.go(FREEZE)
    assert write(rig, 2, rig.read_rest()) == WRONG_CONTENT


@pytest.mark.spec("DEV-09")
def test_after_discard_the_context_is_whole(rig: Rig) -> None:
    """Also after the context was read to its end in another mode."""
    first = rig.read_rest()
    rig.go(FREEZE)
    assert rig.adm(CTX_DISCARD).code == OK
    assert rig.size() == len(first)
    assert value(rig.read_rest(), EXTENT) == value(first, EXTENT)


def test_another_owner_gets_the_whole(rig: Rig) -> None:
    """An owner that starts anew has lost what was read, or has read the end of it only."""
    left, _ = rig.read(100)
    rig.owner.close()
    rig.owner = OwnerDriver.open(rig.server.socket("pf"), obey=False, timeout=TIMEOUT)
    assert rig.size() == left
    assert len(rig.read_rest()) == left
    rig.go(FREEZE)
    assert disk_fields(rig.read_rest()) == [EXTENT, CONTENT]
    rig.owner.close()
    rig.owner = OwnerDriver.open(rig.server.socket("pf"), obey=False, timeout=TIMEOUT)
    assert rig.read(100) == (0, b"")
    rig.go(STOP)
    assert disk_fields(rig.read_rest()) == [EXTENT, CONTENT]


@pytest.mark.spec("DEV-09")
def test_the_whole_size(rig: Rig) -> None:
    """SIZE_GET with freeze_mode 1, whatever was read; with 0 it is what READ gives."""
    size = len(rig.read_rest())
    assert size > SIZE
    for mode in (FREEZE, STOP, ACTIVE, FREEZE):
        rig.go(mode)
        assert rig.size(1) == size
        left = rig.size()
        assert left < size
        assert rig.read(20)[0] == left - 20
        assert rig.size(1) == size
        assert len(rig.read_rest()) == left - 20
        assert (rig.size(), rig.size(1)) == (0, size)


# The order of a move, by vfu-migrate's own steps.


@contextlib.contextmanager
def attached(*servers: ServerProcess) -> Iterator[list[Pf]]:
    """The two sides of a move."""
    sides = [Pf(server.folder.name, server.folder, 0x40) for server in servers]
    with contextlib.ExitStack() as stack:
        for side in sides:
            side.open()
            stack.callback(side.close)
        yield sides


def test_moves_there_and_back_and_after_one_that_failed(
    server: ServerProcess, serve: Callable[..., ServerProcess]
) -> None:
    """Each sends the disk once, and then what changed; what is given back is what was there."""
    other = serve("--vfs", "2", "--queues", "2", "--disk", "ram:64k")
    there = bytearray(b"\x55" * SIZE)
    here = bytearray(b"\x33" * SIZE)
    for host, content in ((server, here), (other, there)):
        with BlockDriver.open(host.socket("vf1"), timeout=TIMEOUT) as disk:
            disk.write(0, bytes(content))

    def write_sector(host: ServerProcess, number: int) -> None:
        with BlockDriver.open(host.socket("vf1"), timeout=TIMEOUT) as disk:
            disk.write(number, bytes([number]) * 512)
        here[512 * number : 512 * number + 512] = bytes([number]) * 512

    def begin(source: Pf, destination: Pf, written: Former) -> None:
        written.mode = destination.mode(1)
        destination.prepare(1, written, source.read_first(1))
        source.start_record(1)

    def finish(source: Pf, destination: Pf) -> None:
        source.stop(1)
        pieces = source.read_last(1)
        assert sum(map(len, pieces)) < SIZE // 2
        destination.write_last(1, pieces)

    with attached(server, other) as (a, b):
        for number in range(2):  # the first one fails at its end
            written = Former()
            begin(a, b, written)
            write_sector(server, 1 + number)
            finish(a, b)
            if not number:
                b.restore(1, written)
                a.resume(1)
                assert of_disk(other, 1) == there
                write_sector(server, 9)
        b.activate(1)
        a.release(1)
        assert of_disk(other, 1) == here
        write_sector(other, 3)
        begin(b, a, Former())
        write_sector(other, 4)
        finish(b, a)
        a.activate(1)
        b.release(1)
        assert of_disk(server, 1) == here


def test_a_destination_that_somebody_changed_meanwhile(
    server: ServerProcess, serve: Callable[..., ServerProcess]
) -> None:
    """The move fails with a reason, instead of a disk that is half another one."""
    other = serve("--vfs", "2", "--queues", "2", "--disk", "ram:64k")
    with BlockDriver.open(server.socket("vf1"), timeout=TIMEOUT) as disk:
        disk.write(0, b"\x33" * SIZE)
    with attached(server, other) as (a, b):
        b.prepare(1, Former(), a.read_first(1))
        a.stop(1)
        b.owner.context_write(1, list(b.owner.context_read(2)))
        with pytest.raises(SideError, match="does not take the last one"):
            b.write_last(1, a.read_last(1))
        a.activate(1)
    assert "virtio.vf1: a context is refused: it builds on content " in other.log


def test_names_are_not_guessed(rig: Rig) -> None:
    """A context that calls a part of the content by its name is refused."""
    stream = rig.read_rest()
    name = struct.pack("<IIQ", CONTENT, 0, 16) + value(stream, CONTENT)
    rig.go(FREEZE)
    for fields in (name, struct.pack("<IIQQ", CHANGE, 0, 9, 0) + b"x" + name):
        stream = struct.pack("<IIQ", 0, 0, 0) + fields + struct.pack("<IIQ", 1, 0, 0)
        assert rig.write(stream) == WRONG_CONTENT
