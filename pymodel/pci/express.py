"""The PCI Express capability: an endpoint of one lane that can do a function-level reset."""

from __future__ import annotations

from collections.abc import Callable

from pymodel.registers import Register
from pymodel.spec import pci

# Device Control: error reporting, relaxed ordering, payload and request sizes, extended tags, no snoop.
_DEVCTL_WRITABLE = 0x7FFF
_DEVCTL_RESET = 0x2810
_ONE_LANE_2_5_GT = 0x11


class Express:
    """PCI Express capability, version 2. `flr` is called when the driver starts a function-level reset."""

    id = pci.CAP_ID_EXPRESS
    name = "express"
    size = pci.EXPRESS_SIZE
    registers = (
        Register("flags", pci.EXPRESS_FLAGS, 2, pci.EXPRESS_VERSION),
        Register(
            "device_capabilities",
            pci.EXPRESS_DEVCAP,
            4,
            pci.EXPRESS_DEVCAP_ROLE_BASED_ERROR | pci.EXPRESS_DEVCAP_FLR,
        ),
        Register("device_control", pci.EXPRESS_DEVCTL, 2, _DEVCTL_RESET),
        Register("device_status", pci.EXPRESS_DEVSTA, 2),
        Register("link_capabilities", pci.EXPRESS_LNKCAP, 4, _ONE_LANE_2_5_GT),
        Register("link_control", pci.EXPRESS_LNKCTL, 2, 0, 0x00C3),
        Register("link_status", pci.EXPRESS_LNKSTA, 2, _ONE_LANE_2_5_GT),
        Register("device_capabilities_2", pci.EXPRESS_DEVCAP2, 4),
        Register("device_control_2", pci.EXPRESS_DEVCTL2, 2),
        Register("link_capabilities_2", pci.EXPRESS_LNKCAP2, 4, 1 << 1),
        Register("link_control_2", pci.EXPRESS_LNKCTL2, 2, 1, 0x000F),
    )

    def __init__(self, flr: Callable[[], None]) -> None:
        self._flr = flr
        self._control = _DEVCTL_RESET

    def reset(self) -> None:
        """Device Control back to its reset value."""
        self._control = _DEVCTL_RESET

    def read_device_control(self) -> int:
        """Initiate FLR always reads 0."""
        return self._control

    def write_device_control(self, value: int) -> None:
        """Keep what is writable; then reset the function if Initiate FLR is set."""
        self._control = value & _DEVCTL_WRITABLE
        if value & pci.EXPRESS_DEVCTL_FLR:
            self._flr()
