"""The context of a VF whose rings are packed: read, refused, and taken over by another server's VF."""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.server_process import ServerProcess
from tests.wire.arrival import arrive
from tests.wire.draft_rig import context, field, parse, patched, value
from vfu_client.drivers.block import FEATURES, BlockDriver
from vfu_client.owner.admin import AdminError
from vfu_client.owner.context import decode
from vfu_client.owner.context_parts import as_reset
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import GuestMemory
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci
from vfu_client.virtio.packed import PackedQueue

INDIRECT, EVENT_IDX, RING_PACKED, IN_ORDER, NOTIFICATION_DATA, NOTIF_CONFIG_DATA = 28, 29, 34, 35, 38, 39
DRIVER_FEATURES, VQ_CFG, SPLIT_STATE, PACKED_STATE = 0x11, 0x14, 0x15, 0x16
ACTIVE, STOP, FREEZE = 0, 1, 2
SIZE = 7


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ServerProcess, ServerProcess]]:
    """Two servers with one VF each."""
    options = ("--vfs", "1", "--disk", "ram:64k")
    with ServerProcess(*options) as here, ServerProcess(*options) as there:
        yield here, there


@contextlib.contextmanager
def owned(server: ServerProcess) -> Iterator[OwnerDriver]:
    with OwnerDriver.open(server.socket("pf"), timeout=10) as owner:
        try:
            yield owner
        finally:
            owner.context_discard(1)
            owner.mode_set(1, ACTIVE)


def read(owner: OwnerDriver) -> bytes:
    """The whole context."""
    owner.context_discard(1)
    return b"".join(piece.tobytes() for piece in owner.context_read(1))


