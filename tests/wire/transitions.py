"""What takes a function a while: each starts one, and returns what tells whether it is under way."""

from __future__ import annotations

from collections.abc import Callable

from tests.wire.draft_rig import Rig
from tests.wire.running import until


def flr(rig: Rig) -> Callable[[], bool]:
    """Start a function reset. Interrupt Line, which it resets, keeps its value until then."""
    function = rig.device.function
    function.config_write(0x3C, 1, 9)
    function.flr()
    return lambda: function.config_read(0x3C, 1) == 9


def device_reset(rig: Rig) -> Callable[[], bool]:
    """Start a device reset; the status reads 0 when it is over. For Active and Stop."""
    rig.device.common.write("device_status", 0)
    return lambda: rig.device.status != 0


def power_down(rig: Rig) -> Callable[[], bool]:
    """Start to go to D3hot; the old state is read until then."""
    rig.device.function.set_power_state(3)
    return lambda: rig.device.function.power_state == 0


def power_up(rig: Rig) -> Callable[[], bool]:
    """Start to go back to D0, from D3hot."""
    under_way = power_down(rig)
    until(lambda: not under_way(), "D3hot")
    rig.device.function.set_power_state(0)
    return lambda: rig.device.function.power_state == 3
