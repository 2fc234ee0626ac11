"""The capability commands of the Self group: this device has no capability yet.

virtio 1.4, "Device and driver capabilities" (P-DEV-23, P-DEV-28). Linux looks for the three in the SR-IOV
group's list although they are commands of the Self group, and reports an error where they are missing, so
the SR-IOV group has them too unless `strict` is asked for (kernels before 6.15 send them there).
"""

from __future__ import annotations

from pymodel.admin.dispatch import Call, GroupCommand, Reply, Table
from pymodel.errors import NoSuchCapability
from pymodel.spec import admin as spec


def _cap_id_list_query(call: Call) -> Reply:
    return Reply(bytes(spec.LIST_WORD.itemsize), note="none")


def _device_cap_get(call: Call) -> Reply:
    raise NoSuchCapability(f"capability {int(call.fields(spec.CAP)['id']):#x}")


def _driver_cap_set(call: Call) -> Reply:
    raise NoSuchCapability(f"capability {int(call.fields(spec.CAP)['id']):#x}")


CAPABILITY_COMMANDS: Table = {
    spec.CAP_ID_LIST_QUERY: GroupCommand("CAP_ID_LIST_QUERY", _cap_id_list_query),
    spec.DEVICE_CAP_GET: GroupCommand("DEVICE_CAP_GET", _device_cap_get),
    spec.DRIVER_CAP_SET: GroupCommand("DRIVER_CAP_SET", _driver_cap_set),
}
