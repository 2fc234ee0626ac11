"""The PF of one server of a move: what its admin queue does for the VFs there. Everything here blocks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pymodel.spec import context
from vfu_client.move.carrier import Carrier
from vfu_client.move.dialect import CONTEXT, DIALECTS
from vfu_client.move.progress import Progress, nobody
from vfu_client.owner.admin import AdminError
from vfu_client.owner.context import Field
from vfu_client.owner.owner import OwnerDriver
from vfu_client.vfio.connection import ServerBusyError, ServerUnreachableError
from vfu_client.vfio.memory import Bytes
from vfu_client.vfio.pci import Capability

NEGOTIATION_SECONDS = 3.0
COMMAND_SECONDS = 30.0
# The guest stands still while its VFs finish their requests.
STOP_SECONDS = 5.0


class SideError(Exception):
    """A server, its PF or a VF of it is not fit for the move."""


@dataclass
class Former:
    """What a VF at the destination had before it gets the source's state: mode and state, once known.

    Where a killed move did not say the state, `forgotten`, it gets that of a reset.
    """

    mode: int | None = None
    state: list[Bytes] | None = None
    forgotten: bool = False


class Pf:
    """The owner of the PF in `folder`. `name` is what messages call its server. VFs go by their numbers.

    `say` hears how far large states are.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        context_opcodes: int,
        dialect: str = CONTEXT,
        say: Callable[[str], None] = nobody,
    ) -> None:
        self.name = name
        self.folder = folder
        self._opcodes = context_opcodes
        self._dialect = dialect
        self._say = say
        self._carrier: Carrier | None = None

    def open(self) -> None:
        """Attach to the PF. Raises SideError when nobody is there or somebody else has it, and as
        `OwnerDriver.open` does.
        """
        self._attach(NEGOTIATION_SECONDS)

    def close(self) -> None:
        """Hang up; the server goes on."""
        if self._carrier is not None:
            self._carrier.owner.close()

    @property
    def carrier(self) -> Carrier:
        """What carries the VFs' state. Raises SideError before `open` made it."""
        if self._carrier is None:
            raise SideError(f"the {self.name} ({self.folder}): the PF was not reached")
        return self._carrier

    @property
    def owner(self) -> OwnerDriver:
        """The owner driver. Raises SideError before `open` made it."""
        return self.carrier.owner

    def _progress(self, what: str, vf: int) -> Progress:
        return Progress(f"{what} VF {vf} of the {self.name}", self._say)

    def _attach(self, patience: float) -> None:
        path = self.folder / "pf.sock"
        try:
            owner = OwnerDriver.open(
                path,
                context_opcodes=self._opcodes,
                timeout=COMMAND_SECONDS,
                negotiation_timeout=patience,
                # One wake-up less for each command.
                posted_writes=True,
            )
        except ServerUnreachableError as error:
            raise SideError(
                f"no server listens on {path}: start vfu-server there, or name another folder"
            ) from error
        except ServerBusyError as error:
            raise SideError(
                f"{path} is in use, and a move needs the PF to itself: end the guest or owner that has it"
            ) from error
        self._carrier = DIALECTS[self._dialect](owner)

    def check_source(self, vf: int) -> list[Field]:
        """The VF's common fields, for `check_destination`. Raises SideError unless it can be moved."""
        records = (context.WRITE_RECORD_START, context.WRITE_RECORD_READ, context.WRITE_RECORD_STOP)
        self._check_commands(vf, self.carrier.needed() | {self._opcodes + number for number in records})
        if self.owner.mode_get(vf) != context.MODE_ACTIVE:
            remedy = f"vfu-owner --pf {self.folder / 'pf.sock'} mode vf{vf} active"
            raise SideError(f"VF {vf} of the {self.name} is not active: `{remedy}` makes it so")
        self._check_obstacle(vf)
        return self.carrier.peek(vf)

    def check_destination(self, vf: int, source: list[Field]) -> None:
        """Raise SideError unless the VF can be moved to here, as far as can be seen without writing to it."""
        self._check_commands(vf, self.carrier.needed())
        self._check_obstacle(vf)
        why = self.carrier.unfit(source, self.carrier.peek(vf))
        if why:
            raise self._unfit(vf, why)

    def _unfit(self, vf: int, why: list[str]) -> SideError:
        what = f"VF {vf} of the {self.name} ({self.folder})"
        return SideError(f"{what} cannot take the source's state: {'; '.join(why)}")

    def _check_obstacle(self, vf: int) -> None:
        why = self.carrier.obstacle(vf)
        if why:
            raise SideError(f"VF {vf} of the {self.name} ({self.folder}) cannot be moved so: {why}")

    def _check_commands(self, vf: int, needed: frozenset[int]) -> None:
        existing = self.owner.sriov.enabled
        if vf > existing:
            raise SideError(
                f"the {self.name} has no VF {vf}: "
                + (f"VFs 1 to {existing} exist" if existing else "VF Enable is off")
            )
        missing = sorted(needed - self.owner.commands)
        if missing:
            listed = ", ".join(f"{opcode:#x}" for opcode in missing)
            raise SideError(f"the {self.name} lacks the commands {listed}: see its --context-opcodes")

    def capabilities(self, _vf: int) -> list[Capability]:
        """Where the PF has its capabilities, and with that most likely its VFs, too."""
        return self.owner.device.function.capabilities()

    def read_first(self, vf: int) -> list[Bytes]:
        """Read the whole state of a running VF. The one that `read_last` reads may build on it."""
        return self.carrier.read(vf, self._progress("reading", vf))

    def prepare(self, vf: int, former: Former, first: list[Bytes]) -> None:
        """Freeze a VF, note how it was, and write a first state of the source's VF.

        Raises SideError with the differences when it does not take it.
        """
        self.carrier.mode_set(vf, context.MODE_FREEZE)
        former.state = self.carrier.read(vf, self._progress("keeping what is in", vf))
        try:
            self.carrier.write(vf, first, self._progress("writing", vf))
        except AdminError as error:
            why = self.carrier.unfit(self.carrier.fields(first), self.carrier.fields(former.state))
            raise self._unfit(vf, why or ["the server's log says more"]) from error

    def start_record(self, vf: int) -> None:
        """Begin to record what the VF writes."""
        self.owner.write_record_start(vf)

    def stop(self, vf: int) -> None:
        """Have the VF finish what it began, and stop. Raises SideError when that takes too long."""
        connection = self.owner.device.connection
        connection.timeout, patience = STOP_SECONDS, connection.timeout
        try:
            self.carrier.mode_set(vf, context.MODE_STOP, timeout=STOP_SECONDS)
        except TimeoutError as error:
            # The command waits at the head of the admin queue until its owner leaves; `resume` comes back.
            self.owner.close()
            self._carrier = None
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

    def read_last(self, vf: int) -> list[Bytes]:
        """Freeze a VF and read its state: after `read_first`, of a disk only what changed."""
        return self.carrier.freeze_and_read_rest(vf)

    def status_in(self, _vf: int, state: list[Bytes]) -> int:
        """The device status in a state that was read."""
        return _status(self.carrier.fields(state))

    def write_last(self, vf: int, state: list[Bytes]) -> None:
        """Write the state of the move, which may build on the one of `prepare`.

        Raises SideError where the VF does not take it, as when its disk is not what `prepare` left.
        """
        try:
            self.carrier.write(vf, state, self._progress("writing", vf))
        except AdminError as error:
            raise SideError(
                f"VF {vf} of the {self.name} took the source's first state, and does not take the last one:"
                " its server's log says why"
            ) from error

    def activate(self, vf: int) -> None:
        """Have the VF run."""
        self.carrier.mode_set(vf, context.MODE_ACTIVE)

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
        found = _status(self.carrier.peek(vf))
        if found != status:
            raise SideError(
                f"{what} has device status {found:#x}, and had {status:#x} at the source: see its log,"
                " and whether its QEMU shares the guest's memory"
            )

    def resume(self, vf: int) -> None:
        """Have a VF of the source run as before the move. A server that stands still is waited for."""
        if self._carrier is None:
            self._attach(COMMAND_SECONDS)
        self.carrier.mode_set(vf, context.MODE_ACTIVE)
        self.owner.write_record_stop(vf)

    def freeze(self, vf: int) -> None:
        """Have the VF do nothing any more, once it has finished what it began."""
        self.carrier.mode_set(vf, context.MODE_FREEZE)

    def restore(self, vf: int, former: Former) -> None:
        """Give a VF of the destination its former state and mode. It finishes what it began first."""
        if former.mode is None:
            return
        # The guest stands still: a server that does not answer at all is not waited for as long as a command.
        self.owner.device.connection.device_info(timeout=STOP_SECONDS)
        self.carrier.mode_set(vf, context.MODE_FREEZE)
        if former.state is not None:
            self.carrier.write(vf, former.state, self._progress("restoring", vf))
        elif former.forgotten:
            self.carrier.write_reset(vf)
        self.carrier.mode_set(vf, former.mode)

    def release(self, vf: int) -> None:
        """Reset a frozen VF whose guest runs elsewhere, and have it active for the next one, unless it is."""
        self.owner.write_record_stop(vf)
        if self.owner.mode_get(vf) == context.MODE_ACTIVE:
            return
        self.carrier.mode_set(vf, context.MODE_FREEZE)
        self.carrier.write_reset(vf)
        self.carrier.mode_set(vf, context.MODE_ACTIVE)


def _status(fields: list[Field]) -> int:
    common = next(field.value for field in fields if field.type == context.COMMON_CFG)
    return int(np.frombuffer(common, context.COMMON_CFG_VALUE)[0]["device_status"])