@pytest.mark.parametrize("wrap", [1, 0], ids=["first-lap", "second-lap"])
@pytest.mark.parametrize(
    "without",
    [
        (),
        (IN_ORDER,),
        (INDIRECT,),
        (EVENT_IDX,),
        (NOTIFICATION_DATA,),
        (NOTIF_CONFIG_DATA,),
        (IN_ORDER, INDIRECT),
    ],
    ids=lambda bits: "-".join(["all", *map(str, bits)]),
)
def test_a_packed_ring_moves(
    servers: tuple[ServerProcess, ServerProcess], without: tuple[int, ...], wrap: int
) -> None:
    """There and back, with requests that wait in the ring each time; every answer is right."""
    features = (KNOWN_FEATURES | FEATURES) - set(without)
    memory = GuestMemory()
    memory.add_region(1 << 20)
    step = 3 if INDIRECT in without else 1
    with contextlib.ExitStack() as stack:
        owners = [stack.enter_context(owned(server)) for server in servers]
        driver = stack.enter_context(
            BlockDriver.open(
                servers[0].socket("vf1"), memory=memory, queue_size=SIZE, features=features, timeout=10
            )
        )
        queue = driver.queues[0]
        assert isinstance(queue, PackedQueue)
        for sector in range(3 if wrap else 3 + SIZE // step):
            driver.write(sector % 8, bytes([sector]) * 512)
        for turn, (source, target) in enumerate([(0, 1), (1, 0), (0, 1)]):
            content = driver.read(turn).tobytes()
            owners[source].mode_set(1, STOP)
            waiting = [driver.submit(0, turn, memory.allocate(512)) for _ in range(2 if step == 3 else 4)]
            owners[source].mode_set(1, FREEZE)
            stream = read(owners[source])
            position = struct.unpack("<4H", value(stream, PACKED_STATE))
            assert position == (0, queue.next_used, queue.next_used, 0)
            assert SPLIT_STATE not in dict(parse(stream))
            arrived = stack.enter_context(
                VirtioPci.open(servers[target].socket("vf1"), memory=memory, timeout=10)
            )
            owners[target].mode_set(1, FREEZE)
            owners[target].context_write(1, stream)
            assert read(owners[target]) == stream
            left = driver.device
            arrive(driver, arrived, driver.queues)
            owners[target].mode_set(1, ACTIVE)
            for request in waiting:
                driver.finish(request)
                assert request.data is not None
                assert request.data.view.tobytes() == content
            driver.write(7, bytes([turn]) * 512)
            assert driver.read(7).tobytes() == bytes([turn]) * 512
            left.connection.close()
            owners[source].mode_set(1, ACTIVE)
        stack.enter_context(contextlib.closing(driver.device))


@pytest.mark.parametrize("interrupt", [0, 1])
def test_an_owed_interrupt_moves(servers: tuple[ServerProcess, ServerProcess], interrupt: int) -> None:
    """Flag bit 0 of the position's field: the driver is told when the VF is active."""
    with owned(servers[0]) as owner, BlockDriver.open(servers[0].socket("vf1"), timeout=10) as driver:
        driver.read(0)
        assert driver.device.msix is not None
        owner.mode_set(1, FREEZE)
        stream = patched(read(owner), PACKED_STATE, 6, bytes([interrupt, 0]))
        owner.context_write(1, stream)
        driver.device.msix.interrupts[1].drain()
        owner.mode_set(1, ACTIVE)
        if interrupt:
            assert driver.device.msix.interrupts[1].wait(10) == 1
        else:
            with pytest.raises(TimeoutError):
                driver.device.msix.interrupts[1].wait(0.05)
        assert driver.read(0).size == 512


BAD: dict[str, tuple[int, int, bytes]] = {
    "offset past the ring": (PACKED_STATE, 2, struct.pack("<H", 0x8000 | SIZE)),
    "used offset past the ring": (PACKED_STATE, 4, struct.pack("<H", SIZE)),
    "largest": (PACKED_STATE, 2, b"\xff\xff\xff\xff"),
    "used ahead": (PACKED_STATE, 2, struct.pack("<HH", 0x8000, 0x8001)),
    "more than a lap outstanding": (PACKED_STATE, 2, struct.pack("<HH", 0x0003, 0x8002)),
    "reserved flag": (PACKED_STATE, 6, b"\2\0"),
    "no such queue": (PACKED_STATE, 0, b"\1\0"),
    "size 0": (VQ_CFG, 2, b"\0\0"),
    "larger than there is": (VQ_CFG, 2, b"\1\1"),
    "event structure not aligned": (VQ_CFG, 24, b"\2"),
    "ring not aligned": (VQ_CFG, 16, b"\x08"),
    "another notification data": (VQ_CFG, 10, b"\0\2"),
    "no notification data": (VQ_CFG, 10, b"\0\0"),
    "features of a split ring": (DRIVER_FEATURES, 4, b"\x09\0\0\0"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(servers: tuple[ServerProcess, ServerProcess], case: str) -> None:
    """Nothing has changed afterwards, and the queue goes on."""
    kind, at, data = BAD[case]
    with (
        owned(servers[0]) as owner,
        BlockDriver.open(servers[0].socket("vf1"), queue_size=SIZE, timeout=10) as driver,
    ):
        driver.write(0, bytes(512))
        owner.mode_set(1, FREEZE)
        before = read(owner)
        with pytest.raises(AdminError, match="INVALID_FIELD"):
            owner.context_write(1, patched(before, kind, at, data))
        assert read(owner) == before
        owner.context_write(1, before)
        owner.mode_set(1, ACTIVE)
        assert not driver.read(0).any()


@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_the_other_format_s_position_is_refused(
    servers: tuple[ServerProcess, ServerProcess], *, packed: bool
) -> None:
    """A split ring's position for a driver with packed rings, and the other way round."""
    features = (KNOWN_FEATURES | FEATURES) - (set() if packed else {RING_PACKED})
    own, other = (PACKED_STATE, SPLIT_STATE) if packed else (SPLIT_STATE, PACKED_STATE)
    with (
        owned(servers[0]) as owner,
        BlockDriver.open(servers[0].socket("vf1"), features=features, timeout=10) as driver,
    ):
        driver.read(0)
        owner.mode_set(1, FREEZE)
        before = read(owner)
        assert {kind for kind, _ in parse(before)} & {own, other} == {own}
        with pytest.raises(AdminError, match="INVALID_FIELD"):
            owner.context_write(1, context(field(other, struct.pack("<4H", 0, 0x8000, 0x8000, 0))))
        assert read(owner) == before


def test_the_state_after_a_reset_can_be_made_of_it(servers: tuple[ServerProcess, ServerProcess]) -> None:
    """As a move does with the VF that it left: no queue, no features, whatever the size of the ring was."""
    with (
        owned(servers[0]) as owner,
        BlockDriver.open(servers[0].socket("vf1"), queue_size=SIZE, timeout=10) as driver,
    ):
        driver.read(0)
        owner.mode_set(1, FREEZE)
        owner.context_write(1, as_reset(decode(read(owner))))
        after = read(owner)
        assert not any(value(after, DRIVER_FEATURES))
        assert PACKED_STATE not in dict(parse(after))
        owner.context_write(1, after)
        owner.mode_set(1, ACTIVE)
        assert driver.device.status == 0
        again = BlockDriver(driver.device)
        assert again.read(0).size == 512


def test_both_are_listed(servers: tuple[ServerProcess, ServerProcess]) -> None:
    with owned(servers[0]) as owner:
        found = {int(row["type"]): int(row["length"]) for row in owner.fields(1)}
        assert (found[SPLIT_STATE], found[PACKED_STATE]) == (8, 8)


def test_without_packed_rings(serve: Callable[..., ServerProcess]) -> None:
    """A server that does not offer a feature refuses the context of a driver that took it."""
    here, there = serve("--vfs", "1"), serve("--vfs", "1", "--without", "packed")
    with owned(here) as source, owned(there) as target, BlockDriver.open(here.socket("vf1")) as driver:
        driver.read(0)
        source.mode_set(1, FREEZE)
        target.mode_set(1, FREEZE)
        stream = build_common(read(source))
        with pytest.raises(AdminError, match="INVALID_FIELD"):
            target.context_write(1, stream)
        source.context_write(1, stream)


def build_common(stream: bytes) -> bytes:
    """The context without the disk."""
    return context(*(field(kind, content) for kind, content in parse(stream) if 1 < kind < 0x100))
