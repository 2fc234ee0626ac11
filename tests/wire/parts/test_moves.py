"""VFs that move by device parts, with requests in their rings: to a neighbour, to another server and back.

Also from a source that knows the standard's parts only.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import pytest

from tests.server_process import ServerProcess
from tests.wire.arrival import arrive, gone
from tests.wire.draft_rig import OK, RING_PACKED, TIMEOUT
from tests.wire.parts.rig import (
    OURS,
    WRONG_CONTENT,
    Part,
    PartsRig,
    file_server,
    without_ours,
)
from vfu_client.drivers.block import FEATURES, BlockDriver, BlockRequest
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

PACKED = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
SIZE: Final = 16


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers whose VFs all have one file."""
    folder = tmp_path_factory.mktemp("moves")
    with file_server(folder) as here, file_server(folder) as there:
        yield here, there


class Side(PartsRig):
    """A PF under an owner whose VF has no driver yet."""

    def _drive(self, socket: Path) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self.owner.close()
        self._memory.close()


class Traveller:
    """A disk driver that goes from one VF to another."""

    def __init__(
        self, stack: contextlib.ExitStack, server: ServerProcess, *, packed: bool, vf: int = 1
    ) -> None:
        self.memory = GuestMemory()
        self.memory.add_region(1 << 20)
        features = (KNOWN_FEATURES | FEATURES) - (set() if packed else {RING_PACKED})
        self.driver = BlockDriver.open(
            server.socket(f"vf{vf}"), memory=self.memory, queue_size=SIZE, features=features, timeout=TIMEOUT
        )
        self.at = server, vf
        stack.callback(lambda: leave(self.driver.device, *self.at))

    def arrive(self, server: ServerProcess, vf: int = 1) -> VirtioPci:
        """Be on another VF; the one that is left."""
        left = self.driver.device
        device = VirtioPci.open(server.socket(f"vf{vf}"), memory=self.memory, timeout=TIMEOUT)
        self.at = server, vf
        arrive(self.driver, device, self.driver.queues)
        return left

    def submit(self, sector: int, count: int) -> list[BlockRequest]:
        """Requests that read a sector each."""
        return [self.driver.submit(0, sector, self.memory.allocate(512)) for _ in range(count)]

    def finish(self, requests: Sequence[BlockRequest], content: bytes) -> None:
        """Each is answered, with this."""
        for request in requests:
            self.driver.finish(request)
            assert request.data is not None
            assert request.data.view.tobytes() == content
            self.memory.free(request.data)


@pytest.fixture
def sides(servers: tuple[ServerProcess, ServerProcess]) -> Iterator[tuple[Side, Side]]:
    """The two PFs."""
    with Side(servers[0]) as here, Side(servers[1]) as there:
        yield here, there


def moved(source: Side, target: Side, traveller: Traveller, *, foreign: bool = False) -> list[Part]:
    """Move a VF that is stopped; what was set at the target, which runs then."""
    parts = source.parts()
    if foreign:
        parts = without_ours(parts)
    target.stop()
    assert target.set(parts) == OK
    left = traveller.arrive(target.server, target.vf)
    target.resume()
    leave(left, source.server, source.vf)
    return parts


def leave(left: VirtioPci, server: ServerProcess, vf: int = 1) -> None:
    """Give back a VF, as a VMM does: it is reset, and runs from then on."""
    left.connection.device_reset()
    left.connection.close()
    gone(server, f"vf{vf}")


@PACKED
@pytest.mark.spec("P-DEV-50")
def test_there_and_back(sides: tuple[Side, Side], packed: bool) -> None:
    """With requests that wait in the ring each time, and its laps; every answer is right."""
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, sides[0].server, packed=packed)
        for turn in range(6):
            source, target = sides[turn % 2], sides[1 - turn % 2]
            content = bytes([turn + 1]) * 512
            for sector in range(turn, turn + 5):
                traveller.driver.write(sector, content)
            traveller.driver.writeback = bool(turn % 2)
            source.stop()
            waiting = traveller.submit(turn, 7)
            parts = moved(source, target, traveller)
            traveller.finish(waiting, content)
            assert traveller.driver.writeback is bool(turn % 2)
            target.stop()
            ahead = {part[:2]: part.value for part in parts if part.kind != OURS}
            assert {part[:2]: part.value for part in target.parts() if part.kind != OURS} == ahead
            target.resume()


