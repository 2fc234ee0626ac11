"""The move of a running guest, with its VFs, from one QEMU and server to another.

QEMU copies RAM and CPUs with its own `migrate`; what it leaves out comes from here: the VFs' contexts, the PCI registers
that QEMU keeps for them, and the memory that the VFs wrote while QEMU copied it. The guest stands still from
QEMU's STOP at the source to its RESUME at the destination; `STEPS` says what happens in between.
"""

from __future__ import annotations

import asyncio
import contextlib
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vfu_client.owner import CONTEXT_OPCODES
from vfu_client.pci_state import Address, PciState
from vfu_client.qemu import CAPABILITIES, Qemu, QemuError, same_socket
from vfu_client.side import FAILURES, Side, WrittenContext, reason

STEPS = {
    "check": "look whether the move can be made; nothing is touched",
    "prepare": "freeze the VFs at the destination, try them with a first context, begin to record what the VFs write",
    "copy-ram": "copy the guest's memory while it runs, until QEMU stops the guest",
    "stop-vfs": "the VFs finish what they began, and stop",
    "read-pci": "read BARs and MSI-X tables, and which addresses are RAM",
    "mark-pages": "have QEMU send again what the VFs wrote since the copy began",
    "move-contexts": "freeze the VFs, read their contexts, write them at the destination",
    "finish-ram": "copy the rest of the memory, the CPUs and QEMU's own devices",
    "write-pci": "write BARs, command registers and MSI-X tables at the destination",
    "activate": "the VFs run at the destination",
    "continue": "the guest runs at the destination",
    "release": "give the VFs at the source back, as after a reset",
}
"""The steps of a move by name, in order; stop-vfs runs beside read-pci, and move-contexts beside finish-ram."""

STOPPED_STEPS = tuple(STEPS)[3:11]
"""Those during which the guest stands still."""

DOWNTIME_LIMIT_MS = 20
# What remains of RAM is sent while the guest stands still; the default of 128 MiB/s is made for a network.
MAX_BANDWIDTH = 16 << 30
# A guest that writes faster than that limit allows gets twice the limit after each of these.
PATIENCE_SECONDS = 3.0


@dataclass(frozen=True)
class MovedVf:
    """One VF of the guest: its number at the source and at the destination, and its device id in each QEMU.

    An id that is None is found by the socket that QEMU's device is connected to.
    """

    source: int
    destination: int
    source_device: str | None = None
    destination_device: str | None = None


@dataclass(frozen=True)
class Step:
    """A step that was made, in seconds since the move began; `stepped_back` for those of a way back."""

    name: str
    start: float
    end: float
    stepped_back: bool = False

    @property
    def milliseconds(self) -> float:
        """Its duration."""
        return round((self.end - self.start) * 1e3, 3)


@dataclass
class Report:
    """What a move did. `stopped` and `resumed` are seconds since it began, None where the guest never stood still."""

    steps: list[Step] = field(default_factory=list)
    stopped: float | None = None
    resumed: float | None = None
    pages: int = 0
    context_bytes: int = 0
    warnings: list[str] = field(default_factory=list)

    @property
    def downtime_ms(self) -> float | None:
        """How long the guest stood still, by QEMU's own clock readings; None unless it stood still and runs again."""
        if self.stopped is None or self.resumed is None:
            return None
        return round((self.resumed - self.stopped) * 1e3, 3)

    def plain(self) -> dict[str, Any]:
        """For programs."""
        return {
            "downtime_ms": self.downtime_ms,
            "steps": {step.name: step.milliseconds for step in self.steps},
            "timeline": [
                {
                    "name": step.name,
                    "start_ms": round(step.start * 1e3, 3),
                    "end_ms": round(step.end * 1e3, 3),
                    "back": step.stepped_back,
                }
                for step in self.steps
            ],
            "stopped_at_ms": None if self.stopped is None else round(self.stopped * 1e3, 3),
            "resumed_at_ms": None if self.resumed is None else round(self.resumed * 1e3, 3),
            "pages_sent_again": self.pages,
            "context_bytes": self.context_bytes,
            "warnings": self.warnings,
        }


