"""The destination's side of a move on another host, as the source sees it: an agent there does the work."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar, TypeVarTuple

from vfu_client.move.agent import ERRORS, GREETING
from vfu_client.move.messages import LEASE_SECONDS, VERSION, CutError, Messages
from vfu_client.move.moved_vf import Vf
from vfu_client.move.pci_state import PciState
from vfu_client.move.pf import Pf, SideError
from vfu_client.move.plain import ADDRESS, CALLS, PCI_STATE, STATE, VF
from vfu_client.move.progress import Progress, nobody
from vfu_client.move.qemu import Qemu
from vfu_client.move.side import Side, noted_servers
from vfu_client.qemu.address import Address
from vfu_client.qemu.running import QemuError
from vfu_client.vfio.memory import Bytes

Parameters = TypeVarTuple("Parameters")
T = TypeVar("T")

AGENT: Final = ("vfu-migrate", "--agent")
"""What the user's command is to run on the other host."""

GREETING_SECONDS: Final = 60.0
"""For a login, which may ask its user something."""

BEFORE_GREETING: Final = 1 << 16
"""Bytes of whatever a login says first."""

PIPE_BYTES: Final = 1 << 20
"""Of the pipe to the command. With Linux's 64 KiB a large state takes several times as long."""

QUIET_SECONDS: Final = 5.0
"""How long an agent may take to stop its VFs."""

TAKEN: Final = ("no greeting on", "is in use")
"""What tells that somebody else has a monitor or a PF."""

AGAIN_SECONDS: Final = 1.0
"""From one attempt to reach the other host to the next."""

RESUME_SECONDS: Final = 1.0
"""For QEMU to say that the guest goes on, after it has answered that."""


class CutOffError(SideError, QemuError):
    """The agent, or the way to it, is gone."""


