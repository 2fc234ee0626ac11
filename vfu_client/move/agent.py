"""`vfu-migrate --agent`: the destination's side of a move from another host, which speaks on a byte stream.

It does what it is asked (`plain.CALLS`, `COMMANDS`), on this host's QEMU and servers. Where the connection is
cut, it puts its side right by itself, unless the guest may have gone on here (`ready`): then who runs is for
the other side to say, and nothing is touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from vfu_client.move.dialect import DIALECTS
from vfu_client.move.journal import Journal, JournalError, abandoned
from vfu_client.move.messages import VERSION, CutError, Messages
from vfu_client.move.moved_vf import Vf
from vfu_client.move.pci_state import PciStateError
from vfu_client.move.pf import Former, Pf, SideError
from vfu_client.move.plain import ADDRESS, CALLS, CONTEXTS, PCI_STATE, STATE, VF
from vfu_client.move.progress import nobody
from vfu_client.move.side import Side, attempt, reason
from vfu_client.qemu.qtest import QTestError
from vfu_client.qemu.running import QemuError

PATIENCE_SECONDS: Final = 60.0
"""For requests that were under way when the connection was cut."""

GREETING: Final = "vfu-migrate-agent"

ERRORS: Final = {error.__name__: error for error in (SideError, QemuError, QTestError, PciStateError)}
"""What a request may fail with; anything else is told as a SideError."""

COMMANDS: Final = frozenset(
    {
        "cont",
        "migrate-incoming",
        "migrate-set-capabilities",
        "migrate-set-parameters",
        "qom-get",
        "qom-list",
        "query-memory-size-summary",
        "query-migrate",
        "query-migrate-capabilities",
        "query-migrate-parameters",
        "query-pci",
        "query-status",
        "query-version",
        "quit",
        "stop",
    }
)
"""What QEMU is told for the other side."""


class Agent:
    """One move's destination. `serve` once; `say` gets lines for people."""

    def __init__(self, messages: Messages, say: Callable[[str], None]) -> None:
        self._messages = messages
        self._say = say
        self._side: Side | None = None
        self._journal: Journal | None = None
        self._adopted: list[Journal] = []
        self._notes = AgentNotes()
        self._done = False
        self._tasks: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._requests: Mapping[str, Callable[[dict[str, Any]], Awaitable[Any]]] = {
            "time": self._time,
            "open": self._open,
            "open_what_is_there": self._open_what_is_there,
            "settle": self._settle,
            "execute": self._execute,
            "device": self._device,
            "check_attached": self._check_attached,
            "write_pci": self._write_pci,
            "call": self._call,
            "prepare": self._prepare,
            "restore": self._restore,
            "ready": self._ready,
            "done": self._finish,
        }

    async def serve(self) -> int:
        """Do what is asked until the other side is done; the exit status: 0, or 1 where it was cut."""
        self._tasks.add(asyncio.ensure_future(self._messages.beat()))
        try:
            while not self._done:
                message = await self._messages.receive()
                task = asyncio.ensure_future(self._answer(message))
                self._answering.add(task)
                task.add_done_callback(self._answering.discard)
                if str(message.get("do")) == "done":
                    await task
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # this side is to be put right
            self._say("told to end" if isinstance(error, asyncio.CancelledError) else reason(error))
            await _to_the_end(self._cut())
            return 1
        finally:
            for task in self._tasks:
                task.cancel()
            await _to_the_end(self._close())
            self._messages.close()
        return 0

    async def _answer(self, message: dict[str, Any]) -> None:
        answer: dict[str, Any] = {"id": message.get("id")}
        try:
            request = self._requests.get(str(message.get("do"))) or _unknown
            answer["result"] = await request(message)
        except Exception as error:  # noqa: BLE001  # whatever it is, the other side must hear of it
            name = next((name for name, kind in ERRORS.items() if isinstance(error, kind)), "SideError")
            answer["error"] = [name, reason(error)]
        with contextlib.suppress(CutError):  # `serve` notices
            await self._messages.send(answer)

    # -- what is asked

    @property
    def _there(self) -> Side:
        if self._side is None:
            raise SideError("nothing was opened")
        return self._side

    async def _time(self, _message: dict[str, Any]) -> float:
        return time.time()

    def _set_up(self, message: dict[str, Any]) -> Side:
        if self._side is not None:
            raise SideError("an agent is for one move")
        if message["dialect"] not in DIALECTS:
            raise SideError(f"no dialect {message['dialect']!r}")
        about: dict[str, Any] = {name: str(Path(message[name]).absolute()) for name in ("qmp", "qtest")}
        about["servers"] = {name: str(Path(path).absolute()) for name, path in message["servers"].items()}
        self._notes.about = about | {name: message[name] for name in ("context_opcodes", "dialect")}
        self._side = self._notes.side(self._say)
        return self._side

    def _left(self) -> Iterator[AgentNotes]:
        """What agents that were killed have noted of the same QEMU; their journals are ours from now on."""
        for journal in abandoned():
            with contextlib.suppress(JournalError, LookupError, TypeError, ValueError):
                notes = AgentNotes.load(journal.read())
                if notes.about["qmp"] == self._notes.about["qmp"]:
                    self._adopted.append(journal)
                    yield notes
                    continue
            journal.close()

    async def _open(self, message: dict[str, Any]) -> None:
        side = self._set_up(message)
        for notes in self._left():
            if warnings := await put_right_after(notes):
                adopted, self._adopted = self._adopted, []
                for journal in adopted:
                    journal.close()
                raise SideError(
                    f"an earlier move to here was cut, and is not put right: {'; '.join(warnings)}"
                )
        await side.open()
        self._tasks.add(asyncio.ensure_future(self._tell_events()))

    async def _open_what_is_there(self, message: dict[str, Any]) -> list[str]:
        side = self._set_up(message)
        for notes in self._left():
            self._notes.take_over(notes)
        missing = await side.open_what_is_there()
        self._tasks.add(asyncio.ensure_future(self._tell_events()))
        return missing

    async def _tell_events(self) -> None:
        with contextlib.suppress(QemuError, CutError):
            while True:
                event = await self._there.qemu.next_event()
                await self._messages.send({"event": dict(event)})

    async def _settle(self, _message: dict[str, Any]) -> None:
        # It is asked on the way back alone: the guest is not to go on here.
        if self._notes.ready:
            self._note(ready=False)
        await self._there.settle()

    async def _execute(self, message: dict[str, Any]) -> Any:
        command, arguments = message["command"], message.get("arguments") or {}
        if command not in COMMANDS:
            raise QemuError(f"an agent has QEMU do no {command!r}")
        if command == "migrate-incoming" and not str(arguments.get("uri")).startswith("tcp:"):
            raise QemuError("an agent has QEMU listen on TCP only")
        qemu = self._there.qemu
        if command == "migrate-set-capabilities" and self._notes.settings is None:
            self._note(settings=await qemu.capabilities())
        if command == "migrate-set-parameters" and self._notes.parameters is None:
            self._note(parameters=await qemu.parameters(arguments))
        if command == "stop":
            self._note(incoming=True)
        return await qemu.execute(command, arguments)

    async def _device(self, message: dict[str, Any]) -> str:
        return await self._there.device(VF.back(message["vf"]), message["given"])

    async def _check_attached(self, message: dict[str, Any]) -> None:
        await self._there.check_attached(VF.back(message["vf"]), ADDRESS.back(message["address"]))

    async def _write_pci(self, message: dict[str, Any]) -> None:
        await self._there.write_pci(PCI_STATE.back(message["state"]))

    async def _call(self, message: dict[str, Any]) -> Any:
        method, shapes = CALLS[message["method"]]
        arguments = [shape.back(each) for shape, each in zip(shapes, message["arguments"], strict=True)]
        return await self._there.call(VF.back(message["vf"]), method, *arguments)

    async def _prepare(self, message: dict[str, Any]) -> None:
        vf, former = VF.back(message["vf"]), Former(message["mode"])
        self._note(contexts={**self._notes.contexts, vf: former})
        await self._there.call(vf, Pf.prepare, former, STATE.back(message["state"]))

    async def _restore(self, message: dict[str, Any]) -> None:
        vf = VF.back(message["vf"])
        former = self._notes.contexts.get(vf, Former(message["mode"], forgotten=True))
        await self._there.call(vf, Pf.restore, former)

    async def _ready(self, _message: dict[str, Any]) -> None:
        self._note(ready=True)

    async def _finish(self, _message: dict[str, Any]) -> None:
        self._done = True

    # -- its own notes, and the way back

    def _note(self, **changes: Any) -> None:
        for name, value in changes.items():
            setattr(self._notes, name, value)
        if self._journal is None:
            self._journal = Journal.begin()
        self._journal.write(self._notes.plain())

    async def _cut(self) -> None:
        """The other side can't be heard any more."""
        if self._side is None:
            return
        if self._answering:
            await asyncio.wait(self._answering, timeout=PATIENCE_SECONDS)
        self._done = not (warnings := await put_right(self._side, self._notes))
        for warning in warnings:
            self._say(f"warning: {warning}")
        self._say("all is as it should be here" if self._done else "`vfu-migrate --recover` tries again here")

    async def _close(self) -> None:
        if self._side is not None:
            with contextlib.suppress(Exception):
                await self._side.close()
        for journal in filter(None, (*self._adopted, self._journal)):
            if self._done:
                journal.remove()
            else:
                journal.close()


