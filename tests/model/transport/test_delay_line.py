"""Requests between fetch and completion: other queues' resets, closed gates and moves lose none of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from pymodel.build import Options
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.pci.function import Delays
from tests.fuzz.local import LocalWorld
from vfu_client.drivers.block import BlockDriver, BlockRequest
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci

VERSION_1, RING_RESET, RING_PACKED, IN_ORDER = 32, 40, 34, 35
ACTIVE, STOP, FREEZE = 0, 1, 2
BUS_MASTER = 4
FORMATS = {
    "split": (),
    "packed": (RING_PACKED,),
    "order": (IN_ORDER,),
    "packed-order": (RING_PACKED, IN_ORDER),
}


class World(LocalWorld):
    """Two VFs with two queues each, on disks of their own; `over` ends all delays of VF 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        backends = {name: RamDisk(4096) for name in ("pf", "vf1", "vf2")}
        options = Options("blk", backends, vfs=2, total_vfs=2, queues=2, delays=Delays(io=1))
        self._build(options)
        self._monkeypatch = monkeypatch
        self._late: list[Callable[[], None]] = []

    def driver(self, memory: GuestMemory, bits: tuple[int, ...]) -> BlockDriver:
        """Drive VF 1; its requests are held from now on."""
        connection = self.connect("vf1")
        memory.attach(connection)
        features = frozenset({VERSION_1, RING_RESET, *bits})
        driver = BlockDriver(VirtioPci(connection, memory), queues=2, features=features)
        self._monkeypatch.setattr(self.hosts["vf1"], "after", lambda _, call: self._late.append(call))
        return driver

    def over(self) -> None:
        late, self._late = self._late, []
        for call in late:
            call()
        self.serve("vf1")


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    return World(monkeypatch)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    made = GuestMemory()
    made.add_region(1 << 20)
    yield made
    made.close()


def write(disk: BlockDriver, sector: int, value: int, queue: int = 0) -> BlockRequest:
    data = disk.device.memory.allocate(512)
    data.view[:] = value
    return disk.submit(1, sector, data, queue=queue)


@pytest.mark.parametrize("due", [False, True])
def test_a_queue_reset_forgets_its_own_requests_only(world: World, memory: GuestMemory, *, due: bool) -> None:
    """Whether their time was over by then, or not; the device is not stuck behind those of others."""
    with world.driver(memory, ()) as disk:
        kept = write(disk, 0, 1, queue=0)
        write(disk, 1, 1, queue=1)
        if due:
            command = disk.device.function.config_read(4, 2)
            disk.device.function.config_write(4, 2, command & ~BUS_MASTER)
            world.over()
        disk.device.reset_queue(1)
        if due:
            disk.device.function.config_write(4, 2, command)
        world.over()
        disk.finish(kept)
        function = world.function("vf1")
        assert function.outstanding == 0
        assert kept.status == 0
        late = disk.submit(0, 0, data := memory.allocate(1024))
        world.over()
        disk.finish(late)
        assert data.view.tobytes() == b"\1" * 512 + bytes(512)


@pytest.mark.parametrize("bits", FORMATS.values(), ids=FORMATS)
def test_what_the_gate_held_back_is_fetched_again_elsewhere(
    world: World, memory: GuestMemory, bits: tuple[int, ...]
) -> None:
    """Bus Master Enable is cleared over requests that were fetched: Stop is answered, and they move."""
    with world.driver(memory, bits) as disk:
        first = write(disk, 0, 1)
        world.over()
        disk.finish(first)
        requests = [write(disk, sector, 2) for sector in (0, 3, 5)]
        command = disk.device.function.config_read(4, 2)
        disk.device.function.config_write(4, 2, command & ~BUS_MASTER)
        world.over()
        source, target = world.function("vf1"), world.function("vf2")
        assert source.member is not None
        assert target.member is not None
        assert source.transport.outstanding == 3
        for mode in (STOP, FREEZE):
            assert source.member.set_mode(mode)
            assert target.member.set_mode(mode)
        state = source.capture()
        target.check(state)
        target.restore(state)
        # The same guest, behind the other function.
        disk.device.memory.attach(world.connect("vf2"))
        target.config_write(4, command.to_bytes(2, "little"))
        assert target.member.set_mode(ACTIVE)
        world.pump()
        world.pump()
        done = disk.completions()
        assert [(request.head, request.status) for request in done] == [(r.head, 0) for r in requests]
        assert target.outstanding == 0
