"""What many wire tests do with a function: bring it up by hand, use it, break it, see that it lives."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.wire.running import until
from vfu_client.drivers.block import BlockDriver
from vfu_client.vfio.connection import Connection, VfioUserError
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.function import NegotiationError, VirtioPci
from vfu_client.virtio.split import SplitQueue

VERSION_1 = 32
INDIRECT_DESC = 28
EVENT_IDX = 29
RING_RESET = 40
NEEDS_RESET = 64

NEXT, WRITE, INDIRECT = 1, 2, 4


@dataclass
class Grip:
    """A block function in the hands of a test, whatever its rings are."""

    device: VirtioPci

    def header(self, kind: int = 0, sector: int = 0) -> Buffer:
        """A block request header in guest memory."""
        return self.bytes(struct.pack("<IIQ", kind, 0, sector))

    def bytes(self, data: bytes) -> Buffer:
        """A copy of `data` in guest memory."""
        buffer = self.device.memory.allocate(len(data))
        buffer.view[:] = list(data)
        return buffer

    def room(self, size: int) -> Buffer:
        """`size` bytes of 0xee in guest memory."""
        buffer = self.device.memory.allocate(size)
        buffer.view[:] = 0xEE
        return buffer

    def table(self, *entries: tuple[int, int, int, int]) -> Buffer:
        """An indirect table."""
        return self.bytes(b"".join(struct.pack("<QIHH", *entry) for entry in entries))

    def settle(self) -> None:
        """Let the server finish what it is about: it looks at its queues after 64 messages at the latest."""
        for _ in range(64):
            self.device.function.config_read(0, 2)

    def signals(self) -> list[int]:
        """How often each vector was signalled since the last look."""
        self.settle()
        assert self.device.msix is not None
        return [interrupt.drain() for interrupt in self.device.msix.interrupts]

    def wait_broken(self, timeout: float = 10) -> None:
        """Wait for the configuration interrupt of a device that needs a reset."""
        assert self.device.msix is not None
        self.device.msix.interrupts[0].wait(timeout)
        assert self.device.status & NEEDS_RESET
        assert self.device.isr_read() & 2


@dataclass
class Driven(Grip):
    """A function that was initialized with chosen features, with one split queue enabled."""

    queue: SplitQueue
    used: int = field(default=0)

    def descriptor(self, slot: int, address: int, length: int, flags: int = 0, following: int = 0) -> None:
        self.queue.desc[slot] = (address, length, flags, following)

    def offer(self, head: int = 0) -> None:
        """Make a chain that was written by hand available, and kick."""
        self.queue.publish(head)
        self.queue.kick(force=True)

    def request(self, *parts: tuple[Buffer, bool], head: int = 0) -> None:
        """Offer a chain of direct descriptors from slot `head` on: (buffer, device-writable)."""
        for number, (buffer, writable) in enumerate(parts):
            last = number == len(parts) - 1
            slot = head + number
            self.descriptor(
                slot,
                buffer.address,
                buffer.size,
                (WRITE if writable else 0) | (0 if last else NEXT),
                0 if last else slot + 1,
            )
        self.offer(head)

    def flush(self, head: int = 0) -> None:
        """Offer a request that writes one byte."""
        self.request((self.header(4), False), (self.room(1), True), head=head)

    def flushed(self) -> None:
        """Offer one and see it done by the used index; whatever it signals was signalled on return."""
        before = self.queue.device_used_idx
        self.flush()
        until(lambda: self.queue.device_used_idx != before, "the request is done")
        self.settle()

    def wait_used(self, timeout: float = 10) -> tuple[int, int]:
        """Wait for the next used element by its interrupt: (id, length)."""
        deadline = time.monotonic() + timeout
        assert self.queue.interrupt is not None
        while self.queue.device_used_idx == self.used:
            self.queue.interrupt.wait(deadline - time.monotonic())
        at = 4 + 8 * (self.used % self.queue.size)
        self.used = (self.used + 1) & 0xFFFF
        return struct.unpack("<II", self.queue.used_buffer.view[at : at + 8].tobytes())


@contextlib.contextmanager
def driven(
    path: Path,
    *,
    features: tuple[int, ...] = (VERSION_1, INDIRECT_DESC),
    size: int = 8,
    use_msix: bool = True,
    ok: bool = True,
) -> Iterator[Driven]:
    """A function with queue 0 enabled on vector 1, the configuration vector 0."""
    with VirtioPci.open(path, timeout=10) as device:
        yield bring_up(device, features=features, size=size, use_msix=use_msix, ok=ok)


def bring_up(
    device: VirtioPci,
    *,
    features: tuple[int, ...] = (VERSION_1, INDIRECT_DESC),
    size: int = 8,
    use_msix: bool = True,
    ok: bool = True,
) -> Driven:
    """From reset to DRIVER_OK with one queue."""
    device.initialize(wanted=features, use_msix=use_msix)
    assert device.features == sum(1 << bit for bit in features)
    queue = split_queue(device, 0, size=size)
    if ok:
        device.driver_ok()
    return Driven(device, queue)


def split_queue(
    device: VirtioPci, index: int, *, size: int | None = None, vector: int | None = None
) -> SplitQueue:
    """Set a split queue up, where RING_PACKED was not taken."""
    queue = device.setup_queue(index, size=size, vector=vector)
    assert isinstance(queue, SplitQueue)
    return queue


def served(path: Path) -> bool:
    """Whether a client can attach now."""
    try:
        with Connection(path, timeout=10) as connection:
            return connection.device_info().regions > 0
    except VfioUserError:
        return False


def works(path: Path, pattern: int = 0x5A) -> None:
    """Assert that a function can be attached and does reads and writes."""
    with BlockDriver.open(path, timeout=10) as disk:
        disk.write(3, bytes([pattern]) * 512)
        assert disk.read(3).tobytes() == bytes([pattern]) * 512


def serves(path: Path) -> None:
    """A VF that was just made, or is about to be: its socket may not listen yet, or be an earlier one's."""

    def tried() -> bool:
        try:
            works(path)
        except (VfioUserError, NegotiationError, OSError):  # a VF that was removed takes no writes
            return False
        return True

    until(tried, f"{path} serves")


class Neighbour:
    """Another function under a driver, that must go on whatever happens elsewhere."""

    def __init__(self, path: Path) -> None:
        self._disk = BlockDriver.open(path, timeout=10)
        self._turn = 0

    def answers(self, within: float = 1.0) -> None:
        """Assert that a write and a read succeed in time."""
        self._turn += 1
        data = bytes([self._turn & 0xFF]) * 512
        start = time.monotonic()
        self._disk.write(self._turn % 16, data)
        assert self._disk.read(self._turn % 16).tobytes() == data
        taken = time.monotonic() - start
        assert taken < within, f"the neighbour took {taken:.3f} s"

    def close(self) -> None:
        self._disk.close()
