"""The recovery of a move that was killed: its guest goes on at the source, or where it got to."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from vfu_client.move.agent import AgentNotes, put_right_after
from vfu_client.move.dialect import DIALECTS
from vfu_client.move.journal import Journal, JournalError
from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.pf import Pf, SideError
from vfu_client.move.remote import RemoteSide
from vfu_client.move.side import Side, reason
from vfu_client.move.way_back import WayBack
from vfu_client.qemu.qtest import QTestError
from vfu_client.qemu.running import QemuError

SECONDS = 120.0
"""For what the source QEMU may take to end its migration."""


class RecoveryError(Exception):
    """Not all is as it should be; the journal stays. The message says what is not, and what to do."""


class Recovery:
    """One recovery; `run` it once."""

    def __init__(self, journal: Journal) -> None:
        """Raises JournalError."""
        self._journal = journal
        self._notes = journal.read()
        self.warnings: list[str] = []
        self._agent: AgentNotes | None = None
        if self._notes:
            try:
                if "agent" in self._notes:
                    self._agent = AgentNotes.load(self._notes)
                else:
                    self._set_up()
            except (LookupError, TypeError, ValueError) as error:
                raise JournalError(f"{journal.folder}: the journal is damaged: {error!r}") from error

    def _set_up(self) -> None:
        base, dialect = int(self._notes["context_opcodes"]), self._notes["dialect"]
        if dialect not in DIALECTS:
            raise ValueError(f"no dialect {dialect!r}")
        self.source, self.destination = (
            _side(name, self._notes[name], base, dialect) for name in ("source", "destination")
        )
        self._vfs = [
            MovedVf(Vf(here, there_name), Vf(there, name))
            for (here, there_name), (there, name) in self._notes["vfs"]
        ]
        self._way_back = WayBack(self.source, self.destination, self.warnings, SECONDS)
        self._way_back.load(self._notes)

    @property
    def about(self) -> dict[str, Any]:
        """Which move it is: the monitors of its QEMUs, empty where nothing had been touched."""
        if self._agent is not None:
            return {"destination": self._agent.about["qmp"]}
        return {end: self._notes[end]["qmp"] for end in ("source", "destination") if end in self._notes}

    async def run(self) -> str:
        """Put things right and remove the journal; where the guest runs: `source`, `destination`, or empty.

        Empty where the move had touched nothing; `another host` where an agent of a move from there was
        killed here: its other side says where the guest runs. Raises RecoveryError.
        """
        where = ""
        if self._agent is not None:
            left = await put_right_after(self._agent)
            if left:
                raise RecoveryError("; ".join(left))
            where = "another host"
        elif self._notes:
            try:
                where = await self._recovered()
            finally:
                for side in (self.source, self.destination):
                    with contextlib.suppress(Exception):
                        await side.close()
        self._journal.remove()
        return where

    async def _recovered(self) -> str:
        source_gone = await self.source.open_what_is_there()
        gone = "; ".join(await self.destination.open_what_is_there())
        status = await self._status(self.destination)
        if self._way_back.continued and status is None:
            raise RecoveryError(
                f"the guest may have gone on at the destination, whose QEMU does not answer ({gone}). If it"
                " ran there it has written to its disk, and must not go on at the source. If you know that it"
                " never ran: have the source's VFs run with `vfu-owner`, `migrate_cancel` and `cont` the"
                f" source QEMU, and remove {self._journal.folder}"
            )
        if self._way_back.continued:
            await self._go_on(status)
            return "destination"
        if self._way_back.asked and self.destination.cut is not None:
            raise RecoveryError(
                f"the other host is to be told that the guest does not go on there, and can't be ({gone})."
                " Run this again when it can be reached; or end its QEMU, have the source's VFs run with"
                " `vfu-owner`, `migrate_cancel` and `cont` the source QEMU, and remove"
                f" {self._journal.folder}"
            )
        if await self._status(self.source) is None:
            self.warnings += source_gone
        runs = await self._way_back.go(_no_step)
        if not runs:
            status = await self._status(self.source)
            if status in {None, "running"}:
                self._journal.remove()  # no other try will do more
            runs_so = {None: "is gone", "running": "runs at the source, but not as before"}
            state = runs_so.get(status, f"is {status!r} at the source")
            raise RecoveryError("; ".join([f"the guest {state}", *self.warnings]))
        return "source"

    async def _go_on(self, status: str | None) -> None:
        """The destination has all of the guest, and may be running it: see that it does, and end the move."""
        if status != "running":
            try:
                for vf in self._vfs:
                    await self.destination.call(vf.destination, Pf.check_active)
                    await self.destination.check_attached(vf.destination, self._way_back.places[vf.source])
                await self.destination.qemu.execute("cont")
            except (SideError, QemuError, QTestError) as error:
                raise RecoveryError(
                    f"the guest is {status!r} at the destination and cannot go on there: {reason(error)}"
                ) from error
        await self._way_back.release(self._vfs)

    async def _status(self, side: Side) -> str | None:
        try:
            return await side.qemu.status()
        except QemuError:
            return None


def _side(name: str, notes: dict[str, Any], base: int, dialect: str) -> Side:
    return (RemoteSide if "command" in notes else Side).load(name, notes, base, dialect)


@contextlib.asynccontextmanager
async def _no_step(_name: str) -> AsyncIterator[None]:
    yield
