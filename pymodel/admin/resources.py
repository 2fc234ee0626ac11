"""Resource objects of the owner, and the limits that its driver set for them.

virtio 1.4, "Device resource objects" and "VIRTIO_DEV_PARTS_CAP". The only type is DEV_PARTS: such an object
is about one member, and lets its driver either get or set parts. An id is unique for all members.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from pymodel.errors import AlreadyExists, InvalidField, NoSpace, NoSuchResource, ResourceBusy
from pymodel.migration.member import Member
from pymodel.spec import admin as spec

LIMIT: Final = 0xFF
"""Objects of either kind that a driver may have: all that the capability has room for."""


@dataclass(frozen=True, slots=True)
class _Object:
    """One DEV_PARTS object."""

    member: Member
    operation: int


class Resources:
    """The DEV_PARTS objects of one owner, whose lock is held in all calls; `create` is called with that of
    the member too. `limits` are the driver's, by operation: get, set.
    """

    def __init__(self) -> None:
        self._objects: dict[int, _Object] = {}
        self.limits = [0, 0]

    def __len__(self) -> int:
        return len(self._objects)

    def __contains__(self, id_: int) -> bool:
        return id_ in self._objects

    def reset(self) -> None:
        """Owner reset: no objects, limits of 0 (P-DEV-29, P-DEV-30, P-DEV-40)."""
        self._drop(self._objects)
        self.limits = [0, 0]

    def member_leaves(self, member: Member) -> None:
        """Destroy the objects of a member that is going."""
        self._drop([id_ for id_, found in self._objects.items() if found.member is member])

    def _drop(self, ids: Iterable[int]) -> None:
        for id_ in list(ids):
            self._objects.pop(id_).member.parts.objects.discard(id_)

    def set_limits(self, limits: list[int]) -> None:
        """Take the driver's limits.

        Raises `InvalidField` beyond the device's (P-DEV-25), `ResourceBusy` where an object would be out of
        range (P-DEV-27).
        """
        if max(limits) > LIMIT:
            raise InvalidField(f"limits of {limits[0]} and {limits[1]} objects; there are {LIMIT}")
        for id_, found in self._objects.items():
            if id_ >= limits[found.operation]:
                raise ResourceBusy(f"there is an object {id_}")
        self.limits = limits

    def create(self, id_: int, member: Member, operation: int) -> None:
        """Make an object.

        Raises `AlreadyExists`, `NoSpace` for an id beyond the limit, `InvalidField`, and as
        `Member.begin_parts` does.
        """
        if id_ in self._objects:
            raise AlreadyExists(f"object {id_}")
        self._admit(id_, operation)
        member.begin_parts()
        self._objects[id_] = _Object(member, operation)
        member.parts.objects.add(id_)

    def modify(self, id_: int, member: Member, operation: int) -> None:
        """Have an object for another operation. Raises as `find` and `create` do (P-DEV-38)."""
        self.find(id_, member)
        self._admit(id_, operation)
        self._objects[id_] = _Object(member, operation)

    def find(self, id_: int, member: Member) -> int:
        """The operation that an object of `member` is for. Raises `NoSuchResource` (P-DEV-32)."""
        found = self._objects.get(id_)
        if found is None or found.member is not member:
            raise NoSuchResource(f"object {id_} of {member.name}")
        return found.operation

    def use(self, id_: int, member: Member, operation: int) -> None:
        """Raise `NoSuchResource`, or `InvalidField` for an object that is for the other operation."""
        if self.find(id_, member) != operation:
            raise InvalidField(f"object {id_} is not for that")

    def destroy(self, id_: int, member: Member) -> None:
        """Destroy an object, whatever state its member is in. Raises `NoSuchResource`."""
        self.find(id_, member)
        self._drop([id_])

    def _admit(self, id_: int, operation: int) -> None:
        if operation not in (spec.DEV_PARTS_OBJ_GET, spec.DEV_PARTS_OBJ_SET):
            raise InvalidField(f"operation {operation}")
        if id_ >= self.limits[operation]:
            raise NoSpace(f"object {id_}; the driver's limit is {self.limits[operation]}")
