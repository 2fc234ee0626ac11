"""What PCI defines and every function answers, whatever else it is about."""

from __future__ import annotations

from typing import Any

from tests.wire.draft_rig import Rig


def pci_interfaces(rig: Rig) -> dict[str, Any]:
    """What PCI's own interfaces answer: sizing, COMMAND, MSI-X, power states, then an FLR."""
    function, msix = rig.device.function, rig.device.msix
    assert msix is not None
    seen: dict[str, Any] = {}
    seen["ids"] = function.config_bytes(0, 4)
    seen["bars"] = [(bar.index, bar.size, bar.address) for bar in function.bars()]
    function.config_write(0x10, 4, 0xFE00_0000)
    seen["bar0"] = function.config_read(0x10, 4)
    function.config_write(4, 2, 0xFFFF)
    seen["command"] = function.config_read(4, 2)
    function.config_write(4, 2, 0)
    seen["command off"] = function.config_read(4, 2)
    function.config_write(4, 2, 6)
    function.config_write(0x3C, 1, 11)
    seen["line"] = function.config_read(0x3C, 1)
    controls = []
    for control in (0xC000, 0x4000, 0, 0x8000):
        msix.control = control
        controls.append(msix.control & 0xC000)
    seen["msix"] = controls
    masks = []
    for masked in (True, False):
        msix.mask(1, masked)
        masks.append(msix.masked(1))
    msix.write_entry(2, 0x1234_5678_9ABC, 0x55)
    seen["masks"] = masks
    seen["entry"] = msix.read_entry(2)
    seen["pending"] = [msix.pending(vector) for vector in range(len(msix.interrupts))]
    power = function.find_capability(0x01)
    states = []
    for state in (3, 1, 0):
        function.set_power_state(state)
        states.append((function.power_state, rig.device.status, function.config_read(power + 4, 2)))
    seen["power"] = states
    express = function.find_capability(0x10)
    function.config_write(express + 8, 2, 0x002F)
    seen["express"] = function.config_read(express + 8, 2)
    function.flr()
    seen["after flr"] = (function.config_bytes(), rig.device.status, function.power_state, msix.read_entry(2))
    return seen
