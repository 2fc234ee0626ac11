"""Every combination of the features that rings have, on request queues and on the admin queue."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.server_process import ServerProcess
from vfu_client.drivers.block import BlockDriver
from vfu_client.owner.admin import AdminQueue
from vfu_client.virtio.function import VirtioPci

INDIRECT, EVENT_IDX, VERSION_1 = 28, 29, 32
RING_PACKED, IN_ORDER, NOTIFICATION_DATA, NOTIF_CONFIG_DATA, RING_RESET = 34, 35, 38, 39, 40
ADMIN_VQ = 41

NAMES = {
    RING_PACKED: "packed",
    INDIRECT: "indirect",
    EVENT_IDX: "event",
    IN_ORDER: "order",
    NOTIFICATION_DATA: "data",
    NOTIF_CONFIG_DATA: "config",
    RING_RESET: "reset",
}
COMBINATIONS = [
    tuple(bit for bit, chosen in zip(NAMES, taken, strict=True) if chosen)
    for taken in itertools.product((False, True), repeat=len(NAMES))
]
EACH = pytest.mark.parametrize(
    "bits", COMBINATIONS, ids=lambda bits: "+".join(NAMES[bit] for bit in bits) or "plain"
)


@pytest.fixture(scope="module")
def connected(shared: ServerProcess) -> Iterator[dict[str, VirtioPci]]:
    """One connection to each function for all of them: every test begins with a reset."""
    with (
        VirtioPci.open(shared.socket("vf1"), timeout=10) as vf,
        VirtioPci.open(shared.socket("pf"), timeout=10) as pf,
    ):
        yield {"vf1": vf, "pf": pf}


def busy(disk: BlockDriver, depth: int) -> None:
    """Writes and reads, `depth` of them in flight, each with its own answer."""
    memory = disk.device.memory
    for turn in range(4):
        for kind in (1, 0):
            buffers = [memory.allocate(512) for _ in range(depth)]
            for sector, buffer in enumerate(buffers):
                buffer.view[:] = 16 * turn + sector if kind else 0xEE
                disk.submit(kind, sector, buffer, kick=sector in (0, depth - 1))
            while disk.in_flight:
                for request in disk.completions():
                    request.check()
            for sector, buffer in enumerate(buffers):
                assert (buffer.view == 16 * turn + sector).all()
                memory.free(buffer)
    assert disk.queues[0].device_used_idx == 8 * depth


@EACH
def test_requests(connected: dict[str, VirtioPci], bits: tuple[int, ...]) -> None:
    """More than a lap of the ring, at full depth; with RING_RESET again on a ring of another size."""
    device = connected["vf1"]
    packed, indirect = RING_PACKED in bits, INDIRECT in bits
    disk = BlockDriver(device, queue_size=7 if packed else 8, features=frozenset((VERSION_1, *bits)))
    assert device.features == sum(1 << bit for bit in (VERSION_1, *bits))
    device.common.write("queue_select", 0)
    assert device.common.read("queue_notif_config_data") == (0x100 if NOTIF_CONFIG_DATA in bits else 0)
    busy(disk, 7 if indirect else 2)
    if RING_RESET in bits:
        device.reset_queue(0)
        assert device.common.read("queue_notif_config_data") == (0x100 if NOTIF_CONFIG_DATA in bits else 0)
        disk.queues[0] = device.setup_queue(0, size=5 if packed else 4)
        busy(disk, 4 if indirect else 1)
    assert device.status == 15


@EACH
def test_admin_commands(connected: dict[str, VirtioPci], bits: tuple[int, ...]) -> None:
    """More commands than the ring has descriptors, one at a time and several at once."""
    device = connected["pf"]
    device.initialize(wanted=(VERSION_1, ADMIN_VQ, *bits), required=(VERSION_1, ADMIN_VQ))
    assert device.features == sum(1 << bit for bit in (VERSION_1, ADMIN_VQ, *bits))
    admin = AdminQueue(device, size=5 if RING_PACKED in bits else 4, timeout=10)
    device.driver_ok()
    rounds = 2 if RING_RESET in bits else 1
    for turn in range(rounds):
        if turn:
            device.reset_queue(admin.index)
            admin.queue = device.setup_queue(admin.index, size=4)
        for _ in range(4):
            assert {0, 1, 0x40} <= admin.list_query(1)
        commands = [admin.submit(0, group=1, result=16) for _ in range(2)]
        assert [reply.status for reply in admin.wait_all(commands)] == [0, 0]
        assert [reply.used_length for reply in (admin.execute(0, group=1, result=16),)] == [24]
    assert device.status == 15