async def _unknown(message: dict[str, Any]) -> None:
    raise SideError(f"this agent (version {VERSION}) knows no request {message.get('do')!r}")


async def _to_the_end(work: Coroutine[Any, Any, None]) -> None:
    """Do something whole, however often this is cancelled meanwhile."""
    task = asyncio.ensure_future(work)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    await task


class AgentNotes:
    """What an agent's move touches at its side, noted before it does."""

    def __init__(self) -> None:
        self.about: dict[str, Any] = {}
        """Where QEMU and servers are, the dialect, and the opcodes of contexts."""
        self.contexts: dict[Vf, Former] = {}
        self.settings: dict[str, bool] | None = None
        self.parameters: dict[str, Any] | None = None
        self.incoming = False
        self.ready = False

    def side(self, say: Callable[[str], None] = nobody) -> Side:
        """The side that this is about."""
        about = self.about
        return Side.load("destination", about, int(about["context_opcodes"]), about["dialect"], say)

    def take_over(self, other: AgentNotes) -> None:
        """Add what an agent before noted."""
        self.contexts = {**other.contexts, **self.contexts}
        self.settings = other.settings if self.settings is None else self.settings
        self.parameters = other.parameters if self.parameters is None else self.parameters
        self.incoming |= other.incoming
        self.ready |= other.ready

    def plain(self) -> dict[str, Any]:
        """For a journal."""
        return {
            "agent": self.about,
            "contexts": CONTEXTS.there(self.contexts),
            "settings": self.settings,
            "parameters": self.parameters,
            "incoming": self.incoming,
            "ready": self.ready,
        }

    @classmethod
    def load(cls, notes: Mapping[str, Any]) -> AgentNotes:
        """Those of a journal; states are forgotten. Raises LookupError, TypeError or ValueError."""
        loaded = cls()
        loaded.about = dict(notes["agent"])
        loaded.contexts = CONTEXTS.back(notes["contexts"])
        loaded.settings = None if notes["settings"] is None else dict(notes["settings"])
        loaded.parameters = None if notes["parameters"] is None else dict(notes["parameters"])
        loaded.incoming, loaded.ready = bool(notes["incoming"]), bool(notes["ready"])
        return loaded


