"""The power management capability: D0 and D3hot, no PME (DEV-19), no reset on the way back to D0."""

from __future__ import annotations

from collections.abc import Callable

from pymodel.registers import Register
from pymodel.spec import pci

D0 = 0
D3HOT = 3


class PowerManagement:
    """Power management capability, version 3. `change` is called with the state that the driver asks for."""

    id = pci.CAP_ID_PM
    name = "power"
    size = pci.PM_SIZE
    registers = (
        Register("capabilities", pci.PM_PMC, 2, pci.PM_PMC_VERSION),
        Register("control", pci.PM_PMCSR, 2),
    )

    def __init__(self, change: Callable[[int], None]) -> None:
        self._change = change
        self.state = D0

    def reset(self) -> None:
        """Back to D0."""
        self.state = D0

    def read_control(self) -> int:
        """The present power state; PME_En and PME_Status read 0."""
        return self.state | pci.PM_NO_SOFT_RESET

    def write_control(self, value: int) -> None:
        """Ask for a power state; one that is not supported (D1, D2) is ignored."""
        state = value & pci.PM_STATE_MASK
        if state in (D0, D3HOT) and state != self.state:
            self._change(state)
