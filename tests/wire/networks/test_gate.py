"""Whoever closes the gate does so in the middle of traffic: no frame reaches the driver after that."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Self

import pytest

from tests.wire.draft_rig import ACTIVE, FREEZE, STOP
from tests.wire.networks.pair_port import EMPTY, PairPort, served
from tests.wire.running import until
from vfu_client.drivers.net import NetDriver
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.function import KNOWN_FEATURES
from vfu_client.virtio.split import SplitQueue
from vfu_server.datapath import COMPILED

ROUNDS = 6
SIZE = 2048
MASTER = 0x4
RING_PACKED = 34
# Buffers of each ring, which has 256 entries.
FLOOD = 64
FRAME = b"\x02\0\0\0\0\1" + b"\x02\0\0\0\0\x09" + b"\x88\xb5" + bytes(1000)


class Traffic:
    """Frames come in all the time, the driver sends all the time, and all that came in makes room at once."""

    def __init__(self, driver: NetDriver, port: PairPort) -> None:
        self.driver = driver
        self.port = port
        self.lock = threading.Lock()
        self.buffers: list[Buffer] = []
        self.queues: list[SplitQueue] = []
        for index, queue in enumerate((driver.receivers[0], driver.transmitters[0])):
            assert isinstance(queue, SplitQueue)
            self.queues.append(queue)
            heads = [self._buffer(queue, sends=bool(index)) for _ in range(FLOOD)]
            for slot in range(queue.size):
                queue.avail[2 + slot] = heads[slot % FLOOD]
        self._enough = threading.Event()
        self._threads = [threading.Thread(target=work) for work in (self._notify, self._feed, self._read)]

    def _buffer(self, queue: SplitQueue, *, sends: bool) -> int:
        buffer = self.driver.device.memory.allocate(SIZE)
        buffer.view[:] = 0
        if sends:
            data = EMPTY + FRAME
            buffer.view[: len(data)] = list(data)
        else:
            self.buffers.append(buffer)
        # Into the table only: what is in the available ring is this class's matter.
        before = queue._avail_idx
        segments = [(buffer.address, len(EMPTY + FRAME) if sends else SIZE)]
        number = queue.add(segments) if sends else queue.add((), segments)
        queue._avail_idx = before
        return number

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        for queue in self.queues:
            until(lambda queue=queue: queue.device_used_idx > 2 * FLOOD, "traffic")  # type: ignore[misc]
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        for thread in self._threads:
            thread.join()

    def _notify(self) -> None:
        while not self._enough.is_set():
            for number, queue in enumerate(self.queues):
                # Never more than what is used and the size: that would break the queue.
                queue.avail[1] = (queue.device_used_idx + FLOOD) & 0xFFFF
                with self.lock, contextlib.suppress(OSError):
                    self.driver.device.notify(number)

    def _feed(self) -> None:
        while not self._enough.is_set():
            self.port.try_send(EMPTY + FRAME)

    def _read(self) -> None:
        while not self._enough.is_set():
            self.port.drain()

    def poison(self) -> None:
        """What a late frame would fill, and what a late one that was sent would write."""
        for buffer in self.buffers:
            buffer.view[:] = 0xEE
        for queue in self.queues:
            queue.used_buffer.view[:] = 0xEE

    def untouched(self) -> bool:
        """Whether nothing was written since `poison`."""
        written = (*self.buffers, *(queue.used_buffer for queue in self.queues))
        return all((buffer.view == 0xEE).all() for buffer in written)


def of_device(close: Callable[[NetDriver], None]) -> Callable[[OwnerDriver, Traffic], None]:
    """Something done to the VF itself, whose connection the traffic uses too."""

    def closer(_: OwnerDriver, traffic: Traffic) -> None:
        with traffic.lock:
            close(traffic.driver)
            # Writes are posted; a read has an answer after all that was written before.
            traffic.driver.device.function.config_read(0, 4)

    return closer


def unmap(driver: NetDriver) -> None:
    (region,) = driver.device.memory.regions
    driver.device.connection.dma_unmap(region.address, region.size)


def reset_queues(driver: NetDriver) -> None:
    for index in range(2):
        driver.device.common.write("queue_select", index)
        driver.device.common.write("queue_reset", 1)


CLOSERS: dict[str, Callable[[OwnerDriver, Traffic], None]] = {
    "stop": lambda owner, _: owner.mode_set(1, STOP),
    "freeze": lambda owner, _: owner.mode_set(1, FREEZE),
    "device-reset": of_device(lambda driver: driver.device.common.write("device_status", 0)),
    "client-reset": of_device(lambda driver: driver.device.connection.device_reset()),
    "flr": of_device(lambda driver: driver.device.function.flr()),
    "bus-master": of_device(lambda driver: driver.device.function.clear_command(MASTER)),
    "queue-reset": of_device(reset_queues),
    "unmap": of_device(unmap),
}


@pytest.fixture(scope="module")
def rig() -> Iterator[tuple[OwnerDriver, Callable[[], NetDriver], PairPort]]:
    with served(offloads=0) as (path, port), OwnerDriver.open(path / "pf.sock", timeout=20) as owner:

        def drive() -> NetDriver:
            rings = KNOWN_FEATURES - {RING_PACKED}
            return NetDriver.open(path / "vf1.sock", posted_writes=True, ring_features=rings, fill=False)

        yield owner, drive, port


@pytest.mark.spec("DEV-13", "DEV-14", "DEV-22")
@pytest.mark.skipif(not COMPILED, reason="without compiled modules there is one way for all traffic")
@pytest.mark.parametrize("closer", CLOSERS.values(), ids=CLOSERS)
def test_nothing_is_touched_after_it(
    rig: tuple[OwnerDriver, Callable[[], NetDriver], PairPort],
    closer: Callable[[OwnerDriver, Traffic], None],
) -> None:
    owner, drive, port = rig
    for _ in range(ROUNDS):
        with drive() as driver:
            with Traffic(driver, port) as traffic:
                closer(owner, traffic)
                traffic.poison()
                # Each of these comes after kicks that were sent before.
                for _ in range(10):
                    with traffic.lock:
                        driver.device.function.config_read(0, 4)
            assert traffic.untouched()
        owner.mode_set(1, ACTIVE)
