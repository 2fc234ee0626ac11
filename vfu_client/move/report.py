"""What a move of a guest did, step by step, and how it failed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

STEPS = {
    "check": "look whether the move can be made; nothing is touched",
    "prepare": "freeze the VFs at the destination, write a first state, record what the VFs write",
    "copy-ram": "copy the guest's memory while it runs, until QEMU stops the guest",
    "stop-vfs": "the VFs finish what they began, and stop",
    "read-pci": "read BARs, command registers and MSI-X tables",
    "mark-pages": "have QEMU send again what the VFs wrote since the copy began",
    "move-contexts": "freeze the VFs, read their contexts or parts, write them at the destination",
    "finish-ram": "copy the rest of the memory, the CPUs and QEMU's own devices",
    "write-pci": "write BARs, command registers and MSI-X tables at the destination",
    "activate": "the VFs run at the destination",
    "continue": "the guest runs at the destination",
    "release": "give the VFs at the source back, as after a reset",
}
"""The steps, in order. read-pci runs beside stop-vfs, move-contexts beside mark-pages to write-pci."""


@dataclass(frozen=True)
class Step:
    """A step that was made, in seconds since the move began; `back` for those of a way back."""

    name: str
    start: float
    end: float
    back: bool = False

    @property
    def milliseconds(self) -> float:
        """Its duration."""
        return round((self.end - self.start) * 1e3, 3)


@dataclass
class Report:
    """What a move did. `stopped` and `resumed` are seconds since it began, None where that did not happen."""

    dialect: str = "context"
    began: float = 0.0
    """When it began, by this host's CLOCK_MONOTONIC, in seconds."""
    steps: list[Step] = field(default_factory=list)
    stopped: float | None = None
    resumed: float | None = None
    pages: int = 0
    """Pages that the VFs wrote during the copy and that were sent again."""
    context_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def downtime_ms(self) -> float | None:
        """How long the guest stood still, by the time stamps of QEMU's events; None unless it runs again."""
        if self.stopped is None or self.resumed is None:
            return None
        return round((self.resumed - self.stopped) * 1e3, 1)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "dialect": self.dialect,
            "began_at_s": self.began,
            "downtime_ms": self.downtime_ms,
            "steps": {step.name: step.milliseconds for step in self.steps},
            "timeline": [
                {
                    "name": step.name,
                    "start_ms": _milliseconds(step.start),
                    "end_ms": _milliseconds(step.end),
                    "back": step.back,
                }
                for step in self.steps
            ],
            "stopped_at_ms": _milliseconds(self.stopped),
            "resumed_at_ms": _milliseconds(self.resumed),
            "pages_sent_again": self.pages,
            "context_bytes": self.context_bytes,
            "warnings": self.warnings,
        }

    @classmethod
    def load(cls, plain: Mapping[str, Any]) -> Report:
        """What `plain` was made of, as far as it has it: times to a thousandth of a millisecond."""
        return cls(
            plain["dialect"],
            plain["began_at_s"],
            [
                Step(step["name"], step["start_ms"] / 1e3, step["end_ms"] / 1e3, step["back"])
                for step in plain["timeline"]
            ],
            _seconds(plain["stopped_at_ms"]),
            _seconds(plain["resumed_at_ms"]),
            plain["pages_sent_again"],
            plain["context_bytes"],
            list(plain["warnings"]),
        )


class MoveError(Exception):
    """A move that was not made. `step` is where it failed, `source_runs` whether the guest runs as before.

    The message says what is the matter, what became of both ends, and what to do.
    """

    def __init__(self, step: str, why: str, state: str, *, source_runs: bool, report: Report) -> None:
        super().__init__(f"the move failed at the step {step!r}: {why}\n{state}")
        self.step = step
        self.why = why
        self.state = state
        self.source_runs = source_runs
        self.report = report


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1e3, 3)


def _seconds(milliseconds: float | None) -> float | None:
    return None if milliseconds is None else milliseconds / 1e3
