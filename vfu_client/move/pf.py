"""The PF of one server of a move: what its admin queue does for the VFs there. Everything here blocks."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pymodel.spec import context
from vfu_client.move.fitness import unfit
from vfu_client.owner.admin import AdminError
from vfu_client.owner.context import Field
from vfu_client.owner.context_parts import as_reset, common_part
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.connection import ServerBusyError, ServerUnreachableError
from vfu_client.vfio.memory import Bytes

NEGOTIATION_SECONDS = 3.0
COMMAND_SECONDS = 30.0
# The guest stands still while its VFs finish their requests.
STOP_SECONDS = 5.0
# The common fields of a context fit into this.
FIRST_LOOK = 64 << 10


class SideError(Exception):
    """A server, its PF or a VF of it is not fit for the move."""


@dataclass
class WrittenContext:
    """What a VF at the destination had before it gets a context: mode and context, once known.

    Where a killed move did not say the context, `forgotten`, it gets that of a reset.
    """

    mode: int | None = None
    found: list[Bytes] | None = None
    forgotten: bool = False


class Pf:
    """The owner of the PF in `folder`. `name` is what messages call its server. VFs go by their numbers."""

    def __init__(self, name: str, folder: Path, context_opcodes: int) -> None:
        self.name = name
        self.folder = folder
        self._opcodes = context_opcodes
        self._owner: OwnerDriver | None = None

    def open(self) -> None:
        """Attach to the PF. Raises SideError when nobody is there or somebody else has it, and as
        `OwnerDriver.open` does.
        """
        self._owner = self._attach(NEGOTIATION_SECONDS)

    def close(self) -> None:
        """Hang up; the server goes on."""
        if self._owner is not None:
            self._owner.close()

    @property
    def owner(self) -> OwnerDriver:
        """The owner driver. Raises SideError before `open` made it."""
        if self._owner is None:
            raise SideError(f"the {self.name} ({self.folder}): the PF was not reached")
        return self._owner

    def _attach(self, patience: float) -> OwnerDriver:
        path = self.folder / "pf.sock"
        try:
            return OwnerDriver.open(
                path,
                context_opcodes=self._opcodes,
                timeout=COMMAND_SECONDS,
                negotiation_timeout=patience,
            )
        except ServerUnreachableError as error:
            raise SideError(
                f"no server listens on {path}: start vfu-server there, or name another folder"
            ) from error
        except ServerBusyError as error:
            raise SideError(
                f"{path} is in use, and a move needs the PF to itself: end the guest or owner that has it"
            ) from error

    def check_source(self, vf: int) -> list[Field]:
        """The VF's common fields, for `check_destination`. Raises SideError unless it can be moved."""
        self._check(vf, range(context.MODE_GET, context.WRITE_RECORD_STOP + 1))
        if self.owner.mode_get(vf) != context.MODE_ACTIVE:
            remedy = f"vfu-owner --pf {self.folder / 'pf.sock'} mode vf{vf} active"
            raise SideError(f"VF {vf} of the {self.name} is not active: `{remedy}` makes it so")
        return self.peek(vf)

    def check_destination(self, vf: int, source: list[Field]) -> None:
        """Raise SideError unless the VF can be moved to here, as far as can be seen without writing to it."""
        self._check(vf, range(context.MODE_GET, context.CTX_DISCARD + 1))
        why = unfit(source, self.peek(vf))
        if why:
            raise self._unfit(vf, why)

    def _unfit(self, vf: int, why: list[str]) -> SideError:
        what = f"VF {vf} of the {self.name} ({self.folder})"
        return SideError(f"{what} cannot take the source's state: {'; '.join(why)}")

    def _check(self, vf: int, needed: range) -> None:
        existing = self.owner.sriov.enabled
        if vf > existing:
            raise SideError(
                f"the {self.name} has no VF {vf}: "
                + (f"VFs 1 to {existing} exist" if existing else "VF Enable is off")
            )
        missing = [
            self._opcodes + number for number in needed if self._opcodes + number not in self.owner.commands
        ]
        if missing:
            listed = ", ".join(f"{opcode:#x}" for opcode in missing)
            raise SideError(f"the {self.name} lacks the commands {listed}: see its --context-opcodes")

    def peek(self, vf: int) -> list[Field]:
        """The common fields of a VF's present context."""
        owner = self.owner
        owner.context_discard(vf)
        room = owner.device.memory.allocate(FIRST_LOOK)
        try:
            size, _ = owner.context_read_into(vf, room)
            return common_part(memoryview(room.view[:size].tobytes()))
        finally:
            owner.device.memory.free(room)
            owner.context_discard(vf)

    def read_first(self, vf: int) -> list[Bytes]:
        """Read the whole context of a running VF. The one that `freeze_and_read` reads may build on it."""
        self.owner.context_discard(vf)
        return list(self.owner.context_read(vf))

    def prepare(self, vf: int, written: WrittenContext, first: list[Bytes]) -> None:
        """Freeze a VF, note how it was, and write a first context of the source's VF.

        Raises SideError with the differences when it does not take it.
        """
        owner = self.owner
        owner.context_discard(vf)
        owner.mode_set(vf, context.MODE_FREEZE)
        written.found = list(owner.context_read(vf))
        try:
            owner.context_write(vf, first)
        except AdminError as error:
            why = unfit(common_part(memoryview(first[0][:FIRST_LOOK].tobytes())), self.peek(vf))
            raise self._unfit(vf, why or ["the server's log says more"]) from error

    def start_record(self, vf: int) -> None:
        """Begin to record what the VF writes."""
        self.owner.write_record_start(vf)

    def stop(self, vf: int) -> None:
        """Have the VF finish what it began, and stop. Raises SideError when that takes too long."""
        connection = self.owner.device.connection
        connection.timeout, patience = STOP_SECONDS, connection.timeout
        try:
            self.owner.mode_set(vf, context.MODE_STOP, timeout=STOP_SECONDS)
        except TimeoutError as error:
            # The command waits at the head of the admin queue until its owner leaves; `resume` comes back.
            self.owner.close()
            self._owner = None
            raise SideError(
                f"VF {vf} of the {self.name} ({self.folder}) does not finish what it began within"
                f" {STOP_SECONDS:g} s: look at the server, and at its disk"
            ) from error
        finally:
            connection.timeout = patience

    def written_pages(self, vf: int) -> set[int]:
        """The guest addresses of all pages that a stopped VF wrote."""
        pages: set[int] = set()
        left = 1
        while left:
            records, left = self.owner.write_record_read(vf)
            for record in records:
                start, length = int(record["address"]), int(record["length"])
                pages.update(range(start & ~0xFFF, start + length, 0x1000))
        return pages

    def freeze_and_read(self, vf: int) -> list[Bytes]:
        """Freeze a stopped VF and read its context: after `read_first`, of a disk only what changed."""
        self.owner.mode_set(vf, context.MODE_FREEZE)
        return list(self.owner.context_read(vf))

    def write_context(self, vf: int, pieces: list[Bytes]) -> None:
        """Write the context of the move, which may build on the one of `prepare`.

        Raises SideError where the VF does not take it, as when its disk is not what `prepare` left.
        """
        try:
            self.owner.context_write(vf, pieces)
        except AdminError as error:
            raise SideError(
                f"VF {vf} of the {self.name} took the source's first context, and does not take the last one:"
                " its server's log says why"
            ) from error

    def activate(self, vf: int) -> None:
        """Have the VF run."""
        self.owner.mode_set(vf, context.MODE_ACTIVE)

    def mode(self, vf: int) -> int:
        """The mode of a VF."""
        return self.owner.mode_get(vf)

    def check_active(self, vf: int) -> None:
        """Raise SideError unless the VF is active."""
        if self.mode(vf) != context.MODE_ACTIVE:
            raise SideError(f"VF {vf} of the {self.name} ({self.folder}) is not active any more")

    def check_runs(self, vf: int, status: int) -> None:
        """Raise SideError unless the VF is active with this device status: it may find its rings unfit."""
        self.check_active(vf)
        what = f"VF {vf} of the {self.name} ({self.folder})"
        found = _status(self.peek(vf))
        if found != status:
            raise SideError(
                f"{what} has device status {found:#x}, and had {status:#x} at the source: see its log,"
                " and whether its QEMU shares the guest's memory"
            )

    def resume(self, vf: int) -> None:
        """Have a VF of the source run as before the move. A server that stands still is waited for."""
        if self._owner is None:
            self._owner = self._attach(COMMAND_SECONDS)
        self.owner.mode_set(vf, context.MODE_ACTIVE)
        self.owner.write_record_stop(vf)

    def restore(self, vf: int, written: WrittenContext) -> None:
        """Give a VF of the destination its former context and mode. It finishes what it began first."""
        owner = self.owner
        if written.mode is None:
            return
        # The guest stands still: a server that does not answer at all is not waited for as long as a command.
        owner.device.connection.device_info(timeout=STOP_SECONDS)
        owner.mode_set(vf, context.MODE_FREEZE)
        owner.context_discard(vf)
        if written.found is not None:
            owner.context_write(vf, written.found)
        elif written.forgotten:
            owner.context_write(vf, as_reset(self.peek(vf)))
        owner.mode_set(vf, written.mode)

    def release(self, vf: int) -> None:
        """Reset a frozen VF whose guest runs elsewhere, and have it active for the next one, unless it is."""
        self.owner.write_record_stop(vf)
        if self.owner.mode_get(vf) == context.MODE_ACTIVE:
            return
        self.owner.context_write(vf, as_reset(self.peek(vf)))
        self.owner.mode_set(vf, context.MODE_ACTIVE)


def status_in(pieces: list[Bytes]) -> int:
    """The device status in a context."""
    return _status(common_part(memoryview(pieces[0][:FIRST_LOOK].tobytes())))


def _status(fields: list[Field]) -> int:
    common = next(field.value for field in fields if field.type == context.COMMON_CFG)
    return int(np.frombuffer(common, context.COMMON_CFG_VALUE)[0]["device_status"])
