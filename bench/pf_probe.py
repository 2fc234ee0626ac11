"""Linux's probe of the PF, admin queue and all, against that of QEMU's virtio-blk-pci in the same guest."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from bench import probe
from bench.measure import Benchmark, Progress, Result

PROBE = Benchmark(
    "pf-probe",
    reference="Linux's probe of QEMU's virtio-blk-pci in the same guest",
    unit="ms",
    better="lower",
)
EXTRA_GOAL_S = 0.2
"""How much longer the PF's probe may take."""


@dataclass(frozen=True)
class Probe:
    """The group of probe times."""

    benchmarks: Sequence[Benchmark] = (PROBE,)

    def run(self, names: Sequence[str], progress: Progress) -> Iterator[Result]:
        """Probe both by turns; the difference in seconds goes with the ratio."""
        progress.step(PROBE.name, "booting the guest and probing by turns")
        times = probe.measure()
        differences = [ours - theirs for ours, theirs in zip(times.ours, times.reference, strict=True)]
        extra = {
            "extra_s": round(statistics.median(differences) / 1e3, 5),
            "extra_goal_s": EXTRA_GOAL_S,
        }
        yield Result(PROBE, times.ours, times.reference, extra)
