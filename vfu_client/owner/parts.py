"""Device parts from the owner driver's side: stop a VF, get its parts, set another's, and resume it."""

from __future__ import annotations

import contextlib
from typing import Any, Unpack

import numpy as np
from numpy.typing import NDArray

from pymodel.spec import admin, parts
from vfu_client.owner.admin import ALIGN, AdminReply, CommandParts, PendingCommand
from vfu_client.owner.owner import DriverRuleError, OwnerDriver
from vfu_client.owner.part import BadPartsError, walk
from vfu_client.owner.parts_objects import Limits, PartsObject, PartsObjects
from vfu_client.vfio.memory import PAGE, Buffer


class DeviceParts(PartsObjects):
    """Gets and sets the parts of an owner's VFs, by objects that the caller made for it.

    Where the owner obeys, `DriverRuleError` is raised ahead of what virtio 1.4 forbids (P-DRV-16, -17 too).
    Parts that are no multiple of 8 bytes are filled up with zeros when they are set (P-DRV-07).
    """

    def __init__(self, owner: OwnerDriver, *, limits: Limits | None = None) -> None:
        super().__init__(owner, limits=limits)
        self._stopped: set[int] = set()
        self._zeros = owner.device.memory.allocate(ALIGN)

    # Modes.

    def stop(self, vf: int, *, timeout: float | None = None) -> None:
        """Have a VF finish what it began, and begin nothing more; it may be stopped already."""
        self._mode_set(vf, stopped=True, timeout=timeout)
        self._stopped.add(vf)

    def resume(self, vf: int, *, timeout: float | None = None) -> None:
        """Have a VF run, with the parts that were set last; it may run already."""
        self._stopped.discard(vf)
        self._mode_set(vf, stopped=False, timeout=timeout)

    def _mode_set(self, vf: int, *, stopped: bool, timeout: float | None) -> None:
        data = _mode(stopped=stopped)
        self.admin.execute(admin.DEV_MODE_SET, group=admin.GROUP_SRIOV, member=vf, data=data, timeout=timeout)

    # Getting.

    def size(self, source: PartsObject) -> int:
        """The bytes that all parts have at most, with their headers."""
        return self._number(source, admin.METADATA_SIZE)

    def count(self, source: PartsObject) -> int:
        """How many parts there are."""
        return self._number(source, admin.METADATA_COUNT)

    def headers(self, source: PartsObject) -> NDArray[Any]:
        """The headers of all parts, as `pymodel.spec.parts.PART`."""
        head = admin.METADATA_RESULT.itemsize
        room = head + self.count(source) * parts.PART.itemsize
        reply = self._metadata(source, admin.METADATA_LIST, room)
        count = int(reply.array(admin.METADATA_RESULT, 1)[0]["number"])
        return np.frombuffer(reply.result[head : head + count * parts.PART.itemsize], parts.PART)

    def get(self, source: PartsObject, headers: NDArray[Any] | None = None) -> bytes:
        """All parts, or those of these headers that there are. Raises `BadPartsError` for what is cut."""
        data = _get_data(source, admin.PARTS_ALL if headers is None else admin.PARTS_SELECTED)
        if headers is not None:
            data += headers.tobytes()
        # A VF that runs may have more of them by then.
        room = self.size(source) + PAGE
        reply = self.command(admin.DEV_PARTS_GET, source, data=data, result=room)
        return _without_filling(reply.result)

    def stop_and_get_into(self, source: PartsObject, destination: Buffer) -> int:
        """Stop, and all parts into DMA memory, for the price of one notification; how many bytes they have.

        There must be room for them (`size`), in a multiple of 8 bytes. Raises `AdminError` for the first
        command that was refused.
        """
        data = _get_data(source, admin.PARTS_ALL)
        pending = [
            self._submit(admin.DEV_MODE_SET, source.vf, data=_mode(stopped=True), kick=False),
            self._submit(admin.DEV_PARTS_GET, source.vf, data=data, into=[destination]),
        ]
        reply = self.admin.wait_all(pending)[-1]
        self._stopped.add(source.vf)
        return reply.used_length - admin.RESULT.itemsize

    def _metadata(self, source: PartsObject, kind: int, room: int) -> AdminReply:
        data = _get_data(source, kind)
        return self.command(admin.DEV_PARTS_METADATA_GET, source, data=data, result=room)

    def _number(self, source: PartsObject, kind: int) -> int:
        reply = self._metadata(source, kind, admin.METADATA_RESULT.itemsize)
        return int(reply.array(admin.METADATA_RESULT, 1)[0]["number"])

    # Setting.

    def set(self, target: PartsObject, data: bytes | Buffer) -> None:
        """Set a whole set of parts, all or nothing; they act when the VF resumes, unless others follow.

        Raises `DriverRuleError` before anything is sent where the bytes are no parts in their order, or this
        driver did not stop the VF.
        """
        self._check(target, data)
        self.command(admin.DEV_PARTS_SET, target, **self._set_command(target, data))

    def set_and_resume(self, target: PartsObject, data: Buffer) -> None:
        """Set parts from DMA memory, and resume, for the price of one notification.

        Raises as `set`. A VF whose parts were refused runs with what it had before, as the resume was sent
        too: use this where nobody drives it yet.
        """
        self._check(target, data)
        pending = [
            self._submit(admin.DEV_PARTS_SET, target.vf, kick=False, **self._set_command(target, data)),
            self._submit(admin.DEV_MODE_SET, target.vf, data=_mode(stopped=False)),
        ]
        self._stopped.discard(target.vf)
        self.admin.wait_all(pending)

    def _check(self, target: PartsObject, data: bytes | Buffer) -> None:
        if not self.owner.obey:
            return
        if target.vf not in self._stopped:
            raise DriverRuleError(f"VF {target.vf} may be running: stop it before its parts are set")
        try:
            types = [part[0] for part in walk(data.view if isinstance(data, Buffer) else data)]
        except BadPartsError as error:
            raise DriverRuleError(str(error)) from error
        if types != sorted(types):
            raise DriverRuleError("the parts are not in the order of the standard's table")

    def _set_command(self, target: PartsObject, data: bytes | Buffer) -> CommandParts:
        if isinstance(data, bytes):
            return {"data": target.header.view.tobytes() + data}
        filling = -data.size % ALIGN
        return {"data": [target.header, data, *([self._zeros.part(0, filling)] if filling else [])]}

    def _submit(
        self, opcode: int, vf: int, *, kick: bool = True, **command: Unpack[CommandParts]
    ) -> PendingCommand:
        return self.admin.submit(opcode, group=admin.GROUP_SRIOV, member=vf, kick=kick, **command)


def _mode(*, stopped: bool) -> bytes:
    return bytes((admin.DEV_MODE_STOPPED if stopped else 0,))


def _get_data(source: PartsObject, kind: int) -> bytes:
    return source.header.view.tobytes() + bytes((kind, 0, 0, 0, 0, 0, 0, 0))


def _without_filling(stream: bytes) -> bytes:
    """The parts, without what fills the answer up (P-DEV-20). Raises `BadPartsError` for what is cut."""
    end = 0
    with contextlib.suppress(BadPartsError):
        for *_, end_of_part in walk(stream):
            end = end_of_part
    if len(stream) - end >= ALIGN or any(stream[end:]):
        raise BadPartsError(f"the device gave {len(stream)} bytes, of which {end} are whole parts")
    return stream[:end]