class MoveError(Exception):
    """A move that was not made. `step` is where it failed; `source_runs` whether the guest goes on at the source.

    The message says what is the matter, what became of both ends, and what to do.
    """

    def __init__(self, step: str, why: str, state: str, *, source_runs: bool, report: Report) -> None:
        super().__init__(f"the move failed at the step {step!r}: {why}\n{state}")
        self.step = step
        self.why = why
        self.state = state
        self.source_runs = source_runs
        self.report = report


class Move:
    """One move; `run` it once. Not for several at a time on one QEMU or server.

    `before_step` is called with the name of each step at its begin, and what it raises counts as a failure of that
    step. `say` gets a line for people now and then.
    """

    def __init__(
        self,
        source: Side,
        destination: Side,
        vfs: Sequence[MovedVf],
        *,
        ram_socket: Path | None = None,
        timeout: float = 120.0,
        downtime_limit_ms: int = DOWNTIME_LIMIT_MS,
        before_step: Callable[[str], None] = lambda name: None,
        say: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.source = source
        self.destination = destination
        self.vfs = list(vfs)
        self.timeout = timeout
        self.downtime_limit_ms = downtime_limit_ms
        self.report = Report()
        self._ram_socket = ram_socket
        self._before_step = before_step
        self._say = say
        self._start = 0.0
        self._wall = 0.0
        self._step_name = "check"
        self._back = False
        self._task: asyncio.Task[None] | None = None
        self._devices: list[tuple[str, str]] = []
        self._functions: list[PciState] = []
        self._ram: list[range] = []
        # What was touched, for the way back.
        self._frozen: list[WrittenContext] = []
        self._recorded: list[int] = []
        self._capabilities: list[tuple[Qemu, dict[str, bool]]] = []
        self._parameters: dict[str, Any] = {}
        self._incoming = False
        self._continued = False

    # -- life

    async def run(self) -> Report:
        """Make the move. Raises MoveError; cancellation (`cancel`) is a failure like any other.

        A failure leaves the guest running at the source, as if nothing had happened. Only where the destination did
        not answer whether it runs, nothing more is touched, and the message says what to do.
        """
        self._start, self._wall = time.monotonic(), time.time()
        self._task = asyncio.ensure_future(self._go())
        try:
            await self._task
        except (Exception, asyncio.CancelledError) as error:  # whatever went wrong, the guest must run again
            raise await self._failed(error) from error
        finally:
            await self.source.close()
            await self.destination.close()
        return self.report

    def cancel(self) -> bool:
        """Give the move up and go back, unless the guest was told to go on at the destination already."""
        if self._task is None or self._continued or self._back:
            return False
        return self._task.cancel()

    async def _go(self) -> None:
        with contextlib.ExitStack() as folders:
            if self._ram_socket is None:
                folder = folders.enter_context(tempfile.TemporaryDirectory(prefix="vfu-migrate-"))
                self._ram_socket = Path(folder) / "ram.sock"
            await self._until_stopped()
            await _together(self._stop_vfs(), self._read_pci())
            await self._mark_pages()
            await _together(self._move_contexts(), self._finish_ram())
            await self._write_pci()
            await self._activate()
            await self._continue()
            await self._release()

    async def _until_stopped(self) -> None:
        await self._check()
        await self._prepare()
        await self._copy_ram()

    @contextlib.asynccontextmanager
    async def _step(self, name: str, *, critical: bool = True) -> AsyncIterator[None]:
        self._step_name = name
        start = time.monotonic() - self._start
        try:
            if critical:
                self._before_step(name)
            yield
        except Exception as error:
            error.add_note(name)
            raise
        finally:
            end = time.monotonic() - self._start
            self.report.steps.append(Step(name, start, end, self._back))

    # -- while the guest runs

    async def _check(self) -> None:
        async with self._step("check"):
            await _together(self.source.open(), self.destination.open())
            source, destination = self.source.qemu, self.destination.qemu
            status = await source.status()
            if status != "running":
                raise QemuError(f"the guest does not run at the source, it is {status!r}: only a running guest moves")
            status = await destination.status()
            if status != "inmigrate":
                raise QemuError(
                    f"the destination is {status!r}: start it with the source's options and -incoming defer"
                )
            if await source.migration() in ("setup", "active", "device", "pre-switchover", "cancelling"):
                raise QemuError("another migration of the source is under way: wait for it, or migrate_cancel")
            sizes = await source.memory_size(), await destination.memory_size()
            if sizes[0] != sizes[1]:
                raise QemuError(f"the source has {sizes[0] >> 20} MiB of memory, the destination {sizes[1] >> 20} MiB")
            for vf in self.vfs:
                here = await _device(self.source, vf.source_device, vf.source)
                there = await _device(self.destination, vf.destination_device, vf.destination)
                if await source.place(here) != await destination.place(there):
                    raise QemuError(
                        f"device {there} of the destination is not on the same bus and slot as {here} of the source"
                    )
                self._devices.append((here, there))
            await source.addresses([here for here, _ in self._devices])
            for vf in self.vfs:
                await self.source.call(self.source.check_source, vf.source)
                await self.destination.call(self.destination.check_destination, vf.destination)

    async def _prepare(self) -> None:
        async with self._step("prepare"):
            for vf in self.vfs:
                first = await self.source.call(self.source.peek, vf.source)
                written = WrittenContext(vf.destination)
                self._frozen.append(written)
                await self.destination.call(self.destination.prepare, written, first)
            for side in (self.source, self.destination):
                self._capabilities.append((side.qemu, await side.qemu.capabilities()))
                await side.qemu.set_capabilities(CAPABILITIES)
            found = await self.source.qemu.execute("query-migrate-parameters")
            limits = {"downtime-limit": self.downtime_limit_ms, "max-bandwidth": MAX_BANDWIDTH}
            self._parameters = {name: found[name] for name in limits if name in found}
            await self.source.qemu.execute("migrate-set-parameters", limits)
            for vf in self.vfs:
                self._recorded.append(vf.source)
                await self.source.call(self.source.start_record, vf.source)

    async def _copy_ram(self) -> None:
        async with self._step("copy-ram"):
            self._say("copying the guest's memory; it runs on")
            uri = f"unix:{self._ram_socket}"
            self._incoming = True
            # With this, the destination waits for `cont` when it has everything.
            await self.destination.qemu.execute("stop")
            await self.destination.qemu.execute("migrate-incoming", {"uri": uri, "exit-on-error": False})
            await self.source.qemu.execute("migrate", {"uri": uri})
            await self._converge()
            self._stopped()

    async def _converge(self) -> None:
        """Wait until QEMU has stopped the guest, and allow it to stop it for longer where it must."""
        limit, deadline = self.downtime_limit_ms, time.monotonic() + self.timeout
        while True:
            try:
                patience = min(PATIENCE_SECONDS, max(deadline - time.monotonic(), 0.1))
                await self.source.qemu.await_migration("pre-switchover", timeout=patience)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise
                limit *= 2
                await self.source.qemu.execute("migrate-set-parameters", {"downtime-limit": limit})
                self._say(f"the guest writes its memory fast: it may now stand still for {limit} ms")
            except QemuError as error:
                raise QemuError(await self._with_reason_of_destination(error)) from error
            else:
                return

    # -- while the guest stands still

    async def _stop_vfs(self) -> None:
        async with self._step("stop-vfs"):
            for vf in self.vfs:
                await self.source.call(self.source.stop, vf.source)

    async def _read_pci(self) -> None:
        async with self._step("read-pci"):
            addresses = await self.source.qemu.addresses([here for here, _ in self._devices])
            reading = asyncio.ensure_future(asyncio.to_thread(self._read_functions, addresses))
            try:
                self._ram = await self.source.qemu.ram()
            finally:
                self._functions = await reading

    def _read_functions(self, addresses: Sequence[Address]) -> list[PciState]:
        return [PciState.read(self.source.qemu.qtest, address) for address in addresses]

    async def _mark_pages(self) -> None:
        async with self._step("mark-pages"):
            pages: set[int] = set()
            for vf in self.vfs:
                pages |= await self.source.call(self.source.written_pages, vf.source)
            marked = sorted(page for page in pages if any(page in part for part in self._ram))
            self.report.pages = len(marked)
            await asyncio.to_thread(self.source.qemu.qtest.touch, marked)

    async def _move_contexts(self) -> None:
        async with self._step("move-contexts"):
            for vf, written in zip(self.vfs, self._frozen, strict=True):
                pieces = await self.source.call(self.source.freeze_and_read, vf.source)
                self.report.context_bytes += sum(len(piece) for piece in pieces)
                await self.destination.call(self.destination.write_context, written, pieces)

    async def _finish_ram(self) -> None:
        async with self._step("finish-ram"):
            source, destination = self.source.qemu, self.destination.qemu
            try:
                await source.execute("migrate-continue", {"state": "pre-switchover"})
                await source.await_migration("completed", timeout=self.timeout)
                await destination.await_migration("completed", timeout=self.timeout)
            except QemuError as error:
                raise QemuError(await self._with_reason_of_destination(error)) from error

    async def _write_pci(self) -> None:
        async with self._step("write-pci"):
            there = await self.destination.qemu.addresses([there for _, there in self._devices])
            for function, address in zip(self._functions, there, strict=True):
                if function.address != address:
                    raise QemuError(f"a VF is at {address} at the destination, at {function.address} at the source")
                await asyncio.to_thread(function.write, self.destination.qemu.qtest)

    async def _activate(self) -> None:
        async with self._step("activate"):
            for written in self._frozen:
                await self.destination.call(self.destination.activate, written)

    async def _continue(self) -> None:
        async with self._step("continue"):
            self._continued = True
            try:
                await self.destination.qemu.execute("cont")
            except QemuError:
                with contextlib.suppress(QemuError):
                    self._continued = await self.destination.qemu.status() == "running"
                if not self._continued:
                    raise
            self._resumed()

    def _stopped(self) -> None:
        self.source.qemu.take_events()
        at = self.source.qemu.stopped_at
        self.report.stopped = (at or time.time()) - self._wall

    def _resumed(self) -> None:
        self.destination.qemu.take_events()
        at = self.destination.qemu.resumed_at
        self.report.resumed = (at or time.time()) - self._wall

    # -- after it

    async def _release(self) -> None:
        """The guest runs at the destination: what fails here is a warning."""
        async with self._step("release", critical=False):
            for vf in self.vfs:
                await self._attempt(f"VF {vf.source} at the source", self.source.call(self.source.release, vf.source))
            await self._restore_settings()

    async def _failed(self, error: BaseException) -> MoveError:
        """Go back, and say what happened."""
        step = next(iter(getattr(error, "__notes__", [])), self._step_name)
        why = "it was cancelled" if isinstance(error, asyncio.CancelledError) else reason(error)
        if self._continued:
            state = (
                "whether the guest runs at the destination is not known, so nothing more was touched. If it does, the move"
                " is done; if it does not, end the destination QEMU, set the source's VFs to active with `vfu-owner`"
                " and `cont` the source QEMU"
            )
            return MoveError(step, why, state, source_runs=False, report=self.report)
        self._back = True
        self._say(f"{step} failed, going back: {why}")
        await self._go_back()
        runs = not self.report.warnings
        state = "The guest runs at the source as before."
        if self._incoming:
            state += " The destination QEMU has taken part of it and was ended: start it anew to try again."
        if self.report.warnings:
            state = "On the way back: " + "; ".join(self.report.warnings)
        return MoveError(step, why, state, source_runs=runs, report=self.report)

    async def _go_back(self) -> None:
        """Undo what was done, in this order: the destination must do nothing any more before the source goes on."""
        if self._frozen:
            async with self._step("restore-destination", critical=False):
                for written in self._frozen:
                    what = f"VF {written.vf} at the destination"
                    await self._attempt(what, self.destination.call(self.destination.restore, written))
        if self._incoming:
            async with self._step("end-destination", critical=False):
                with contextlib.suppress(*FAILURES):
                    await self.destination.qemu.execute("quit")
        if self._recorded:
            async with self._step("activate-source", critical=False):
                for vf in self._recorded:
                    await self._attempt(f"VF {vf} at the source", self.source.call(self.source.resume, vf))
        if self._incoming:
            async with self._step("continue-source", critical=False):
                await self._attempt("the source QEMU", self._resume_source())
        await self._restore_settings()

    async def _resume_source(self) -> None:
        """End the migration, whatever its state, and have the guest run. Raises QemuError, TimeoutError."""
        qemu = self.source.qemu
        if (await qemu.execute("query-migrate")).get("status", "none") not in ("none", "completed", "failed"):
            await qemu.execute("migrate_cancel")
        deadline = time.monotonic() + self.timeout
        while time.monotonic() < deadline:
            found = (await qemu.execute("query-migrate")).get("status", "none")
            if found in ("none", "completed", "failed", "cancelled"):
                break
            await asyncio.sleep(0.005)
        # QEMU itself lets a guest run again whose migration was cancelled; after a completed one it does not.
        while await qemu.status() != "running":
            if time.monotonic() > deadline:
                raise QemuError(f"{qemu.name}: the guest is {await qemu.status()!r}: try `cont`")
            with contextlib.suppress(QemuError):
                await qemu.execute("cont")
        qemu.take_events()
        if self.report.stopped is not None and qemu.resumed_at is not None:
            self.report.resumed = qemu.resumed_at - self._wall

    async def _restore_settings(self) -> None:
        for qemu, found in self._capabilities:
            if qemu is self.source.qemu or not self._incoming or self._continued:
                await self._attempt(f"migration capabilities of {qemu.name}", qemu.set_capabilities(found))
        if self._parameters:
            setting = self.source.qemu.execute("migrate-set-parameters", self._parameters)
            await self._attempt("migration parameters of the source", setting)

    async def _attempt(self, what: str, work: Coroutine[Any, Any, Any]) -> None:
        try:
            await work
        except FAILURES as error:
            self.report.warnings.append(f"{what}: {reason(error)}")

    async def _with_reason_of_destination(self, error: QemuError) -> str:
        """The source often knows only that the connection broke; the destination knows why."""
        try:
            await self.destination.qemu.migration()
        except QemuError as why:
            return f"{error}; {why}"
        return str(error)


async def _device(side: Side, given: str | None, vf: int) -> str:
    """The id of the QEMU device that is this VF. Raises QemuError."""
    socket = side.folder / f"vf{vf}.sock"
    devices = await side.qemu.devices()
    if given is not None:
        if given not in devices:
            raise QemuError(f"{side.name} has no vfio-user device {given!r}; it has {', '.join(devices) or 'none'}")
        return given
    for name, named in devices.items():
        if same_socket(named, socket):
            return name
    raise QemuError(
        f"no device of the {side.name} QEMU is connected to {socket}: give it an id, and that id with --device"
    )


async def _together(*work: Coroutine[Any, Any, Any]) -> None:
    """Do these at once. When one fails the others are cancelled, and the first failure is raised."""
    try:
        async with asyncio.TaskGroup() as group:
            for each in work:
                group.create_task(each)
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
