"""Whether the BARs of VFs in a guest are where the PF's SR-IOV capability says, and what is done if not."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from pymodel.host import VF_BARS_MISPLACED
from pymodel.pci.sriov.capability import Routing, SriovCapability
from pymodel.pci.sriov.ecam import Ecam, WantedBar
from pymodel.pci.sriov.vf_slot import VfSlots

REPAIR_SECONDS: Final = 1.0
"""How long programming them may take before it is told that they are not where they should be."""

_HINT: Final = (
    "accesses of their drivers go nowhere, or to another VF. If QEMU has the VFs where `vfu-qemu` says, have"
    " them programmed by the server (--ecam auto) or by `vfu-qemu place`, then disable and enable the VFs"
)


@dataclass(frozen=True, slots=True)
class Misplaced:
    """A BAR of a VF: where the capability has it, and where its client has it."""

    number: int
    bar: int
    wanted: int
    found: int


class Teller(Protocol):
    """What is needed of the PF (`PhysicalFunction`)."""

    log: logging.Logger

    def event(self, kind: str, data: Mapping[str, Any]) -> None: ...
    def after(self, seconds: float, call: Callable[[], None]) -> None: ...


class Placement:
    """Compares, tells, and has `ecam`, if there is one, program what differs.

    Linux uses VFs 100 ms after it set VF Enable (9.3.3.3.1), and a busy machine gets little done meanwhile.
    So BARs are programmed once the PF may write, which is when its driver begins, and after VF Enable only
    those that are elsewhere still.
    """

    def __init__(
        self, sriov: SriovCapability, slots: VfSlots, routing: Routing, ecam: Ecam | None, pf: Teller
    ) -> None:
        self._sriov = sriov
        self._slots = slots
        self._routing = routing
        self._ecam = ecam
        self._pf = pf
        self._serial = 0
        self._moving: list[Misplaced] = []
        self._moving_count = 0

    def wanted(self, number: int) -> dict[int, int]:
        """Where the capability has the BARs of VF `number`, by BAR."""
        return {bar: self._sriov.vf_bars(bar, number)[-1] for bar in self._slots.by_number[number].bars}

    def found(self, number: int, bar: int) -> int:
        """Where the client has a BAR of VF `number`."""
        return self._slots.by_number[number].bar_address(bar)

    def describe(self) -> dict[str, int]:
        """What the capability says of all VFs."""
        return {
            "total-vfs": len(self._slots.by_number),
            "attached-vfs": self._slots.attached,
            "num-vfs": self._sriov.enabled_vfs,
            "first-vf-offset": self._routing.first_vf_offset,
            "vf-stride": self._routing.vf_stride,
        }

    def misplaced(self, vfs: int) -> list[Misplaced]:
        """The BARs of the first `vfs` VFs, of those that are attached, that are elsewhere."""
        wanted = {bar: self._sriov.vf_bars(bar, vfs) for bar in self._slots.by_number[1].bars}
        return [
            Misplaced(number, bar, addresses[number - 1], found)
            for number in range(1, vfs + 1)
            if self._slots.by_number[number].attached
            for bar, addresses in wanted.items()
            if (found := self.found(number, bar)) != addresses[number - 1]
        ]

    def forget(self) -> None:
        """A machine that begins anew: nothing is waited for any more."""
        self._serial += 1
        self._moving = []

    def prepare(self) -> None:
        """The PF may write: have the BARs of VFs where they should be before there are VFs."""
        if self._ecam is not None and all(self.wanted(1).values()):
            self._program(self._ecam, self.misplaced(self._slots.attached))

    def check(self) -> None:
        """VFs were enabled, or their BARs moved: see that they are where they should be."""
        self._serial += 1
        misplaced = self.misplaced(self._sriov.enabled_vfs)
        if self._ecam is None:
            self._tell(misplaced)
            return
        self._program(self._ecam, misplaced)
        serial = self._serial

        def check_again() -> None:
            if serial == self._serial:
                self._tell(self.misplaced(self._sriov.enabled_vfs))

        if misplaced:
            self._pf.after(REPAIR_SECONDS, check_again)

    def bars_moved(self) -> None:
        """BARs of VFs may have been moved: tell it once all that were to be programmed are."""
        moving = self._moving
        if not moving:
            return
        while moving and self.found(moving[-1].number, moving[-1].bar) == moving[-1].wanted:
            moving.pop()
        if not moving:
            self._pf.log.info("%d BARs of VFs were programmed", self._moving_count)

    def _program(self, ecam: Ecam, misplaced: list[Misplaced]) -> None:
        self._moving, self._moving_count = misplaced, len(misplaced)
        if misplaced:
            ecam.program(
                [WantedBar(self._routing(0, each.number), each.bar, each.wanted) for each in misplaced]
            )

    def _tell(self, misplaced: list[Misplaced]) -> None:
        if not misplaced:
            return
        first = misplaced[0]
        self._pf.log.warning(
            "BAR %d of VF %d is at %#x, and the SR-IOV capability says %#x (%d BARs differ): %s",
            first.bar,
            first.number,
            first.found,
            first.wanted,
            len(misplaced),
            _HINT,
        )
        self._pf.event(
            VF_BARS_MISPLACED,
            {
                "vf": f"vf{first.number}",
                "bar": first.bar,
                "wanted": first.wanted,
                "found": first.found,
                "count": len(misplaced),
            },
        )
