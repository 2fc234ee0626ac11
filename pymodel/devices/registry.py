"""The device types that a function can be: a row for each."""

from __future__ import annotations

from collections.abc import Callable

from pymodel.devices.block.device import BlockDevice
from pymodel.devices.device import Device
from pymodel.devices.net.device import NetDevice

DEVICES: dict[str, Callable[..., Device]] = {
    "blk": BlockDevice,
    "net": NetDevice,
}
