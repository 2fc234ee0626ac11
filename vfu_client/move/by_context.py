"""The state of VFs, carried by the draft's device contexts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from pymodel.spec import context
from vfu_client.move.carrier import Carrier
from vfu_client.move.fitness import unfit
from vfu_client.move.progress import silent
from vfu_client.owner.context import Field
from vfu_client.owner.context_parts import as_reset, common_part
from vfu_client.vfio.memory import Bytes

# The common fields of a context fit into this.
FIRST_LOOK = 64 << 10


class ByContext(Carrier):
    """See `Carrier`. A disk in memory is carried too: first all of it, then what changed."""

    def needed(self) -> frozenset[int]:
        return frozenset(range(self.owner.base + context.MODE_GET, self.owner.base + context.CTX_DISCARD + 1))

    def obstacle(self, vf: int) -> str:  # every VF has a context
        return ""

    def unfit(self, source: Sequence[Field], destination: Sequence[Field]) -> list[str]:
        return unfit(source, destination)

    def mode_set(self, vf: int, mode: int, *, timeout: float | None = None) -> None:
        self.owner.mode_set(vf, mode, timeout=timeout)

    def peek(self, vf: int) -> list[Field]:
        with self.owner.room(FIRST_LOOK) as room:
            size = self.owner.context_peek_into(vf, room)
            return self.fields([room.view[:size].copy()])

    def fields(self, state: Sequence[Bytes]) -> list[Field]:
        return common_part(memoryview(state[0][:FIRST_LOOK].tobytes()))

    def read(self, vf: int, progress: Callable[[int, int], None] = silent) -> list[Bytes]:
        self.owner.context_discard(vf)
        state, done, whole = [], 0, self.owner.context_size(vf)
        for piece in self.owner.context_read(vf):
            state.append(piece)
            done += len(piece)
            progress(done, whole)
        return state

    def freeze_and_read_rest(self, vf: int) -> list[Bytes]:
        with self.owner.room(FIRST_LOOK) as room:
            size, left = self.owner.freeze_and_read_into(vf, room)
            first = room.view[:size].copy()
        return [first, *(self.owner.context_read(vf) if left else ())]

    def write(self, vf: int, state: Sequence[Bytes], progress: Callable[[int, int], None] = silent) -> None:
        if self.owner.partly_written(vf):
            self.owner.context_discard(vf)
        self.owner.context_write(vf, state, progress=progress)

    def write_reset(self, vf: int) -> None:
        self.owner.context_write(vf, as_reset(self.peek(vf)))
