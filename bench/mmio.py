"""One register read, from the client's call to its answer, against a C server with the same library."""

from __future__ import annotations

import contextlib
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench.measure import Benchmark, Progress, Result, alternate
from bench.processes import on_processor, sample, scratch, server
from vfu_client.vfio import protocol
from vfu_client.vfio.connection import Connection

PAIRS = 41
READS = 400
WARM_UP = 500
REGISTER = 0
"""device_feature_select of the common configuration; a word of memory in the C sample."""

READ = Benchmark(
    "mmio-read",
    reference="a C server of the same libvfio-user that answers from memory, with the same client",
    unit="us",
    better="lower",
)


@dataclass(frozen=True)
class Mmio:
    """The group of register benchmarks."""

    benchmarks: Sequence[Benchmark] = (READ,)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Measure a server of one VF and the C sample through the same client code."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch())
            with on_processor(1):
                stack.enter_context(server(folder / "ours", "--vfs", "1"))
                stack.enter_context(sample(folder / "sample.sock"))
            stack.enter_context(on_processor(0))
            ours = stack.enter_context(Connection(folder / "ours" / "vf1.sock"))
            theirs = stack.enter_context(Connection(folder / "sample.sock"))
            for connection in (ours, theirs):
                read_us(connection, WARM_UP)
            left, right = alternate(
                PAIRS,
                lambda: read_us(ours, READS),
                lambda: read_us(theirs, READS),
                progress=progress,
                name=READ.name,
            )
        yield Result(READ, left, right)


def read_us(connection: Connection, reads: int) -> float:
    """The median of many reads of four bytes, in microseconds."""
    taken = []
    for _ in range(reads):
        begun = time.perf_counter_ns()
        connection.region_read(protocol.REGION_BAR0, REGISTER, 4)
        taken.append(time.perf_counter_ns() - begun)
    return statistics.median(taken) / 1e3
