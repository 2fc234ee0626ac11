"""The state of VFs, carried by the device parts of virtio 1.4."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from pymodel.spec import admin, context
from vfu_client.move.carrier import Carrier
from vfu_client.move.fitness import unfit
from vfu_client.move.progress import silent
from vfu_client.owner.context import Field
from vfu_client.owner.owner import PARTS_COMMANDS, OwnerDriver
from vfu_client.owner.part_set import as_reset, common_fields
from vfu_client.owner.parts import DeviceParts
from vfu_client.vfio.memory import Bytes


class ByParts(Carrier):
    """See `Carrier`. The objects that parts need live as long as a command needs them: none is left over."""

    def __init__(self, owner: OwnerDriver) -> None:
        super().__init__(owner)
        self._made: DeviceParts | None = None

    @property
    def _parts(self) -> DeviceParts:
        """Made when it is needed first: a device may have none."""
        if self._made is None:
            self._made = DeviceParts(self.owner)
        return self._made

    def needed(self) -> frozenset[int]:
        """And a context's fields tell a disk in memory from a file, and MODE_GET whether a VF runs."""
        base = self.owner.base
        return PARTS_COMMANDS | {base + context.MODE_GET, base + context.CTX_FIELDS_QUERY}

    def obstacle(self, vf: int) -> str:
        if self.owner.mode_get(vf) != context.MODE_ACTIVE:
            return "it stands still: `vfu-owner` with `parts resume`, or `mode active`, has it run"
        if context.BLK_EXTENT in self.owner.fields(vf)["type"]:
            return (
                "its disk is in memory, and what is on a disk is no device part: move it with --dialect"
                " context, or give both servers one file (in /dev/shm, say)"
            )
        return ""

    def unfit(self, source: Sequence[Field], destination: Sequence[Field]) -> list[str]:
        return unfit(source, destination, same_features=True)

    def mode_set(self, vf: int, mode: int, *, timeout: float | None = None) -> None:
        change = self._parts.resume if mode == context.MODE_ACTIVE else self._parts.stop
        change(vf, timeout=timeout)

    def peek(self, vf: int) -> list[Field]:
        return self.fields(self.read(vf))

    def fields(self, state: Sequence[Bytes]) -> list[Field]:
        return common_fields(state[0])

    def read(self, vf: int, progress: Callable[[int, int], None] = silent) -> list[Bytes]:  # is small
        return [np.frombuffer(self._get(vf), np.uint8)]

    def freeze_and_read_rest(self, vf: int) -> list[Bytes]:
        self.mode_set(vf, context.MODE_FREEZE)
        return self.read(vf)

    def write(self, vf: int, state: Sequence[Bytes], progress: Callable[[int, int], None] = silent) -> None:
        self._set(vf, b"".join(piece.tobytes() for piece in state))

    def write_reset(self, vf: int) -> None:
        self._set(vf, as_reset(self._get(vf)))

    def _get(self, vf: int) -> bytes:
        with self._parts.object(vf, admin.DEV_PARTS_OBJ_GET) as source:
            return self._parts.get(source)

    def _set(self, vf: int, parts: bytes) -> None:
        with self._parts.object(vf, admin.DEV_PARTS_OBJ_SET) as target:
            self._parts.set(target, parts)