class RemoteSide(Side):
    """See `Side`. `command` gives a byte stream to an agent; paths are those of its host.

    `say` hears how far large states are on their way.
    """

    elsewhere = True

    def __init__(
        self,
        name: str,
        command: str,
        qmp: Path,
        qtest: Path,
        servers: Mapping[str, Path],
        *,
        context_opcodes: int,
        dialect: str,
        say: Callable[[str], None] = nobody,
    ) -> None:
        super().__init__(
            name,
            RemoteQemu(name, qmp, qtest, self),
            servers,
            context_opcodes=context_opcodes,
            dialect=dialect,
        )
        self.command = command
        self.cut: CutOffError | None = None
        """Why the agent can't be asked any more, once that is so."""
        self.ahead = 0.0
        """Seconds by which the clock of the other host is ahead of this one's."""
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._messages: Messages | None = None
        self._answers: dict[int, asyncio.Future[Any]] = {}
        self._tasks: list[asyncio.Task[None]] = []
        self._next = 1
        self._activated = False
        self._cut_at = 0.0

    @classmethod
    def load(
        cls,
        name: str,
        notes: Mapping[str, Any],
        context_opcodes: int,
        dialect: str,
        say: Callable[[str], None] = nobody,
    ) -> RemoteSide:
        """See `Side`."""
        qmp, qtest = Path(notes["qmp"]), Path(notes["qtest"])
        return cls(
            name, notes["command"], qmp, qtest, noted_servers(notes),
            context_opcodes=context_opcodes, dialect=dialect, say=say,
        )  # fmt: skip

    # -- the connection

    async def open(self) -> None:
        """Run the command, and have the agent open its side. Raises SideError, QemuError or QTestError."""
        await self._connect()
        await self._begin("open")

    async def open_what_is_there(self) -> list[str]:
        """See `Side`. A former agent may not have noticed yet that it is cut off: that is waited for.

        Where there is no way to the other host the side is cut off, and its VFs may have run.
        """
        deadline = time.monotonic() + LEASE_SECONDS + QUIET_SECONDS
        while True:
            try:
                await self._hang_up()
                await self._connect()
                missing = list(await self._begin("open_what_is_there"))
            except (SideError, QemuError) as error:
                missing = [str(error)]
                self._activated = True
                if self.cut is None:
                    self._cut_at = time.monotonic()
                self.cut = CutOffError(f"the {self.name} can't be reached: {error}")
            taken = any(word in each for word in TAKEN for each in missing)
            if not (taken or (self.cut is not None and missing)) or time.monotonic() > deadline:
                return missing
            await asyncio.sleep(AGAIN_SECONDS)

    async def open_again(self) -> None:
        """See `Side`."""
        missing = await self.open_what_is_there()
        if self.cut is not None:
            raise self.cut
        if missing:
            raise SideError("; ".join(missing))

    async def _begin(self, request: str) -> Any:
        asked = time.time()
        there = float(await self.request("time"))
        self.ahead = there - (asked + time.time()) / 2
        return await self.request(
            request, **self._places(), context_opcodes=self.context_opcodes, dialect=self.dialect
        )

    async def _connect(self) -> None:
        words = shlex.split(self.command)
        if words[-1:] != [AGENT[-1]]:
            words += AGENT
        try:
            self._process = await asyncio.create_subprocess_exec(
                *words,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                # Not this one's terminal: Ctrl-C is for the move, which goes back by this connection.
                start_new_session=True,
            )
        except OSError as error:
            raise SideError(f"{words[0]} can't be run: {error.strerror}") from error
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with contextlib.suppress(OSError, ValueError):  # a user's pipes are limited; it may have ended
            fcntl.fcntl(
                self._process.stdin.transport.get_extra_info("pipe").fileno(), fcntl.F_SETPIPE_SZ, PIPE_BYTES
            )
        try:
            async with asyncio.timeout(GREETING_SECONDS):
                await self._greet(self._process.stdout)
        except BaseException as error:
            self._terminate()
            if isinstance(error, TimeoutError):
                raise SideError(
                    f"no agent answered to `{shlex.join(words)}` within {GREETING_SECONDS:g} s"
                ) from None
            raise
        self.cut = None
        self._messages = Messages(self._process.stdout, self._process.stdin)
        self._tasks = [
            asyncio.ensure_future(self._listen(self._messages)),
            asyncio.ensure_future(self._messages.beat()),
        ]

    async def _greet(self, reader: asyncio.StreamReader) -> None:
        """Skip what a login says, and see that the agent speaks as this side does. Raises SideError."""
        seen = 0
        while seen < BEFORE_GREETING:
            try:
                line = await reader.readline()
            except ValueError:
                break
            if not line:
                assert self._process is not None
                status = await self._process.wait()
                raise SideError(
                    f"`{self.command}` ended (status {status}) before an agent answered: it is to run"
                    f" `{shlex.join(AGENT)}` on the other host, and standard error says what is wrong"
                )
            seen += len(line)
            word, _, text = line.partition(b" ")
            if word == GREETING.encode():
                version = _version(text)
                if version != VERSION:
                    raise SideError(
                        f"the vfu-migrate of the other host speaks version {version} of these messages, this"
                        f" one {VERSION}: install the same on both"
                    )
                return
        raise SideError(f"`{self.command}` says other things than an agent does: is it to run vfu-migrate?")

    async def _listen(self, messages: Messages) -> None:
        try:
            while True:
                message = await messages.receive()
                if "event" in message:
                    self.qemu.heard(message["event"])  # type: ignore[attr-defined]  # it is a RemoteQemu
                    continue
                failure = None
                if "error" in message:
                    name, why = message["error"]
                    failure = ERRORS.get(name, SideError)(str(why))
                answer = self._answers.pop(message.get("id", 0), None)
                if answer is None or answer.done():
                    continue
                if failure is not None:
                    answer.set_exception(failure)
                else:
                    answer.set_result(message.get("result"))
        except Exception as error:  # noqa: BLE001  # nobody else would hear that there are no more answers
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        self.cut = CutOffError(f"the connection to the {self.name} is cut: {error}")
        self._cut_at = time.monotonic()
        if self._messages is not None:
            # Nothing more is said, so that the agent notices too.
            self._messages.close()
        self._terminate()
        for task in self._tasks:
            task.cancel()
        answers, self._answers = self._answers, {}
        for answer in answers.values():
            if not answer.done():
                answer.set_exception(self.cut)
        self.qemu.heard(None)  # type: ignore[attr-defined]

    async def request(self, do: str, progress: Callable[[int], None] | None = None, **arguments: Any) -> Any:
        """Have the agent do something; what it answers. Raises what that did, or CutOffError."""
        if self._messages is None:
            raise CutOffError(f"the {self.name} was not reached")
        if self.cut is not None:
            raise self.cut
        number, self._next = self._next, self._next + 1
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        try:
            await self._messages.send({"id": number, "do": do, **arguments}, progress)
        except CutError as error:
            self._lose(error)
        except BaseException:
            self._answers.pop(number, None)
            raise
        return await answer

    async def close(self) -> None:
        """Tell the agent that all is done, and hang up."""
        if self._messages is not None and self.cut is None:
            with contextlib.suppress(SideError, QemuError, TimeoutError):
                async with asyncio.timeout(LEASE_SECONDS):
                    await self.request("done")
        await self._hang_up()
        for thread in (*self._threads.values(), self._qtest_thread):
            thread.shutdown()

    def _terminate(self) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()

    async def _hang_up(self) -> None:
        greeted = self._messages is not None
        for task in self._tasks:
            task.cancel()
        self._tasks = []
        if self._messages is not None:
            self._messages.close()
            self._messages = None
        if self.cut is not None or not greeted:
            self._terminate()
        process, self._process = self._process, None
        if process is None:
            return
        try:
            async with asyncio.timeout(LEASE_SECONDS):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()

    # -- what a side does

    def plain(self) -> dict[str, Any]:
        """See `Side`; paths are those of the other host."""
        return {"command": self.command, **self._places()}

    def _places(self) -> dict[str, Any]:
        """Where QEMU and the servers are on the other host."""
        return {
            "qmp": str(self.qemu.qmp_path),
            "qtest": str(self.qemu.qtest_path),
            "servers": {server: str(pf.folder) for server, pf in self._pfs.items()},
        }

    async def call(self, vf: Vf, function: Callable[[Pf, int, *Parameters], T], *arguments: *Parameters) -> T:
        """See `Side`: what is in `plain.CALLS`, `Pf.prepare` and `Pf.restore`."""
        name = function.__name__
        given: tuple[Any, ...] = arguments
        if name == "prepare":
            former, state = given
            return await self._send_state(vf, "prepare", state, mode=former.mode)  # type: ignore[no-any-return]
        if name == "restore":
            (former,) = given
            return await self.request("restore", vf=VF.there(vf), mode=former.mode)  # type: ignore[no-any-return]
        if name == "write_last":
            return await self._send_state(vf, "call", given[0], method=name)  # type: ignore[no-any-return]
        self._activated |= name == "activate" and self.cut is None
        plain = [shape.there(each) for shape, each in zip(CALLS[name][1], given, strict=True)]
        return await self.request("call", vf=VF.there(vf), method=name, arguments=plain)  # type: ignore[no-any-return]

    async def _send_state(self, vf: Vf, do: str, state: Sequence[Bytes], **more: Any) -> Any:
        """Send a state, and tell how far it is where that takes a while."""
        whole = sum(len(piece) for piece in state)
        told = Progress(f"sending {vf} to the {self.name}", self._say)

        def progress(done: int) -> None:
            told(done, whole)

        key = "state" if do == "prepare" else "arguments"
        value: Any = STATE.there(state) if do == "prepare" else [STATE.there(state)]
        return await self.request(do, progress, vf=VF.there(vf), **{key: value}, **more)

    async def check_attached(self, vf: Vf, address: Address) -> None:
        """See `Side`."""
        await self.request("check_attached", vf=VF.there(vf), address=ADDRESS.there(address))

    async def write_pci(self, state: PciState) -> None:
        """See `Side`."""
        await self.request("write_pci", state=PCI_STATE.there(state))

    async def settle(self) -> None:
        """See `Side`. One that is cut off settles by itself."""
        if self.cut is None:
            with contextlib.suppress(CutOffError):
                await self.request("settle")

    async def device(self, vf: Vf, given: str | None) -> str:
        """See `Side`."""
        return str(await self.request("device", vf=VF.there(vf), given=given))

    async def ready(self) -> None:
        """See `Side`: should the connection be cut, the agent leaves everything as it is from now on."""
        await self.request("ready")

    async def wait_until_quiet(self) -> None:
        """See `Side`. Another agent knows, or the former one has stopped them when it noticed."""
        if not self._activated:
            return
        self._say(f"{self.cut}: seeing that its VFs do nothing any more")
        with contextlib.suppress(SideError, QemuError):
            await self.open_again()
            return
        await asyncio.sleep(max(self._cut_at + LEASE_SECONDS + QUIET_SECONDS - time.monotonic(), 0))


