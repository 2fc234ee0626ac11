"""The way back of a move that failed: what it has touched so far, and how that becomes as it was."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any

from vfu_client.move.moved_vf import MovedVf, Vf
from vfu_client.move.pf import Former, Pf
from vfu_client.move.plain import CONTEXTS
from vfu_client.move.qemu import CAPABILITIES, Qemu
from vfu_client.move.side import Side, attempt
from vfu_client.qemu.address import Address
from vfu_client.qemu.running import QemuError

# States of a migration in which nothing is under way.
AT_REST = ("none", "completed", "failed", "cancelled")
POLL_SECONDS = 0.005


class WayBack:
    """Notes what a move touches before it does, for `go`. What cannot be undone becomes a warning.

    `keep`, if set, gets the notes each time that there is a new one, before the thing is touched.
    """

    def __init__(self, source: Side, destination: Side, warnings: list[str], seconds: float) -> None:
        self.keep: Callable[[dict[str, Any]], None] | None = None
        self._source = source
        self._destination = destination
        self._warnings = warnings
        self._seconds = seconds
        self._settings: list[tuple[Qemu, dict[str, bool]]] = []
        self._parameters: dict[str, Any] = {}
        self._parameters_there: dict[str, Any] = {}
        self.contexts: dict[Vf, Former] = {}
        """VFs at the destination that were frozen for the source's state, and how they were found."""
        self.recorded: list[Vf] = []
        """VFs at the source that record what they write, and from some point on stand still."""
        self.places: dict[Vf, Address] = {}
        """Where the VFs are in the guest at the source."""
        self.incoming = False
        """The destination QEMU began to take the guest, and can take no other any more."""
        self.asked = False
        """The destination's side was asked to leave all as it is when it is cut off."""
        self.continued = False
        """The guest was told to go on at the destination: there may be no way back."""

    def note(self, **changes: Any) -> None:
        """Change some of the notes, and keep them all."""
        for name, value in changes.items():
            setattr(self, name, value)
        if self.keep is not None:
            self.keep(self.plain())

    def plain(self) -> dict[str, Any]:
        """The notes, for a journal; the states themselves are left out."""
        return {
            "settings": {qemu.name: found for qemu, found in self._settings},
            "parameters": self._parameters,
            "parameters_there": self._parameters_there,
            "contexts": CONTEXTS.there(self.contexts),
            "recorded": [[vf.number, vf.server] for vf in self.recorded],
            "places": [
                [vf.number, vf.server, place.bus, place.slot, place.function]
                for vf, place in self.places.items()
            ],
            "incoming": self.incoming,
            "asked": self.asked,
            "continued": self.continued,
        }

    def load(self, notes: dict[str, Any]) -> None:
        """Take notes over that `plain` gave. Raises KeyError, TypeError or ValueError for others."""
        qemus = {side.qemu.name: side.qemu for side in (self._source, self._destination)}
        self._settings = [(qemus[name], dict(found)) for name, found in notes["settings"].items()]
        self._parameters = dict(notes["parameters"])
        self._parameters_there = dict(notes["parameters_there"])
        self.contexts = CONTEXTS.back(notes["contexts"])
        self.recorded = [Vf(number, server) for number, server in notes["recorded"]]
        self.places = {Vf(number, server): Address(*place) for number, server, *place in notes["places"]}
        self.incoming, self.continued = bool(notes["incoming"]), bool(notes["continued"])
        self.asked = bool(notes["asked"])

    async def set_up_migration(self, parameters: dict[str, Any], there: dict[str, Any]) -> None:
        """Give both QEMUs the capabilities of a move, and their parameters. Raises QemuError."""
        qemus = (self._source.qemu, self._destination.qemu)
        settings = [(qemu, await qemu.capabilities()) for qemu in qemus]
        self.note(
            _settings=settings,
            _parameters=await self._source.qemu.parameters(parameters),
            _parameters_there=await self._destination.qemu.parameters(there) if there else {},
        )
        for qemu in qemus:
            await qemu.set_capabilities(CAPABILITIES)
        await self._source.qemu.set_parameters(parameters)
        if there:
            await self._destination.qemu.set_parameters(there)

    async def restore_settings(self, *, destination: bool) -> None:
        """Give the QEMUs their capabilities and parameters back."""
        for qemu, found in self._settings:
            if destination or qemu is not self._destination.qemu:
                await self.attempt(qemu.set_capabilities(found))
        if self._parameters_there and destination:
            await self.attempt(self._destination.qemu.set_parameters(self._parameters_there))
        if self._parameters:
            await self.attempt(self._source.qemu.set_parameters(self._parameters))

    async def release(self, vfs: Sequence[MovedVf]) -> None:
        """The guest runs at the destination: give back the source's VFs, as after a reset, and settings."""
        for vf in vfs:
            await self.attempt(self._source.call(vf.source, Pf.release))
        await self.restore_settings(destination=True)

    async def attempt(self, work: Coroutine[Any, Any, Any]) -> bool:
        """See `side.attempt`; a failure becomes one of the warnings."""
        return await attempt(work, self._warnings)

    async def go(self, step: Callable[[str], AbstractAsyncContextManager[None]]) -> bool:
        """Undo all; whether the guest runs at the source as before, with all of its VFs.

        The destination's VFs must do nothing any more before the source goes on: they share disks. Its QEMU
        waits with a guest that nobody continues, and may be slow to answer when its server is gone.
        """
        runs = True
        await self._source.settle()
        await self._destination.settle()
        cut = await self._is_cut_off()
        if self.contexts and not cut:
            async with step("restore-destination"):
                await asyncio.gather(*(self._restore(vf, found) for vf, found in self.contexts.items()))
            cut = await self._is_cut_off()
        if self.recorded:
            async with step("activate-source"):
                runs &= all(await asyncio.gather(*map(self._resume, self.recorded)))
        if self.recorded or self.incoming:
            async with step("continue-source"):
                # While it stands still, and after the VFs' servers have answered.
                attached = not runs or await self._all_attached()
                runs &= attached & await self.attempt(self._continue_source())
        if self.incoming and not cut:
            async with step("end-destination"):
                # It has a part of the guest, or all of it, which must not run there by mistake.
                with contextlib.suppress(QemuError):
                    await self._destination.qemu.execute("quit")
        await self.restore_settings(destination=not (self.incoming or cut))
        return runs

    async def _is_cut_off(self) -> bool:
        """Whether the destination's side is out of reach; what it touched its agent puts right, then."""
        if self._destination.cut is None or not (self.contexts or self.incoming):
            return False
        await self._destination.wait_until_quiet()
        cut = self._destination.cut
        if cut is not None:
            self._warnings.append(
                f"{cut}; the agent there puts right what the move touched, or `vfu-migrate --recover` on that"
                " host does"
            )
        return cut is not None

    async def _restore(self, vf: Vf, found: Former) -> bool:
        return await self.attempt(self._destination.call(vf, Pf.restore, found))

    async def _resume(self, vf: Vf) -> bool:
        return await self.attempt(self._source.call(vf, Pf.resume))

    async def _all_attached(self) -> bool:
        """Whether the source QEMU still has every VF: one whose server stood still for long is lost to it."""
        if not await self.attempt(self._source.qemu.execute("stop")):
            return False
        looks = [self.attempt(self._source.check_attached(*place)) for place in self.places.items()]
        return all([await look for look in looks])

    async def _continue_source(self) -> None:
        """End the migration, whatever its state, and have the guest run. Raises QemuError."""
        qemu = self._source.qemu
        deadline = time.monotonic() + self._seconds
        if await qemu.migration() not in AT_REST:
            await qemu.execute("migrate_cancel")
        # Not by events: their connection may have been in the middle of anything.
        while await qemu.migration() not in AT_REST and time.monotonic() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(POLL_SECONDS)
        # QEMU itself has a guest run again whose migration was cancelled; after a completed one it does not.
        while (status := await qemu.status()) != "running":
            if time.monotonic() > deadline:
                raise QemuError(f"{qemu.name}: the guest is {status!r}: try `cont`")
            with contextlib.suppress(QemuError):
                await qemu.execute("cont")
