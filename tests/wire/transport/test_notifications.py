"""The four forms of a driver notification: each is understood where it was negotiated, and nothing else.

virtio 1.4, "Available Buffer Notifications".
"""

from __future__ import annotations

import pytest

from tests.server_process import ServerProcess
from vfu_client.drivers.block import BlockDriver
from vfu_client.virtio.function import VirtioPci

VERSION_1, RING_PACKED, NOTIFICATION_DATA, NOTIF_CONFIG_DATA = 32, 34, 38, 39
NOTIFY = 0x3000

FORMATS = pytest.mark.parametrize("packed", [(), (RING_PACKED,)], ids=["split", "packed"])


def quiet(device: VirtioPci) -> None:
    """Let the server finish what it is about: it looks at its queues after 64 messages at the latest."""
    for _ in range(64):
        device.function.config_read(0, 2)


@FORMATS
@pytest.mark.parametrize(
    ("bits", "size", "right", "wrong"),
    [
        ((), 2, 1, (0, 2, 0x101, 0xFFFF)),
        ((NOTIF_CONFIG_DATA,), 2, 0x101, (1, 0x100, 0x102, 0)),
        ((NOTIFICATION_DATA,), 4, 0x0001_0001, (0x0001_0000, 0x0001_0101, 0x0001_0002)),
        ((NOTIFICATION_DATA, NOTIF_CONFIG_DATA), 4, 0x0001_0101, (0x0001_0001, 0x0001_0100, 0x101_0000)),
    ],
    ids=["index", "config", "index+data", "config+data"],
)
def test_forms(
    shared: ServerProcess,
    packed: tuple[int, ...],
    bits: tuple[int, ...],
    size: int,
    right: int,
    wrong: tuple[int],
) -> None:
    """At the address of queue 1: what names another queue does nothing, the right name is a notification."""
    features = frozenset((VERSION_1, *packed, *bits))
    with BlockDriver.open(shared.socket("vf1"), queues=2, features=features, timeout=10) as disk:
        device = disk.device
        quiet(device)
        request = disk.submit(0, 0, device.memory.allocate(512), queue=1, kick=False)
        for value in wrong:
            device.function.bar_write(0, NOTIFY + 4, size, value)
        device.function.bar_write(0, NOTIFY, size, right)
        device.function.bar_write(0, NOTIFY + 4, 1, right & 0xFF)
        device.function.bar_write(0, NOTIFY + 6, 2, right & 0xFFFF)
        quiet(device)
        assert disk.queues[1].device_used_idx == 0
        device.function.bar_write(0, NOTIFY + 4, size, right)
        disk.finish(request)
        assert disk.queues[1].device_used_idx == 1
        assert device.status == 15


@FORMATS
@pytest.mark.parametrize("position", [0, 1, 0x7FFF, 0x8000, 0xFFFF])
def test_positions_are_not_relied_upon(shared: ServerProcess, packed: tuple[int, ...], position: int) -> None:
    """Whatever the upper half of a notification says, what is in the ring counts."""
    features = frozenset((VERSION_1, NOTIFICATION_DATA, *packed))
    with BlockDriver.open(shared.socket("vf1"), features=features, timeout=10) as disk:
        for _ in range(3):
            request = disk.submit(0, 0, disk.device.memory.allocate(512), kick=False)
            disk.device.notify(0, position)
            disk.finish(request)
        assert disk.device.status == 15


@pytest.mark.parametrize("name", ["pf", "vf1"])
def test_the_structure_has_room_for_four_bytes(shared: ServerProcess, name: str) -> None:
    """The multiplier is a power of 2 and a multiple of 4, and the last queue's address is within."""
    with VirtioPci.open(shared.socket(name), timeout=10) as device:
        notify = device.structures[2]
        assert device.notify_multiplier == 4
        assert notify.offset % 4 == 0
        last = 2 if name == "pf" else 1
        device.common.write("queue_select", last)
        assert device.common.read("queue_notify_off") * 4 + 4 <= notify.length


def test_a_queue_has_its_data_only_if_negotiated(shared: ServerProcess) -> None:
    with VirtioPci.open(shared.socket("vf1"), timeout=10) as device:
        for bits, expected in (
            ((VERSION_1,), [0, 0, 0]),
            ((VERSION_1, NOTIF_CONFIG_DATA), [0x100, 0x101, 0]),
        ):
            device.initialize(wanted=bits)
            found = []
            for index in range(3):
                device.common.write("queue_select", index)
                found.append(device.common.read("queue_notif_config_data"))
            assert found == expected


def test_the_log_tells_once_of_wrong_names(shared: ServerProcess) -> None:
    mark = shared.mark()
    with BlockDriver.open(shared.socket("vf1"), timeout=10) as disk:
        for _ in range(3):
            disk.device.function.bar_write(0, NOTIFY, 4, 7)
        quiet(disk.device)
        lines = [line for line in shared.log[mark:].splitlines() if "notified with" in line]
        assert len(lines) == 1
        assert "vf1: queue 0 is notified with 0x00000007, not with 0x0100" in lines[0]