class RemoteQemu(Qemu):
    """A QEMU of the other host: commands go by the agent, and events come from there."""

    def __init__(self, name: str, qmp: Path, qtest: Path, side: RemoteSide) -> None:
        super().__init__(name, qmp, qtest)
        self._side = side
        self._told: asyncio.Queue[Any] = asyncio.Queue()
        self._resumed = asyncio.Event()

    async def connect(self) -> None:
        """The agent does."""

    async def close(self) -> None:
        """The agent does."""

    async def execute(
        self, command: str, arguments: Mapping[str, object] | None = None, *, seconds: float = 0.0
    ) -> Any:
        """See `Monitor`. The agent knows how long QEMU may take."""
        result = await self._side.request("execute", command=command, arguments=arguments)
        if command == "cont":
            # Its event may come behind the answer, and tells when.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RESUME_SECONDS):
                    await self._resumed.wait()
        return result

    def heard(self, event: Any) -> None:
        """An event of QEMU, or None where there will be no more."""
        self._told.put_nowait(event)
        if event is None or event.get("event") == "RESUME":
            self._resumed.set()

    async def next_event(self) -> Any:
        """See `Monitor`."""
        event = await self._told.get()
        if event is None:
            self._told.put_nowait(None)
            raise self._side.cut or QemuError("no more events")
        return event

    def last(self, event: str) -> float | None:
        """See `Qemu`; by the clock of this host."""
        while not self._told.empty():
            each = self._told.get_nowait()
            if each is not None:
                self._note(each)
        stamp = self._stamps.get(event)
        return None if stamp is None else stamp - self._side.ahead


def _version(text: bytes) -> object:
    """What a greeting says of its version; None for one that says nothing that can be read."""
    try:
        return json.loads(text).get("version")
    except (ValueError, AttributeError):
        return None
