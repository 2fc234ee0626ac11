"""The capability and the resource objects that device parts need, from the owner driver's side."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Unpack

import numpy as np

from pymodel.spec import admin
from vfu_client.owner.admin import AdminReply, CommandParts
from vfu_client.owner.owner import PARTS_COMMANDS, DriverRuleError, OwnerDriver
from vfu_client.vfio.memory import Buffer

SELF_COMMANDS = frozenset(
    {
        admin.LIST_QUERY,
        admin.LIST_USE,
        admin.CAP_ID_LIST_QUERY,
        admin.DEVICE_CAP_GET,
        admin.DRIVER_CAP_SET,
    }
)
# Room for a bit of each capability there can be.
CAPABILITY_BYTES = 0x1000 // 8


class Limits(NamedTuple):
    """How many objects there may be for GET, and for SET; their ids are below that."""

    get: int
    set: int


@dataclass(frozen=True, slots=True)
class PartsObject:
    """A DEV_PARTS object of a VF, for GET or for SET. Data of commands about it begin with `header`."""

    id: int
    vf: int
    operation: int
    header: Buffer


class PartsObjects:
    """The objects of one owner's VFs. One for each owner, and a new one where VFs were disabled.

    The constructor chooses the commands of the Self group and tells the device how many objects it uses at
    most: `limits`, or as many as the device has. Raises `LookupError` where the device has no device parts.

    Where the owner obeys, `DriverRuleError` is raised ahead of what virtio 1.4 forbids (P-DRV-12 to -15).
    All commands raise `AdminError` and `TimeoutError`.
    """

    def __init__(self, owner: OwnerDriver, *, limits: Limits | None = None) -> None:
        if not owner.commands >= PARTS_COMMANDS:
            raise LookupError("it has no device parts for its VFs")
        self.owner = owner
        self.admin = owner.admin
        self.limits = Limits(0, 0)
        self._objects: dict[int, PartsObject] = {}
        owner.check_idle()
        self.admin.list_use(admin.GROUP_SELF, self.admin.list_query(admin.GROUP_SELF) & SELF_COMMANDS)
        if admin.CAP_DEV_PARTS not in self.capabilities():
            raise LookupError("it has no capability for device parts")
        self.device_limits = self._device_limits()
        self.set_limits(limits or self.device_limits)

    # Capabilities.

    def capabilities(self) -> frozenset[int]:
        """The ids of all capabilities that the device has."""
        reply = self.admin.execute(admin.CAP_ID_LIST_QUERY, group=admin.GROUP_SELF, result=CAPABILITY_BYTES)
        bits = int.from_bytes(reply.result, "little")
        return frozenset(number for number in range(bits.bit_length()) if bits >> number & 1)

    def _device_limits(self) -> Limits:
        reply = self.admin.execute(
            admin.DEVICE_CAP_GET,
            group=admin.GROUP_SELF,
            data=np.array((admin.CAP_DEV_PARTS, 0), admin.CAP).tobytes(),
            result=admin.DEV_PARTS_CAP.itemsize,
        )
        return Limits(*map(int, reply.array(admin.DEV_PARTS_CAP, 1)[0]))

    def set_limits(self, limits: Limits) -> None:
        """Say how many objects this driver uses at most."""
        if self.owner.obey and self._objects:
            raise DriverRuleError(f"{len(self._objects)} objects are there, whose limits are to change")
        if self.owner.obey and (limits.get > self.device_limits.get or limits.set > self.device_limits.set):
            raise DriverRuleError(f"{limits} is more than the device has, {self.device_limits}")
        data = np.array((admin.CAP_DEV_PARTS, 0, *limits), admin.DRIVER_CAP_SET_DATA)
        self.admin.execute(admin.DRIVER_CAP_SET, group=admin.GROUP_SELF, data=data.tobytes())
        self.limits = limits

    # Objects.

    def create(self, vf: int, operation: int) -> PartsObject:
        """A new object, with the lowest id that is free. Raises `DriverRuleError` where none is."""
        limit = self.limits[operation]
        number = next(number for number in itertools.count() if number not in self._objects)
        if self.owner.obey and number >= limit:
            raise DriverRuleError(f"all {limit} objects that this driver may have are there already")
        memory = self.owner.device.memory
        header = memory.allocate(admin.RESOURCE_OBJ.itemsize)
        named = np.array((admin.RESOURCE_OBJ_DEV_PARTS, 0, number), admin.RESOURCE_OBJ)
        header.view[:] = np.frombuffer(named.tobytes(), np.uint8)
        made = PartsObject(number, vf, operation, header)
        try:
            self.command(admin.RESOURCE_OBJ_CREATE, made, data=_object_data(made, operation))
        except BaseException:
            memory.free(header)
            raise
        self._objects[number] = made
        return made

    def query(self, asked: PartsObject) -> int:
        """The operation that an object has in the device."""
        data = asked.header.view.tobytes() + bytes(8)
        size = admin.DEV_PARTS_OBJ.itemsize
        reply = self.command(admin.RESOURCE_OBJ_QUERY, asked, data=data, result=size)
        return int(reply.array(admin.DEV_PARTS_OBJ, 1)[0]["operation"])

    def modify(self, changed: PartsObject, operation: int) -> PartsObject:
        """Have an object be for another operation; what is returned takes the place of the one given."""
        self.command(admin.RESOURCE_OBJ_MODIFY, changed, data=_object_data(changed, operation))
        made = PartsObject(changed.id, changed.vf, operation, changed.header)
        self._objects[changed.id] = made
        return made

    def destroy(self, gone: PartsObject) -> None:
        """Have an object no more, and its id free."""
        self.command(admin.RESOURCE_OBJ_DESTROY, gone, data=gone.header.view.tobytes())
        del self._objects[gone.id]
        self.owner.device.memory.free(gone.header)

    @contextlib.contextmanager
    def object(self, vf: int, operation: int) -> Iterator[PartsObject]:
        """An object for as long as the context lasts."""
        made = self.create(vf, operation)
        try:
            yield made
        finally:
            self.destroy(made)

    def command(self, opcode: int, about: PartsObject, **command: Unpack[CommandParts]) -> AdminReply:
        """A command about an object. Raises `DriverRuleError` for one that was destroyed."""
        made = opcode == admin.RESOURCE_OBJ_CREATE or self._objects.get(about.id) is about
        if self.owner.obey and not made:
            raise DriverRuleError(f"object {about.id} is there no more")
        return self.admin.execute(opcode, group=admin.GROUP_SRIOV, member=about.vf, **command)


def _object_data(about: PartsObject, operation: int) -> bytes:
    return about.header.view.tobytes() + bytes(8) + bytes((operation, 0, 0, 0, 0, 0, 0, 0))