async def put_right(side: Side, notes: AgentNotes) -> list[str]:
    """Give this side's VFs back what they had, and end a QEMU that has taken a part of the guest.

    Where the guest may go on here, or does, nothing of it is touched. What could not be done, in words.
    """
    warnings: list[str] = []

    async def restore_settings() -> None:
        if notes.settings is not None:
            await attempt(side.qemu.set_capabilities(notes.settings), warnings)
        if notes.parameters is not None:
            await attempt(side.qemu.set_parameters(notes.parameters), warnings)

    with contextlib.suppress(Exception):
        await side.settle()
    status = None
    with contextlib.suppress(QemuError):
        status = await side.qemu.status()
    if notes.ready:
        if status == "running":
            await restore_settings()
            return warnings
        if status is not None or _is_there(side.qemu.qmp_path):
            return ["the guest may go on here or at the source: `vfu-migrate --recover` there decides"]
        # It ran here and was ended, or was ended before.
        return []
    if status == "running":
        return [
            f"the QEMU of {side.qemu.qmp_path} runs a guest, which is none of this move: nothing was touched"
        ]
    # All stand still before anything takes its time: they may share a disk with the source's.
    await asyncio.gather(
        *(
            attempt(side.call(vf, Pf.freeze), warnings)
            for vf, former in notes.contexts.items()
            if former.mode is not None
        )
    )
    for vf, former in notes.contexts.items():
        await attempt(side.call(vf, Pf.restore, former), warnings)
    if notes.incoming:
        # It has a part of the guest, or all of it, which must not run here by mistake.
        with contextlib.suppress(QemuError):
            await side.qemu.execute("quit")
        if status is None and _is_there(side.qemu.qmp_path):
            warnings.append(
                f"the QEMU of {side.qemu.qmp_path} has a part of the guest, and could not be ended"
            )
    else:
        await restore_settings()
    return warnings


def _is_there(path: Path) -> bool:
    """Whether anybody listens at a socket."""
    with socket.socket(socket.AF_UNIX) as client, contextlib.suppress(OSError):
        client.connect(str(path))
        return True
    return False


async def put_right_after(notes: AgentNotes) -> list[str]:
    """As `put_right`, after an agent that was killed."""
    side = notes.side()
    try:
        await side.open_what_is_there()
        return await put_right(side, notes)
    finally:
        with contextlib.suppress(Exception):
            await side.close()
