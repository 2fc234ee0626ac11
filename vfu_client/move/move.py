"""The move of a running guest, with its VFs, from one QEMU and its servers to another.

QEMU copies RAM and CPUs with its own `migrate`. What it leaves out comes from here: the VFs' state, the PCI
registers that QEMU keeps for them, and the memory that the VFs wrote while QEMU copied it. The guest
stands still from QEMU's STOP at the source to its RESUME at the destination. `report.STEPS` names what
happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from typing import Any

from vfu_client.move.journal import Journal
from vfu_client.move.moved_vf import MovedVf
from vfu_client.move.pci_state import PciState
from vfu_client.move.pf import Former, Pf, SideError
from vfu_client.move.ram_channel import RamChannel, UnixChannel
from vfu_client.move.report import MoveError, Report, Step
from vfu_client.move.side import Side, reason
from vfu_client.move.way_back import AT_REST, WayBack
from vfu_client.qemu.address import Address
from vfu_client.qemu.running import QemuError
from vfu_client.vfio.pci import Capability

DOWNTIME_LIMIT_MS = 20
# What QEMU takes.
DOWNTIME_LIMIT_MOST_MS = 2_000_000
# What remains of RAM is sent while the guest stands still; QEMU's default of 128 MiB/s is made for a network.
MAX_BANDWIDTH = 16 << 30
# A guest that writes faster than the limit allows for gets twice the limit after each of these.
PATIENCE_SECONDS = 3.0
# Below this, a guest switches RAM and ROM on and off (a PC's PAM registers and SMRAM).
LOW_MEMORY = 1 << 20


class Move:
    """One move; `run` it once. Not for several at a time on one QEMU or server.

    `before_step` is called with the name of each step when it begins, and what it raises counts as a failure
    of that step. `say` gets a line for people now and then; what it raises is ignored.
    """

    def __init__(
        self,
        source: Side,
        destination: Side,
        vfs: Sequence[MovedVf],
        *,
        ram: RamChannel | None = None,
        timeout: float = 120.0,
        downtime_limit_ms: int = DOWNTIME_LIMIT_MS,
        before_step: Callable[[str], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        self.source = source
        self.destination = destination
        self.vfs = list(vfs)
        self.timeout = timeout
        self.downtime_limit_ms = downtime_limit_ms
        self.report = Report(dialect=source.dialect)
        self._ram_channel = ram
        self._before_step = before_step
        self._listener = say
        self._start = self._wall = 0.0
        self._step_name = "check"
        self._task: asyncio.Task[None] | None = None
        self._cancelled = False
        self._going_back = False
        self._continued = self._arrived = self._asked = False
        self._settled = True
        """Whether a recovery would find nothing to do after a failure."""
        self._way_back = WayBack(source, destination, self.report.warnings, timeout)
        self._devices: list[tuple[str, str]] = []
        self._addresses: list[Address] = []
        self._journal: Journal | None = None
        self._likely: dict[str, Sequence[Capability]] = {}
        """Where the VFs of a server of the source probably have their PCI capabilities."""
        self._functions: list[PciState] = []
        self._statuses: dict[MovedVf, int] = {}
        self._ram: list[range] = []

    # -- life

    async def run(self) -> Report:
        """Make the move. Raises MoveError; cancellation, here or by `cancel`, is a failure like any other.

        A failure leaves the guest running at the source, as if nothing had happened. Only where the
        destination does not say whether the guest runs there, nothing more is touched, and the message tells
        what to do.
        """
        self._start, self._wall = time.monotonic(), time.time()
        self.report.began = self._start
        self._task = asyncio.ensure_future(self._go())
        done = False
        try:
            await self._task
            done = True
        except (Exception, asyncio.CancelledError) as error:  # whatever went wrong, the guest must run again
            if not self._arrived:
                failure = await self._failed(error)
                done = self._settled
                raise failure from error
            self.report.warnings.append(f"after the move: {reason(error)}")
            done = True
        finally:
            self._end_journal(done)
            for side in (self.source, self.destination):
                await self._way_back.attempt(side.close())
        return self.report

    def cancel(self) -> bool:
        """Give the move up and go back; False where it is too late for that, or it goes back already."""
        if self._task is None or self._continued or self._going_back:
            return False
        self._cancelled = True
        return self._task.cancel()

    def _say(self, line: str) -> None:
        """Tell people; whether they can hear it is nothing to the move, nor to the way back."""
        if self._listener is not None:
            with contextlib.suppress(Exception):
                self._listener(line)

    async def _go(self) -> None:
        self._journal = Journal.begin()
        self._way_back.keep = self._keep
        ram = self._ram_channel or UnixChannel(self._journal.folder / "ram.sock")
        ram.check()
        await self._check()
        await self._prepare(ram)
        await self._copy_ram(ram)
        await _together(self._stop_vfs(), self._read_pci())
        await _together(self._move_machine(), self._move_contexts())
        await self._activate()
        await self._continue()
        await self._release()

    def _keep(self, notes: dict[str, Any]) -> None:
        """Put the notes of the way back into the journal."""
        assert self._journal is not None, "there is one before anything is noted"
        facts = {
            "source": self.source.plain(),
            "destination": self.destination.plain(),
            "context_opcodes": self.source.context_opcodes,
            "dialect": self.source.dialect,
            "vfs": [
                [[vf.source.number, vf.source.server], [vf.destination.number, vf.destination.server]]
                for vf in self.vfs
            ],
        }
        self._journal.write(facts | notes)

    def _end_journal(self, done: bool) -> None:
        """Remove it, unless there is something left for a recovery to do."""
        if self._journal is None:
            return
        if done:
            self._journal.remove()
        else:
            self._journal.close()

    @contextlib.asynccontextmanager
    async def _step(self, name: str) -> AsyncIterator[None]:
        """Put a step into the report, whether or not it succeeds; a failure gets its name as a note."""
        self._step_name = name
        start = time.monotonic() - self._start
        try:
            if not (self._going_back or self._continued):
                if self._cancelled and self._task is not None:
                    # For a cancellation that was lost in what the task waited for.
                    self._task.cancel()
                    await asyncio.sleep(0)
                if self._before_step is not None:
                    self._before_step(name)
            yield
        except Exception as error:
            error.add_note(name)
            raise
        finally:
            end = time.monotonic() - self._start
            self.report.steps.append(Step(name, start, end, self._going_back))

    async def _each(self, work: Callable[[MovedVf], Coroutine[Any, Any, None]]) -> None:
        """For each VF: those of one server of the source in turn, all servers at once."""

        async def in_turn(vfs: Sequence[MovedVf]) -> None:
            for vf in vfs:
                await work(vf)

        servers: dict[str, list[MovedVf]] = {}
        for vf in self.vfs:
            servers.setdefault(vf.source.server, []).append(vf)
        await _together(*map(in_turn, servers.values()))

    # -- while the guest runs

    async def _check(self) -> None:
        async with self._step("check"):
            await _together(self.source.open(), self.destination.open())
            await self._check_machines()
            for vf in self.vfs:
                here = await self.source.device(vf.source, vf.source_device)
                there = await self.destination.device(vf.destination, vf.destination_device)
                if await self.source.qemu.place(here) != await self.destination.qemu.place(there):
                    raise QemuError(
                        f"device {there} of the destination is not on the same bus and slot as {here} of the"
                        " source: start the destination with the source's options"
                    )
                self._devices.append((here, there))
            left = set(await self.source.qemu.devices()) - {here for here, _ in self._devices}
            if left:
                raise QemuError(
                    f"the source has other vfio-user devices too ({', '.join(sorted(left))}), and QEMU would"
                    " leave their state behind: name their VFs too, or unplug them"
                )
            for vf in self.vfs:
                fields = await self.source.call(vf.source, Pf.check_source)
                await self.destination.call(vf.destination, Pf.check_destination, fields)

    async def _check_machines(self) -> None:
        source, destination = self.source.qemu, self.destination.qemu
        status = await source.status()
        if status != "running":
            raise QemuError(
                f"the guest is {status!r} at the source: only a running guest moves (where a move was killed,"
                " `vfu-migrate --recover` has it run)"
            )
        status = await destination.status()
        if status != "inmigrate":
            raise QemuError(
                f"the destination is {status!r}: start it with the source's options and -incoming defer"
            )
        status = await source.migration()
        if status not in AT_REST:
            raise QemuError(
                f"a migration of the source is under way ({status}): wait for it, or `migrate_cancel`, or"
                " `vfu-migrate --recover` where a move was killed"
            )
        here_is, there_is = await source.machine(), await destination.machine()
        if here_is != there_is:
            raise QemuError(
                f"the source is a {here_is}, the destination a {there_is}: start it with the source's"
                " -machine, and the version in its name"
            )
        here, there = await source.memory_size(), await destination.memory_size()
        if here != there:
            raise QemuError(f"the source has {here >> 20} MiB of memory, the destination {there >> 20} MiB")

    async def _prepare(self, ram: RamChannel) -> None:
        async with self._step("prepare"):
            self._addresses = await self.source.qemu.addresses([here for here, _ in self._devices])
            places = zip((vf.source for vf in self.vfs), self._addresses, strict=True)
            self._way_back.note(places=dict(places))
            self._ram = await self.source.qemu.ram()
            await self._each(self._prepare_vf)
            await self._way_back.set_up_migration(
                {
                    "downtime-limit": self.downtime_limit_ms,
                    "max-bandwidth": MAX_BANDWIDTH,
                    **ram.parameters(),
                },
                ram.parameters_there(),
            )
            await self._each(self._start_record)

    async def _prepare_vf(self, vf: MovedVf) -> None:
        first = await self.source.call(vf.source, Pf.read_first)
        former = Former(await self.destination.call(vf.destination, Pf.mode))
        self._way_back.note(contexts=self._way_back.contexts | {vf.destination: former})
        await self.destination.call(vf.destination, Pf.prepare, former, first)
        if vf.source.server not in self._likely:
            self._likely[vf.source.server] = await self.source.call(vf.source, Pf.capabilities)

    async def _start_record(self, vf: MovedVf) -> None:
        self._way_back.note(recorded=[*self._way_back.recorded, vf.source])
        await self.source.call(vf.source, Pf.start_record)

    async def _copy_ram(self, ram: RamChannel) -> None:
        async with self._step("copy-ram"):
            self._say("copying the guest's memory while it runs")
            self._way_back.note(incoming=True)
            # With this, the destination waits for `cont` when it has everything.
            await self.destination.qemu.execute("stop")
            uri = await ram.listen(self.destination.qemu)
            await self.source.qemu.execute("migrate", {"uri": uri})
            await self._explained(self._converge())
            self._note_times()

    async def _converge(self) -> None:
        """Wait until QEMU has stopped the guest, and allow it to stop it for longer where it must."""
        limit, deadline = self.downtime_limit_ms, time.monotonic() + self.timeout
        while True:
            patience = min(PATIENCE_SECONDS, max(deadline - time.monotonic(), 0.1))
            try:
                await self.source.qemu.await_migration("pre-switchover", patience)
                break
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
            limit = min(limit * 2, DOWNTIME_LIMIT_MOST_MS)
            await self.source.qemu.execute("migrate-set-parameters", {"downtime-limit": limit})
            self._say(f"the guest writes its memory fast: the rest of it may now take {limit} ms")

    # -- while the guest stands still

    async def _stop_vfs(self) -> None:
        async with self._step("stop-vfs"):
            await self._each(lambda vf: self.source.call(vf.source, Pf.stop))

    async def _read_pci(self) -> None:
        async with self._step("read-pci"):
            # With the guest at rest QEMU asks nothing more of the VFs: none is lost that is there now.
            for vf, address in self._way_back.places.items():
                self._functions.append(await self.source.read_pci(vf, address, self._likely[vf.server]))

    async def _mark_pages(self) -> None:
        """Only now: a page must not change between the read and the write that mark it."""
        async with self._step("mark-pages"):
            pages: set[int] = set()

            async def read_record(vf: MovedVf) -> None:
                pages.update(await self.source.call(vf.source, Pf.written_pages))

            await self._each(read_record)
            if any(page < LOW_MEMORY or not self._is_ram(page) for page in pages):
                # The guest may have changed what is RAM there since; asking takes some milliseconds.
                self._ram = await self.source.qemu.ram()
            marked = sorted(filter(self._is_ram, pages))
            self.report.pages = len(marked)
            await self.source.outside(self.source.qemu.qtest.touch, marked)

    def _is_ram(self, page: int) -> bool:
        return any(page in part for part in self._ram)

    async def _move_contexts(self) -> None:
        async with self._step("move-contexts"):
            await self._each(self._move_context)

    async def _move_context(self, vf: MovedVf) -> None:
        state = await self.source.call(vf.source, Pf.read_last)
        self.report.context_bytes += sum(len(piece) for piece in state)
        self._statuses[vf] = await self.source.call(vf.source, Pf.status_in, state)
        await self.destination.call(vf.destination, Pf.write_last, state)

    async def _move_machine(self) -> None:
        await self._mark_pages()
        await self._finish_ram()
        await self._write_pci()

    async def _finish_ram(self) -> None:
        async with self._step("finish-ram"):
            await self.source.qemu.execute("migrate-continue", {"state": "pre-switchover"})
            await self._explained(self.source.qemu.await_migration("completed", self.timeout))
            await self._explained(self.destination.qemu.await_migration("completed", self.timeout))

    async def _write_pci(self) -> None:
        async with self._step("write-pci"):
            await _together(self._check_places(), self._write_functions())

    async def _check_places(self) -> None:
        there = await self.destination.qemu.addresses([there for _, there in self._devices])
        for function, address in zip(self._functions, there, strict=True):
            if function.address != address:
                raise QemuError(f"a VF is at {address} now, at {function.address} when the move began")

    async def _write_functions(self) -> None:
        """What is written to another function is lost with its QEMU, which the way back ends."""
        for function in self._functions:
            await self.destination.write_pci(function)

    async def _activate(self) -> None:
        async with self._step("activate"):
            await self._each(lambda vf: self.destination.call(vf.destination, Pf.activate))

    async def _continue(self) -> None:
        async with self._step("continue"):
            # From `cont` on there may be no way back, so see that it can be carried out.
            await _together(self._check_waits(), self._check_there())
            await self._ask_whether_ready()
            self._way_back.note(continued=True)
            self._continued = True
            try:
                await self.destination.qemu.execute("cont")
            except QemuError:
                # Where it does not say, `_continued` stays, and nothing is undone.
                with contextlib.suppress(QemuError, SideError):
                    status = await self._goes_on()
                    self._arrived = status == "running"
                    # A guest that ran, and does not any more, has written to its disk.
                    self._continued = status != "paused"
                if not self._arrived:
                    if not self._continued:
                        self._way_back.note(continued=False)
                    raise
            self._arrived = True
            self._note_times()

    async def _ask_whether_ready(self) -> None:
        """Have the destination's side leave all as it is from now on, should it be cut off.

        Where it does not answer, nobody knows whether it does so or goes back by itself. The guest was not
        told to go on there, but its VFs may run: it is asked anew, and told to go back.
        """
        if not self.destination.elsewhere:
            return
        self._way_back.note(asked=True)
        try:
            await self.destination.ready()
        except SideError:
            if self.destination.cut is not None:
                self._say(f"{self.destination.cut}; telling it that the guest goes on here")
                self._asked = True
                # Its QEMU may be gone, which is as well.
                await self.destination.open_what_is_there()
                self._asked = self.destination.cut is not None
            raise

    async def _goes_on(self) -> str:
        """What became of the destination's guest, whose `cont` was not answered; one that waits goes on."""
        if self.destination.cut is not None:
            self._say(f"{self.destination.cut}; asking anew where the guest runs")
            await self.destination.open_again()
            if await self.destination.qemu.status() == "paused":
                await self._check_there()
                await self.destination.qemu.execute("cont")
        return await self.destination.qemu.status()

    async def _check_waits(self) -> None:
        status = await self.destination.qemu.status()
        if status != "paused":
            raise QemuError(f"the destination is {status!r}, and should wait with the guest's state")

    async def _check_there(self) -> None:
        """Raise SideError unless each VF runs at the destination, and its QEMU has it."""
        there = self.destination
        runs = [there.call(vf.destination, Pf.check_runs, self._statuses[vf]) for vf in self.vfs]
        attached = [
            there.check_attached(vf.destination, function.address)
            for vf, function in zip(self.vfs, self._functions, strict=True)
        ]
        await _together(*runs, *attached)

    def _note_times(self) -> None:
        """When the guest stopped and when it went on, as QEMU said it."""
        stopped, resumed = self.source.qemu.last("STOP"), None
        if self._continued:
            resumed = self.destination.qemu.last("RESUME")
        elif self._going_back:
            resumed = self.source.qemu.last("RESUME")
        self.report.stopped = None if stopped is None else stopped - self._wall
        self.report.resumed = None if resumed is None else resumed - self._wall

    # -- after it

    async def _release(self) -> None:
        """The guest runs at the destination: what fails here is a warning."""
        async with self._step("release"):
            await self._way_back.release(self.vfs)

    async def _failed(self, error: BaseException) -> MoveError:
        """Go back, and say what happened."""
        step = next(iter(getattr(error, "__notes__", [])), self._step_name)
        why = "it was cancelled" if isinstance(error, asyncio.CancelledError) else reason(error)
        if self._continued:
            self._settled = False
            state = (
                "It is not known whether the guest runs at the destination, so nothing more was touched."
                " When its QEMU answers again, `vfu-migrate --recover` goes on from here. If the guest does"
                " not run there: end the destination QEMU, have the source's VFs run with `vfu-owner`,"
                " and `cont` the source QEMU."
            )
            return MoveError(step, why, state, source_runs=False, report=self.report)
        if self._asked:
            self._settled = False
            state = (
                "The guest stands still at the source, and the destination could not be told that it does not"
                " go on there. When that host can be reached, `vfu-migrate --recover` has it run here."
            )
            return MoveError(step, why, state, source_runs=False, report=self.report)
        if step == "check":
            return MoveError(step, why, "Nothing was touched.", source_runs=True, report=self.report)
        self._going_back = True
        self._say(f"going back, as {step} failed")
        runs = await self._way_back.go(self._step)
        self._note_times()
        state = "The guest runs at the source as before." if runs else await self._state_at_source()
        if self._way_back.incoming:
            state += " The destination QEMU had taken a part of it and was ended: start it anew to try again."
        if self.report.warnings:
            state += " On the way back: " + "; ".join(self.report.warnings)
        return MoveError(step, why, state, source_runs=runs, report=self.report)

    async def _state_at_source(self) -> str:
        """What is left of the guest there after a way back that did not succeed."""
        try:
            status = await self.source.qemu.status()
        except QemuError:
            return "The guest does not run at the source: its QEMU is gone."
        if status == "running":
            return "The guest runs at the source, but not as before."
        self._settled = False
        return f"The guest is {status!r} at the source: `vfu-migrate --recover` tries again."

    async def _explained(self, work: Coroutine[Any, Any, None]) -> None:
        """The source often knows only that the connection broke: add what the destination knows."""
        try:
            await work
        except QemuError as error:
            try:
                await self.destination.qemu.check_migration()
            except QemuError as why:
                if str(why) != str(error):
                    raise QemuError(f"{error}; {why}") from error
            raise


async def _together(*work: Coroutine[Any, Any, None]) -> None:
    """Do these at once. When one fails the others are cancelled, and the first failure is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
