"""The ring path alone, without a guest: how many requests a VF takes in the time of one register read."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.measure import BenchError, Benchmark, Progress, Result, alternate
from bench.mmio import read_us
from bench.processes import scratch, server
from pymodel.spec import block
from vfu_client.drivers.block import NO_STATUS, BlockDriver
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.driver_queue import Segment

VF = 1
PAIRS = 15
DEPTH = 32
REQUESTS = 4000
SIZE = 4096
DISK_MIB = 16
MMIO_READS = 400

REQUESTS_PER_SECOND = Benchmark(
    "ring-requests",
    reference="one MMIO read after the other",
    unit="1/s",
    better="higher",
)


@dataclass(frozen=True)
class Ring:
    """The group of the ring benchmark."""

    benchmarks: Sequence[Benchmark] = (REQUESTS_PER_SECOND,)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Read a RAM disk with 32 requests in flight, kicked by posted writes."""
        with (
            scratch() as folder,
            server(folder / "ours", "--vfs", "1", "--disk", f"vf{VF}=ram:{DISK_MIB}M"),
            BlockDriver.open(folder / "ours" / f"vf{VF}.sock", posted_writes=True) as driver,
        ):
            rig = _Requests(driver)
            connection = driver.device.connection
            rig.per_second()
            read_us(connection, MMIO_READS)
            left, right = alternate(
                PAIRS,
                rig.per_second,
                lambda: 1e6 / read_us(connection, MMIO_READS),
                progress=progress,
                name=REQUESTS_PER_SECOND.name,
            )
        yield Result(REQUESTS_PER_SECOND, left, right)


class _Requests:
    """The requests in flight, made once: the driver only puts them on the ring again."""

    def __init__(self, driver: BlockDriver) -> None:
        self._queue = driver.queues[0]
        self._statuses: list[Buffer] = []
        self._idle: list[tuple[list[Segment], list[Segment]]] = []
        memory = driver.device.memory
        for number in range(DEPTH):
            head = memory.allocate(block.REQUEST.itemsize)
            head.view.view(block.REQUEST)[0] = (block.T_IN, 0, number * SIZE // block.SECTOR)
            data, status = memory.allocate(SIZE), memory.allocate(1)
            self._statuses.append(status)
            self._idle.append(([head.segment], [data.segment, status.segment]))

    def per_second(self) -> float:
        """Requests that completed, by the second."""
        queue = self._queue
        flying: dict[int, tuple[list[Segment], list[Segment]]] = {}
        for status in self._statuses:
            status.view[0] = NO_STATUS
        begun = time.perf_counter_ns()
        started = 0
        while started < REQUESTS or flying:
            while self._idle and started < REQUESTS:
                request = self._idle.pop()
                flying[queue.add(*request)] = request
                started += 1
            queue.kick()
            for completion in queue.wait(5.0):
                self._idle.append(flying.pop(completion.head))
        taken = time.perf_counter_ns() - begun
        if any(status.view[0] != block.S_OK for status in self._statuses):
            raise BenchError("a request failed")
        return REQUESTS / (taken / 1e9)
