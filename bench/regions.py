"""Regions of guest memory: what many of them cost, against the same with ten."""

from __future__ import annotations

import contextlib
import os
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.measure import Benchmark, Progress, Result, take_turns
from bench.processes import scratch
from vfu_client.vfio.connection import Connection
from vfu_server.vfio._vfu import Context

ROUNDS = 15
CHANGES = 300
LOOK_UPS, BATCH = 20_000, 100
PAGE = 4096
FEW, SOME, MANY = 10, 1_000, 50_000

MAP, UNMAP, LOOK_UP = (
    Benchmark(name, reference=f"the same with {FEW} regions", unit=unit, better="lower")
    for name, unit in (("dma-map", "us"), ("dma-unmap", "us"), ("dma-look-up", "ns"))
)


@dataclass(frozen=True)
class Regions:
    """The group of region benchmarks."""

    benchmarks: Sequence[Benchmark] = (MAP, UNMAP, LOOK_UP)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Three functions with regions of one page each, as a guest's IOMMU makes them, of one file."""
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch())
            rigs = [
                stack.enter_context(_Function(folder / f"{count}.sock", count)) for count in (MANY, SOME, FEW)
            ]
            for benchmark, sides in (
                (MAP, [rig.map_us for rig in rigs]),
                (UNMAP, [rig.unmap_us for rig in rigs]),
                (LOOK_UP, [rig.look_up_ns for rig in rigs]),
            ):
                if benchmark.name in names:
                    yield _result(benchmark, sides, progress)


def _result(benchmark: Benchmark, sides: Sequence[Callable[[], float]], progress: Progress) -> Result:
    many, some, few = take_turns(ROUNDS, sides, progress=progress, name=benchmark.name)
    middle = statistics.median(some)
    return Result(
        benchmark,
        many,
        few,
        extra={"regions": MANY, f"ours_{SOME}": round(middle, 4)},
        notes=[f"{benchmark.name} with {SOME} regions: {middle:.2f} {benchmark.unit}"],
    )


class _Function:
    """A function in this process, for its look-ups, and a client of it. Also what the extension calls."""

    def __init__(self, path: Path, count: int) -> None:
        self._source = random.Random(count)
        self._pages = list(range(count))
        self._source.shuffle(self._pages)
        self._context = Context(str(path), self, bars={0: PAGE}, msix_vectors=1, intx=False, log_level=3)
        self._work: Callable[[], object] | None = None
        self._done = threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve)
        self._path = path

    def __enter__(self) -> Self:
        self._thread.start()
        self._file = os.memfd_create("guest")
        os.ftruncate(self._file, len(self._pages) * PAGE)
        self._connection = Connection(self._path)
        for page in self._pages:
            self._map(page)
        return self

    def __exit__(self, *_: object) -> None:
        self._connection.close()
        os.close(self._file)
        self._stopping = True
        self._context.hang_up()
        self._thread.join()
        self._context.close()

    def map_us(self) -> float:
        """The median of maps of a region that was unmapped just before, in microseconds."""
        return statistics.median(self._changes(self._unmap, self._map)[1])

    def unmap_us(self) -> float:
        """The median of unmaps, in microseconds."""
        return statistics.median(self._changes(self._unmap, self._map)[0])

    def look_up_ns(self) -> float:
        """One look-up of a page at random, with the view that it gives, in nanoseconds: a median."""
        batches = [
            [2 * page * PAGE for page in self._source.choices(self._pages, k=BATCH)]
            for _ in range(LOOK_UPS // BATCH)
        ]
        taken: list[float] = []

        def look_up() -> None:
            view = self._context.memory.view
            for addresses in batches:
                begun = time.perf_counter_ns()
                for address in addresses:
                    view(address, 512, write=False)
                taken.append((time.perf_counter_ns() - begun) / BATCH)

        self._done.clear()
        self._work = look_up
        self._context.wake()
        self._done.wait()
        return statistics.median(taken)

    def _changes(self, *changes: Callable[[int], None]) -> list[list[float]]:
        """How long each of the changes took in turn, on pages at random, in microseconds."""
        taken: list[list[float]] = [[] for _ in changes]
        for page in self._source.choices(self._pages, k=CHANGES):
            for change, times in zip(changes, taken, strict=True):
                begun = time.perf_counter_ns()
                change(page)
                times.append((time.perf_counter_ns() - begun) / 1000)
        return taken

    def _map(self, page: int) -> None:
        # A page of nothing is between two regions.
        self._connection.dma_map(self._file, page * PAGE, 2 * page * PAGE, PAGE)

    def _unmap(self, page: int) -> None:
        self._connection.dma_unmap(2 * page * PAGE, PAGE)

    def _serve(self) -> None:
        while not self._stopping:
            with contextlib.suppress(ConnectionError):
                if self._context.attached:
                    self._context.run(None)
                else:
                    self._context.attach(None)
            if self._work is not None:
                work, self._work = self._work, None
                work()
                self._done.set()

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        return bytes(length)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        pass

    def reset(self) -> None:
        pass

    def mapping_changed(self, address: int, length: int, there: bool, writable: bool) -> None:
        pass

    def log(self, level: int, text: str) -> None:
        pass
