"""The capability commands of the Self group.

virtio 1.4, "Device and driver capabilities" (P-DEV-23 to P-DEV-30). Linux looks for the three in the SR-IOV
group's list although they are commands of the Self group, and reports an error where they are missing, so
the SR-IOV group has them too unless `strict` is asked for (kernels before 6.15 send them there).
"""

from __future__ import annotations

from functools import partial

import numpy as np

from pymodel.admin.dispatch import Call, GroupCommand, Reply, Table
from pymodel.admin.resources import LIMIT, Resources
from pymodel.errors import NoSuchResource
from pymodel.spec import admin as spec

_CAPABILITIES = (spec.CAP_DEV_PARTS,)


def _known(call: Call) -> None:
    """Raise `NoSuchResource` unless the command is about a capability that there is (P-DEV-28)."""
    number = int(call.fields(spec.CAP)["id"])
    if number not in _CAPABILITIES:
        raise NoSuchResource(f"capability {number:#x}")


def _cap_id_list_query(_: Call) -> Reply:
    bits = sum(1 << number for number in _CAPABILITIES)
    return Reply(bits.to_bytes(spec.LIST_WORD.itemsize, "little"), note=f"{bits:#x}")


def _device_cap_get(call: Call) -> Reply:
    _known(call)
    return Reply(np.array((LIMIT, LIMIT), spec.DEV_PARTS_CAP).tobytes(), note=f"up to {LIMIT} objects")


def _driver_cap_set(resources: Resources, call: Call) -> Reply:
    _known(call)
    data = call.fields(spec.DRIVER_CAP_SET_DATA)
    limits = [int(data["get_limit"]), int(data["set_limit"])]
    resources.set_limits(limits)
    return Reply(note=f"{limits[0]} to get, {limits[1]} to set")


def capability_commands(resources: Resources) -> Table:
    """The three commands, which set the limits of `resources`."""
    return {
        spec.CAP_ID_LIST_QUERY: GroupCommand("CAP_ID_LIST_QUERY", _cap_id_list_query),
        spec.DEVICE_CAP_GET: GroupCommand("DEVICE_CAP_GET", _device_cap_get),
        spec.DRIVER_CAP_SET: GroupCommand("DRIVER_CAP_SET", partial(_driver_cap_set, resources)),
    }