@pytest.mark.spec("P-DEV-50")
def test_from_a_source_that_knows_the_standard_only(sides: tuple[Side, Side]) -> None:
    """A split ring goes on at its used index, as a stopped device gives all back; each queue is told once."""
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, sides[0].server, packed=False)
        for turn in range(4):
            source, target = sides[turn % 2], sides[1 - turn % 2]
            content = bytes([turn + 0x81]) * 512
            for sector in range(turn, turn + 5):
                traveller.driver.write(sector, content)
            under_load = traveller.submit(turn, 8)
            source.stop()
            waiting = traveller.submit(turn, 7)
            moved(source, target, traveller, foreign=True)
            traveller.finish([*under_load, *waiting], content)


def test_a_foreign_source_owes_an_interrupt(sides: tuple[Side, Side]) -> None:
    """Without a word of it, each queue that is enabled interrupts once; with ours, none that was not owed."""
    here, _ = sides
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, here.server, packed=False)
        traveller.driver.read(0)
        msix = traveller.driver.device.msix
        assert msix is not None
        for foreign in (True, False):
            here.stop()
            parts = here.parts()
            assert here.set(without_ours(parts) if foreign else parts) == OK
            for interrupt in msix.interrupts:
                interrupt.drain()
            here.resume()
            if foreign:
                assert msix.interrupts[1].wait(TIMEOUT) == 1
            traveller.driver.read(0)
            assert msix.interrupts[2].drain() == 0


@pytest.mark.spec("P-DEV-04")
def test_a_packed_ring_of_a_foreign_source_is_refused(sides: tuple[Side, Side]) -> None:
    """Its position is nowhere in memory: refused at the target, and the source goes on."""
    here, there = sides
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, here.server, packed=True)
        traveller.driver.write(3, b"\x33" * 512)
        here.stop()
        waiting = traveller.submit(3, 4)
        there.stop()
        assert there.set(without_ours(here.parts())) == WRONG_CONTENT
        there.resume()
        here.resume()
        traveller.finish(waiting, b"\x33" * 512)


@pytest.mark.parametrize("foreign", [False, True], ids=["ours", "foreign"])
def test_the_guest_comes_after_the_resume(sides: tuple[Side, Side], foreign: bool) -> None:
    """Memory and Bus Master Enable are there later than the resume: the VF looks at its queues again then."""
    here, there = sides
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, here.server, packed=not foreign)
        for _ in range(5):
            traveller.driver.write(3, b"\x3c" * 512)
        here.stop()
        waiting = traveller.submit(3, 4)
        parts = here.parts()
        there.stop()
        assert there.set(without_ours(parts) if foreign else parts) == OK
        there.resume()
        leave(traveller.arrive(there.server), here.server)
        traveller.finish(waiting, b"\x3c" * 512)


@PACKED
def test_to_a_neighbour(servers: tuple[ServerProcess, ServerProcess], packed: bool) -> None:
    """VF 1 to VF 2 of one PF, with one owner: each has objects of its own."""
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, servers[0], packed=packed)
        with Side(servers[0]) as owner:
            assert owner.create(4, 1, vf=2) == OK
            traveller.driver.write(9, b"\x99" * 512)
            owner.stop()
            waiting = traveller.submit(9, 5)
            owner.stop(vf=2)
            assert owner.set(owner.parts(), id_=4, vf=2) == OK
            left = traveller.arrive(servers[0], 2)
            owner.resume(vf=2)
            leave(left, servers[0])
            traveller.finish(waiting, b"\x99" * 512)


def test_a_set_that_a_reset_forgets_does_not_come_back(sides: tuple[Side, Side]) -> None:
    """What arrived and was not resumed is gone with an FLR: the VF is as new, and its driver begins anew."""
    here, there = sides
    with contextlib.ExitStack() as stack:
        traveller = Traveller(stack, here.server, packed=True)
        here.stop()
        there.stop()
        assert there.set(here.parts()) == OK
        device = VirtioPci.open(there.server.socket("vf1"), memory=traveller.memory, timeout=TIMEOUT)
        device.function.flr()
        there.resume()
        assert device.status == 0
        device.close()
        here.resume()
        assert traveller.driver.read(0).size == 512
