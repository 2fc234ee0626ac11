"""The power management capability: D0 and D3hot, no PME (DEV-19).

No_Soft_Reset is clear, though the way back to D0 changes nothing here: where it is set, Linux leaves the
device as it is while the machine sleeps (S3), and QEMU resets the device when it wakes up. Clear, it makes no
promise (PCI Express 5.0, "Power Management Control/Status Register": the state is then undefined).
"""

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
        return self.state

    def write_control(self, value: int) -> None:
        """Ask for a power state; one that is not supported (D1, D2) is ignored."""
        state = value & pci.PM_STATE_MASK
        if state in (D0, D3HOT) and state != self.state:
            self._change(state)
