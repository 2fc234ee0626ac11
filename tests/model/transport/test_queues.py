"""Queues of one function side by side, in the hands of a device that does as the test wants."""

from __future__ import annotations

import pytest

from pymodel.build import Options
from pymodel.devices.block.ram_disk import RamDisk
from pymodel.memory import Buffer
from tests.fuzz.local import LocalWorld
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import VirtioPci

VERSION_1, RING_PACKED, IN_ORDER = 32, 34, 35


class World(LocalWorld):
    """A VF with two queues."""

    def __init__(self) -> None:
        options = Options(
            device="blk", backends={"pf": RamDisk(512), "vf1": RamDisk(512)}, vfs=1, total_vfs=1, queues=2
        )
        self._build(options)


@pytest.mark.parametrize(
    "format_", [(), (RING_PACKED,), (RING_PACKED, IN_ORDER)], ids=["split", "packed", "order"]
)
@pytest.mark.parametrize("later", [0, 1])
def test_work_on_one_queue_completes_buffers_of_another(
    monkeypatch: pytest.MonkeyPatch, format_: tuple[int, ...], later: int
) -> None:
    """They are published and told without waiting for anything else, whichever queue comes first."""
    world, memory = World(), GuestMemory()
    memory.add_region(1 << 20)
    held: list[Buffer] = []

    def take(buffer: Buffer) -> None:
        held.append(buffer)
        if buffer.queue == later:
            for one in held:
                one.complete(1)

    monkeypatch.setattr(world.function("vf1").transport.device, "take", take)
    connection = world.connect("vf1")
    memory.attach(connection)
    device = VirtioPci(connection, memory)
    device.initialize(wanted=(VERSION_1, *format_))
    queues: list[DriverQueue] = [device.setup_queue(index, size=4) for index in range(2)]
    device.driver_ok()
    data = memory.allocate(16)
    for index in (1 - later, later):
        queues[index].add([], [data.segment])
        queues[index].kick()
    assert [len(queue.collect()) for queue in queues] == [1, 1]
    assert device.msix is not None
    assert [interrupt.drain() for interrupt in device.msix.interrupts] == [0, 1, 1]
    device.close()
    memory.close()


def test_no_memory_for_what_is_in_a_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    """DEVICE_NEEDS_RESET (0x40), as nobody knows what becomes of the buffer; after a reset all is well."""
    world, memory = World(), GuestMemory()
    memory.add_region(1 << 20)
    connection = world.connect("vf1")
    memory.attach(connection)
    device = VirtioPci(connection, memory)
    data = memory.allocate(16)

    def none(_: Buffer) -> None:
        raise MemoryError

    for take in (none, lambda buffer: buffer.complete(1)):
        monkeypatch.setattr(world.function("vf1").transport.device, "take", take)
        device.initialize(wanted=(VERSION_1,))
        queue = device.setup_queue(0, size=4)
        device.driver_ok()
        queue.add([], [data.segment])
        queue.kick()
        broken = take is none
        assert (device.status & 0x40, len(queue.collect())) == ((0x40, 0) if broken else (0, 1))
    device.close()
    memory.close()
