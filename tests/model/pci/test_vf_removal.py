"""A VF that VF Enable took away does nothing to what the next VF of its number stands on."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pymodel.devices.block.ram_disk import RamDisk
from pymodel.pci.function import Function
from tests.fuzz.local import LocalWorld
from tests.fuzz.world import DISKS
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import VirtioPci

DEVICE_STATUS = 20
COMMAND, BUS_MASTER = 4, 4


class Disk(RamDisk):
    """Counts how often its driver was gone."""

    abandoned = 0

    def abandon(self) -> None:
        self.abandoned += 1
        super().abandon()


@pytest.mark.parametrize(
    "late",
    [
        lambda vf: vf.detach(),
        lambda vf: vf.device_reset(),
        lambda vf: vf.bar_write(0, DEVICE_STATUS, b"\0"),
        lambda vf: vf.config_write(COMMAND, bytes([BUS_MASTER, 0])),
        lambda vf: vf.service(),
    ],
    ids=["detach", "vfio reset", "device reset", "bus master", "service"],
)
def test_late_client(late: Callable[[Function], None]) -> None:
    """The old VF's thread may be held up by its disk for longer than the server waits for it."""
    disks = {name: Disk(size) for name, size in DISKS.items()}
    world, memory = LocalWorld(backends=disks), GuestMemory()
    memory.add_region(1 << 20)
    pf, _ = world.connect("pf"), world.connect("vf1")
    memory.attach(pf)
    owner = OwnerDriver(VirtioPci(pf, memory))
    old = world.function("vf1")
    before = disks["vf1"].abandoned
    owner.disable_vfs()
    owner.enable_vfs(3)
    assert world.function("vf1") is not old
    gone = disks["vf1"].abandoned
    assert gone > before
    late(old)
    assert disks["vf1"].abandoned == gone
    assert old.config_read(COMMAND, 2) == b"\0\0"
