"""Whoever closes the gate does so in the middle of traffic: from the answer on the VF touches no memory.

A driver that does nothing but kick keeps the server in the part of its data path that runs without the
interpreter.
"""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

import pytest

from tests.server_process import ServerProcess
from tests.wire.draft_rig import ACTIVE, FREEZE, STOP, T_IN, T_OUT, Rig
from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.split import SplitQueue

ROUNDS = 8
WRITTEN = b"\xaa"
MEMORY = 8 << 20
MASTER = 0x4


@dataclass(frozen=True)
class Kind:
    """Requests of a flood: so many of so many bytes. Each takes three of the ring's 256 descriptors."""

    type: int
    size: int = 4096
    count: int = 64


READ, WRITE = Kind(T_IN), Kind(T_OUT)
# In parts, where they go to a file.
LONG_WRITE = Kind(T_OUT, 600 << 10, 8)


class Flood:
    """A thread that has a ring full at all times, and kicks."""

    def __init__(self, rig: Rig, kind: Kind) -> None:
        assert isinstance(rig.queue, SplitQueue)
        self.rig = rig
        self.queue = rig.queue
        self.count = kind.count
        self.lock = threading.Lock()
        self.buffers: list[Buffer] = []
        self.heads = [self._request(kind, 8 * (number % 4)) for number in range(self.count)]
        for slot in range(self.queue.size):
            self.queue.avail[2 + slot] = self.heads[slot % self.count]
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._main)

    def _request(self, kind: Kind, sector: int) -> int:
        head = self.rig.placed(struct.pack("<IIQ", kind.type, 0, sector))
        data = self.rig.placed(WRITTEN * kind.size)
        status = self.rig.poisoned(1)
        self.buffers += [data, status]
        parts = ([head.segment], [data.segment, status.segment])
        if kind.type == T_OUT:
            parts = ([head.segment, data.segment], [status.segment])
        # Into the table only: what is in the available ring is this class's matter.
        before = self.queue._avail_idx
        number = self.queue.add(*parts)
        self.queue._avail_idx = before
        return number

    def __enter__(self) -> Self:
        # Only what nobody waits for is served without the interpreter.
        self.rig.device.connection.posted_writes = True
        self._thread.start()
        mark = self.queue.device_used_idx
        until(lambda: (self.queue.device_used_idx - mark) & 0xFFFF > 2 * self.count, "traffic")
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        self.rig.device.connection.posted_writes = False

    def _main(self) -> None:
        while not self._enough.is_set():
            # Never more than what is used and the size: that would break the queue.
            self.queue.avail[1] = (self.queue.device_used_idx + self.count) & 0xFFFF
            with self.lock, contextlib.suppress(OSError):
                self.rig.device.notify(0)

    def poison(self) -> None:
        """What a late read fills, a late write takes, and any late request writes to."""
        for buffer in self.buffers:
            buffer.view[:] = 0xEE
        self.queue.used_buffer.view[:] = 0xEE

    def untouched(self) -> bool:
        """Whether nothing was written since `poison`."""
        return all((buffer.view == 0xEE).all() for buffer in (*self.buffers, self.queue.used_buffer))


def of_device(close: Callable[[Rig], None]) -> Callable[[Rig, Flood], None]:
    """Something done to the VF itself, whose connection the flood uses too."""

    def closer(rig: Rig, flood: Flood) -> None:
        with flood.lock:
            close(rig)
            # Writes are posted; a read has an answer after all that was written before.
            rig.device.function.config_read(0, 4)

    return closer


def reset_queue(rig: Rig) -> None:
    rig.device.common.write("queue_select", 0)
    rig.device.common.write("queue_reset", 1)


def unmap(rig: Rig) -> None:
    (region,) = rig._memory.regions
    rig.device.connection.dma_unmap(region.address, region.size)


CLOSERS: dict[str, Callable[[Rig, Flood], None]] = {
    "stop": lambda rig, _: rig.go(STOP),
    "freeze": lambda rig, _: rig.go(FREEZE),
    "device-reset": of_device(lambda rig: rig.device.common.write("device_status", 0)),
    "client-reset": of_device(lambda rig: rig.device.connection.device_reset()),
    "flr": of_device(lambda rig: rig.device.function.flr()),
    "bus-master": of_device(lambda rig: rig.device.function.clear_command(MASTER)),
    "queue-reset": of_device(reset_queue),
    "unmap": of_device(unmap),
}


@pytest.mark.spec("DEV-13", "DEV-14", "DEV-22")
@pytest.mark.parametrize("kind", [READ, WRITE, LONG_WRITE], ids=["read", "write", "long-write"])
@pytest.mark.parametrize("closer", CLOSERS.values(), ids=CLOSERS)
def test_nothing_is_touched_after_it(
    on_either_disk: ServerProcess, closer: Callable[[Rig, Flood], None], kind: Kind
) -> None:
    for _ in range(ROUNDS):
        with Rig(on_either_disk, memory=MEMORY) as rig:
            with Flood(rig, kind) as flood:
                closer(rig, flood)
                flood.poison()
                # Each of these comes after kicks that were sent before.
                for _ in range(10):
                    with flood.lock:
                        rig.device.function.config_read(0, 4)
            assert flood.untouched()
        # A reset was first, so that what is on the disk was there before it, or is of a late write.
        with BlockDriver.open(on_either_disk.socket("vf1")) as disk:
            assert not (disk.read(0, 2048) == 0xEE).any()


@pytest.mark.spec("DEV-14")
def test_what_was_answered_is_complete(on_either_disk: ServerProcess) -> None:
    """Stop in the middle of traffic, again and again: each request has one used element, and goes on after
    it.
    """
    with Rig(on_either_disk) as rig, Flood(rig, READ) as flood:
        for _ in range(50):
            rig.go(STOP)
            used = flood.queue.device_used_idx
            assert rig.mode == STOP
            assert flood.queue.device_used_idx == used
            rig.go(ACTIVE)
            until(lambda mark=used: flood.queue.device_used_idx != mark, "traffic goes on")  # type: ignore[misc]
        flood._enough.set()
        flood._thread.join()
        until(lambda: flood.queue.device_used_idx == int(flood.queue.avail[1]), "all requests")
