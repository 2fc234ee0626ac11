"""The device types that a function can be, by name: each is a class somewhere.

A name is one of `DEVICES`, that of an entry point of the group `GROUP`, or `module:Class`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections.abc import Callable, Mapping
from typing import Final

from pymodel.devices.device import Device

DEVICES: Final[Mapping[str, str]] = {
    "blk": "pymodel.devices.block.device:BlockDevice",
    "net": "pymodel.devices.net.device:NetDevice",
}
"""Entry points of the package, too. Here they can be had without its being installed, and by nobody else."""

GROUP: Final = "vfu_virtio.devices"

MakeDevice = Callable[..., Device]
"""Called with what the function stands on, `name=` and `queues=`."""


def names() -> list[str]:
    """What can be asked for by name."""
    return sorted({*DEVICES, *(entry.name for entry in importlib.metadata.entry_points(group=GROUP))})


def find(name: str) -> MakeDevice:
    """The class of a device type.

    Raises ValueError, with the reason, where there is none, or its module cannot be imported.
    """
    return _class_of(_place(name))


def reload(name: str) -> MakeDevice:
    """The same after its module was read again. Raises ValueError as `find`, and for one of `DEVICES`."""
    if name in DEVICES:
        raise ValueError(f"{name} is the server's own device type: restart the server for another")
    module, _, _ = _place(name).partition(":")
    try:
        importlib.reload(importlib.import_module(module))
    except Exception as error:
        raise ValueError(f"{module}: {type(error).__name__}: {error}") from error
    return find(name)


def _place(name: str) -> str:
    """`module:Class` of a name. Raises ValueError."""
    if ":" in name:
        return name
    if name in DEVICES:
        return DEVICES[name]
    for entry in importlib.metadata.entry_points(group=GROUP, name=name):
        return entry.value
    raise ValueError(f"device type {name!r}: there are {', '.join(names())}; or give module:Class")


def _class_of(place: str) -> MakeDevice:
    module_name, _, class_name = place.partition(":")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        where = "" if module_name in sys.modules else f" (looked for in {', '.join(sys.path[:1])} ...)"
        raise ValueError(f"{module_name}: {type(error).__name__}: {error}{where}") from error
    found = getattr(module, class_name, None)
    if callable(found):
        made: MakeDevice = found
        return made
    raise ValueError(f"{module_name} has no class {class_name!r}")
