"""The agent of a move to another host, and the way to it: what neither believes of the other."""

from __future__ import annotations

import asyncio
import contextlib
import shlex
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vfu_client.move import messages, progress, remote
from vfu_client.move.agent import Agent, AgentNotes
from vfu_client.move.journal import Journal
from vfu_client.move.messages import CutError, Messages
from vfu_client.move.moved_vf import Vf
from vfu_client.move.pci_state import PciState
from vfu_client.move.pf import Former, Pf, SideError
from vfu_client.move.plain import ADDRESS, FIELDS, PCI_STATE, STATE, VF
from vfu_client.move.ram_channel import TcpChannel
from vfu_client.move.remote import CutOffError, RemoteSide
from vfu_client.owner.context import Field
from vfu_client.qemu.address import Address
from vfu_client.qemu.qtest import QTestError
from vfu_client.qemu.running import QemuError

SECONDS = 10


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(work, SECONDS))


class Ends:
    """Two ends of a connection: `here` speaks messages, `there` whatever a test says."""

    def __init__(self, here: Messages, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.here = here
        self.reader = reader
        self.writer = writer
        self.there = Messages(reader, writer)


@contextlib.asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Ends]:
    """A connection over a socket."""
    accepted: asyncio.Queue[Messages] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await accepted.put(Messages(reader, writer))

    server = await asyncio.start_unix_server(accept, folder / "s")
    reader, writer = await asyncio.open_unix_connection(folder / "s")
    ends = Ends(await accepted.get(), reader, writer)
    try:
        yield ends
    finally:
        server.close()
        ends.here.close()
        ends.there.close()


# --- messages --------------------------------------------------------------------------------------


def test_messages_carry_bytes(tmp_path: Path) -> None:
    """Anywhere, of any kind, also none and many; in order, between beats."""

    async def work() -> None:
        async with connected(tmp_path) as ends:
            large = np.arange(5 << 20, dtype=np.uint32).view(np.uint8)
            done: list[int] = []
            sending = asyncio.ensure_future(
                ends.there.send({"a": [b"xy", {"b": large}], "c": b"", "d": None}, done.append)
            )
            await ends.there.send({})
            found = await ends.here.receive()
            await sending
            assert found["a"][0].tobytes() == b"xy"
            assert np.array_equal(found["a"][1]["b"], large)
            assert (found["c"].size, found["d"]) == (0, None)
            assert done[-1] == large.size + 2
            assert done == sorted(done)

    run(work())


@pytest.mark.parametrize(
    "garbage",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        struct.pack(">II", 1 << 21, 0),
        struct.pack(">II", 2, 1 << 17),
        struct.pack(">II", 2, 0) + b"[]",
        struct.pack(">II", 2, 0) + b"{]",
        struct.pack(">II", 2, 0) + b"\xff\xff",
        struct.pack(">II", 10, 0) + b'{"blob":1}',
        struct.pack(">II", 16, 0) + b'{"a":{"blob":9}}',
        struct.pack(">II", 18, 0) + b'{"a":{"blob":"x"}}',
        struct.pack(">IIQ", 2, 1, 1 << 62) + b"{}",
    ],
)
def test_what_is_no_message(tmp_path: Path, garbage: bytes) -> None:
    async def work() -> None:
        async with connected(tmp_path) as ends:
            ends.writer.write(garbage)
            with pytest.raises(CutError):
                await ends.here.receive()

    run(work())


def test_the_end_of_a_connection(tmp_path: Path) -> None:
    """Between messages, and within one."""

    async def work() -> None:
        for sent in (b"", struct.pack(">II", 2, 0) + b"{"):
            async with connected(tmp_path) as ends:
                ends.writer.write(sent)
                ends.writer.close()
                with pytest.raises(CutError, match="hung up"):
                    await ends.here.receive()

    run(work())


def test_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease ends without a word; beats renew it."""
    monkeypatch.setattr(messages, "LEASE_SECONDS", 0.3)
    monkeypatch.setattr(messages, "BEAT_SECONDS", 0.02)

    async def work() -> None:
        async with connected(tmp_path) as ends:
            with pytest.raises(CutError, match="nothing was heard"):
                await ends.here.receive()
            beat = asyncio.ensure_future(ends.there.beat())
            receiving = asyncio.ensure_future(ends.here.receive())
            done, _ = await asyncio.wait([receiving], timeout=0.9)
            assert not done
            beat.cancel()
            with pytest.raises(CutError, match="nothing was heard"):
                await receiving

    run(work())


def test_a_send_that_is_cancelled(tmp_path: Path) -> None:
    """Its message goes out whole all the same, and the next one behind it."""

    async def work() -> None:
        async with connected(tmp_path) as ends:
            large = np.ones(32 << 20, np.uint8)
            sending = asyncio.ensure_future(ends.there.send({"id": 1, "a": large}))
            # A socket does not hold so much: it is in the middle of it.
            await asyncio.sleep(0.05)
            assert not sending.done()
            sending.cancel()
            with pytest.raises(asyncio.CancelledError):
                await sending
            second = asyncio.ensure_future(ends.there.send({"id": 2}))
            assert len((await ends.here.receive())["a"]) == large.size
            assert await ends.here.receive() == {"id": 2}
            await second

    run(work())


# --- what travels ----------------------------------------------------------------------------------


def test_plain_and_back() -> None:
    field = Field(5, memoryview(b"abc"), 7, 2)
    (found,) = FIELDS.back([[5, np.frombuffer(b"abc", np.uint8), 7, 2]])
    assert (found.type, bytes(found.value), found.offset, found.device_type) == (5, b"abc", 7, 2)
    assert FIELDS.there([field]) == [[5, b"abc", 7, 2]]
    assert VF.back(VF.there(Vf(3, "disk"))) == Vf(3, "disk")
    assert ADDRESS.back(ADDRESS.there(Address(1, 2, 3))) == Address(1, 2, 3)
    state = PciState(Address(1, 0, 0), {0: 1, 4: 2}, {17: 64}, bytearray(b"xy"))
    address, words, capabilities, _ = PCI_STATE.there(state)
    assert PCI_STATE.back([address, words, capabilities, np.frombuffer(b"xy", np.uint8)]) == state
    with pytest.raises(TypeError):
        STATE.back(["text"])


# --- an agent --------------------------------------------------------------------------------------


OPEN = {
    "qmp": "/nowhere/qmp",
    "qtest": "/nowhere/qtest",
    "servers": {"": "/nowhere"},
    "context_opcodes": 0x40,
}


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"do": "fly"}, ["SideError", "this agent (version 1) knows no request 'fly'"]),
        ({}, ["SideError", "this agent (version 1) knows no request None"]),
        ({"do": ["open"]}, ["SideError", "this agent (version 1) knows no request ['open']"]),
        ({"do": "settle"}, ["SideError", "nothing was opened"]),
        ({"do": "open"}, ["SideError", "'dialect'"]),
        ({"do": "open", **OPEN, "dialect": "latin"}, ["SideError", "no dialect 'latin'"]),
        (
            {"do": "execute", "command": "human-monitor-command"},
            ["QemuError", "an agent has QEMU do no 'human-"],
        ),
        ({"do": "execute", "command": "migrate"}, ["QemuError", "an agent has QEMU do no 'migrate'"]),
        (
            {"do": "execute", "command": "migrate-incoming", "arguments": {"uri": "exec:touch /tmp/x"}},
            ["QemuError", "an agent has QEMU listen on TCP only"],
        ),
        ({"do": "call", "vf": [1, ""], "method": "close", "arguments": []}, ["SideError", "'close'"]),
        ({"do": "call", "vf": [1, ""], "method": "mode", "arguments": [1]}, ["SideError", "zip()"]),
        ({"do": "call", "vf": "x", "method": "mode", "arguments": []}, ["SideError", "nothing was opened"]),
    ],
)
def test_requests_that_are_refused(tmp_path: Path, asked: dict[str, Any], error: list[str]) -> None:
    """Each is answered, and the next one too."""

    async def work() -> None:
        async with connected(tmp_path) as ends:
            said: list[str] = []
            serving = asyncio.ensure_future(Agent(ends.here, said.append).serve())
            await ends.there.send({"id": 7, **asked})
            answer = await ends.there.receive()
            assert (answer["id"], answer["error"][0]) == (7, error[0])
            assert error[1] in answer["error"][1]
            await ends.there.send({"id": 8, "do": "done"})
            assert await ends.there.receive() == {"id": 8, "result": None}
            assert await serving == 0
            assert said == []

    run(work())


def test_an_agent_that_finds_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason goes over; nothing is left in TMPDIR. A second move is not for it."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    async def work() -> None:
        async with connected(tmp_path) as ends:
            serving = asyncio.ensure_future(Agent(ends.here, print).serve())
            for expected in ("no monitor on /nowhere/qmp", "an agent is for one move"):
                await ends.there.send({"id": 1, "do": "open", **OPEN, "dialect": "context"})
                assert expected in (await ends.there.receive())["error"][1]
            ends.writer.close()
            assert await serving == 1

    run(work())
    assert not list(tmp_path.glob("vfu-migrate-*"))


@pytest.mark.parametrize(
    "message",
    [
        struct.pack(">II", 100_000, 0) + b"[" * 100_000,
        b"garbage!" * 4,
    ],
)
def test_what_an_agent_does_not_understand(tmp_path: Path, message: bytes) -> None:
    """It ends, as if the connection were cut, and puts its side right."""

    async def work() -> None:
        async with connected(tmp_path) as ends:
            said: list[str] = []
            agent = Agent(ends.here, said.append)
            cuts: list[None] = []

            async def cut() -> None:
                cuts.append(None)

            agent._cut = cut  # type: ignore[method-assign] # seen, not done
            serving = asyncio.ensure_future(agent.serve())
            ends.writer.write(message)
            assert await serving == 1
            assert (len(cuts), len(said)) == (1, 1)

    run(work())


def test_bytes_are_no_request(tmp_path: Path) -> None:
    async def work() -> None:
        async with connected(tmp_path) as ends:
            serving = asyncio.ensure_future(Agent(ends.here, print).serve())
            await ends.there.send({"id": 1, "do": b"done"})
            assert (await ends.there.receive())["error"][0] == "SideError"
            await ends.there.send({"id": 2, "do": "done"})
            assert (await ends.there.receive())["id"] == 2
            assert await serving == 0

    run(work())


def test_an_agent_on_one_socket() -> None:
    """As inetd, and some sshd, run a program."""

    async def work() -> None:
        ours, its = socket.socketpair()
        command = [sys.executable, "-m", "vfu_client.move.cli", "--agent"]
        process = await asyncio.create_subprocess_exec(*command, stdin=its.fileno(), stdout=its.fileno())
        its.close()
        reader, writer = await asyncio.open_connection(sock=ours)
        await reader.readuntil(b"vfu-migrate-agent ")
        await reader.readline()
        there = Messages(reader, writer)
        for number in range(3):
            await there.send({"id": number, "do": "time"})
            assert (await there.receive())["id"] == number
        await there.send({"id": 9, "do": "done"})
        assert (await there.receive())["id"] == 9
        assert await process.wait() == 0
        there.close()

    run(work())


def test_an_agent_on_no_stream(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = [sys.executable, "-m", "vfu_client.move.cli", "--agent"]
    with (tmp_path / "file").open() as file:
        done = subprocess.run(
            command, stdin=file, capture_output=True, text=True, check=False, timeout=SECONDS
        )
    assert done.returncode == 1
    assert "--agent speaks with another vfu-migrate on pipes or a socket" in done.stderr
    assert "Traceback" not in done.stderr


def test_what_an_earlier_agent_left_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No second move to there before it is put right; its journal stays until then."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    journal = Journal.begin()
    notes = AgentNotes()
    notes.about = {**OPEN, "dialect": "context"}
    notes.contexts = {Vf(1): Former(0)}
    journal.write(notes.plain())
    journal.close()

    async def work() -> None:
        async with connected(tmp_path) as ends:
            serving = asyncio.ensure_future(Agent(ends.here, print).serve())
            await ends.there.send({"id": 1, "do": "open", **OPEN, "dialect": "context"})
            assert "an earlier move to here was cut" in (await ends.there.receive())["error"][1]
            await ends.there.send({"id": 2, "do": "done"})
            assert await serving == 0

    run(work())
    assert [folder.name for folder in tmp_path.glob("vfu-migrate-*")] == [journal.folder.name]


# --- the way to it ---------------------------------------------------------------------------------


def side(command: str, say: Callable[[str], None] = print) -> RemoteSide:
    return RemoteSide(
        "destination", command, Path("/nowhere/qmp"), Path("/nowhere/qtest"), {"": Path("/nowhere")},
        context_opcodes=0x40, dialect="context", say=say,
    )  # fmt: skip


def reached(ends: Ends, say: Callable[[str], None] = print) -> tuple[RemoteSide, asyncio.Task[None]]:
    """One whose agent is the test, at the other end, and what listens to it."""
    there = side("false", say)
    there._messages = ends.here
    return there, asyncio.ensure_future(there._listen(ends.here))


WAIT = "import time; time.sleep(60)"


def saying(text: str, then: str = WAIT) -> str:
    """A command that says a text, and does something; what is appended to it is nothing to it."""
    return shlex.join([sys.executable, "-c", f"print({text!r}, end='', flush=True); {then}"])


@pytest.mark.parametrize(
    ("command", "why"),
    [
        ("/no/such/command b", "/no/such/command can't be run: No such file"),
        ("false", "ended .status 1. before an agent answered: it is to run `vfu-migrate --agent`"),
        (saying("Password:", "pass"), "ended .status 0. before an agent answered"),
        (saying("x" * 70000 + chr(10)), "says other things than an agent does"),
        (
            saying("hello", f"print(chr(10) * 70000, flush=True); {WAIT}"),
            "says other things than an agent does",
        ),
        (
            saying('vfu-migrate-agent {"version": 0}' + chr(10)),
            "speaks version 0 of these messages, this one 1",
        ),
        (saying("vfu-migrate-agent {}" + chr(10)), "speaks version None of these messages"),
        (saying("vfu-migrate-agent what?" + chr(10)), "speaks version None of these messages"),
        (
            saying('vfu-migrate-agent {"version": 1}' + chr(10), "pass"),
            "the connection to the destination is cut",
        ),
        (
            saying('vfu-migrate-agent {"version": 1}' + chr(10) + "x" * 100),
            "the connection to the destination is cut: what came is no message",
        ),
    ],
)
def test_what_is_no_agent(command: str, why: str) -> None:
    """What is wrong, and no process is left."""

    async def work() -> None:
        there = side(command)
        with pytest.raises(SideError, match=why):
            await there.open()
        await there.close()
        assert there._process is None

    run(work())


def test_no_greeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "GREETING_SECONDS", 0.2)
    monkeypatch.setattr(remote, "LEASE_SECONDS", 0.2)

    async def work() -> None:
        there = side(saying(""))
        with pytest.raises(SideError, match="no agent answered to"):
            await there.open()
        await there.close()

    run(work())


@pytest.mark.parametrize("words", [[], ["vfu-migrate", "--agent"], ["--agent"]])
def test_the_words_that_are_appended(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str]
) -> None:
    """Those that run the agent, unless the command has them."""
    script = tmp_path / "command"
    script.write_text('#!/bin/sh\necho "$@" >&2\nexit 3\n')
    script.chmod(0o755)

    async def work() -> list[str]:
        started: list[str] = []
        real = asyncio.create_subprocess_exec

        async def start(*command: str, **settings: Any) -> Any:
            started.extend(command)
            return await real(*command, **settings)

        monkeypatch.setattr(asyncio, "create_subprocess_exec", start)
        there = side(shlex.join([str(script), *words]))
        with pytest.raises(SideError, match="status 3"):
            await there.open()
        await there.close()
        return started

    found = asyncio.run(work())
    assert found == [str(script), *(words or ["vfu-migrate", "--agent"])]


@pytest.mark.parametrize(
    ("name", "kind"), [("QemuError", QemuError), ("QTestError", QTestError), ("Other", SideError)]
)
def test_errors_come_back_as_they_were(tmp_path: Path, name: str, kind: type[Exception]) -> None:
    async def work() -> None:
        async with connected(tmp_path) as ends:
            there, listening = reached(ends)

            async def answer() -> None:
                asked = await ends.there.receive()
                await ends.there.send({"id": asked["id"] + 100, "result": 1})
                await ends.there.send({"id": asked["id"], "error": [name, "why not"]})

            answering = asyncio.ensure_future(answer())
            with pytest.raises(kind, match="why not"):
                await there.call(Vf(1), Pf.activate)
            await answering
            listening.cancel()

    run(work())


def test_a_large_state_tells_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LARGE_BYTES", 3 << 20)
    monkeypatch.setattr(progress, "PERIOD_SECONDS", 0.0)

    async def work() -> list[str]:
        async with connected(tmp_path) as ends:
            said: list[str] = []
            there, listening = reached(ends, said.append)

            async def answer() -> None:
                for length in (2 << 20, 4 << 20):
                    asked = await ends.there.receive()
                    assert sum(len(piece) for piece in asked["arguments"][0]) == length
                    await ends.there.send({"id": asked["id"]})

            answering = asyncio.ensure_future(answer())
            for count in (2, 4):
                await there.call(Vf(1), Pf.write_last, [np.zeros(1 << 20, np.uint8)] * count)
            await answering
            listening.cancel()
            return said

    said = asyncio.run(work())
    assert [line.partition(",")[0] for line in said] == [
        f"sending VF 1 to the destination: {count} of 4 MiB" for count in (1, 2, 3, 4)
    ]
    assert all("s more" in line for line in said)


@pytest.mark.parametrize(
    "answer",
    [{"error": None}, {"error": ["a", "b", "c"]}, {"error": [{}, "b"]}, {"event": 5}, {"id": [1]}],
)
def test_answers_that_are_none(tmp_path: Path, answer: dict[str, Any]) -> None:
    """Who waits for one hears that there will be none."""

    async def work() -> None:
        async with connected(tmp_path) as ends:
            there, listening = reached(ends)

            async def reply() -> None:
                asked = await ends.there.receive()
                await ends.there.send({"id": asked["id"], **answer})

            answering = asyncio.ensure_future(reply())
            with pytest.raises(CutOffError, match="cut"):
                await there.call(Vf(1), Pf.activate)
            await answering
            await listening

    run(work())


def test_the_other_clock(tmp_path: Path) -> None:
    """However long the agent takes to open its side."""

    async def work() -> None:
        async with connected(tmp_path) as ends:
            there, listening = reached(ends)

            async def answer() -> None:
                asked = await ends.there.receive()
                assert asked["do"] == "time"
                await ends.there.send({"id": asked["id"], "result": time.time() + 1000})
                asked = await ends.there.receive()
                await asyncio.sleep(0.5)
                await ends.there.send({"id": asked["id"], "result": []})

            answering = asyncio.ensure_future(answer())
            await there._begin("open_what_is_there")
            await answering
            assert abs(there.ahead - 1000) < 0.2
            listening.cancel()

    run(work())


# --- the memory's address --------------------------------------------------------------------------


class PlayedQemu:
    """A QEMU that notes what it is told, and listens at a port of its own."""

    name = "destination"

    def __init__(self, addresses: list[dict[str, Any]]) -> None:
        self.told: list[tuple[str, Any]] = []
        self._addresses = addresses

    async def execute(self, command: str, arguments: Any = None) -> Any:
        self.told.append((command, arguments))
        return {"socket-address": self._addresses} if command == "query-migrate" else {}


@pytest.mark.parametrize(
    ("text", "listens", "connects"),
    [
        ("b.example.org", "tcp:b.example.org:0", "tcp:b.example.org:4444"),
        ("10.0.0.2:7000", "tcp:10.0.0.2:7000", "tcp:10.0.0.2:7000"),
        ("[fe80::1]:7000", "tcp:[fe80::1]:7000", "tcp:[fe80::1]:7000"),
        ("[::1]", "tcp:[::1]:0", "tcp:[::1]:4444"),
    ],
)
def test_addresses(text: str, listens: str, connects: str) -> None:
    qemu = PlayedQemu([{"type": "inet", "host": "10.0.0.2", "port": "4444"}])
    listen: Callable[[Any], Coroutine[Any, Any, str]] = TcpChannel.parse(text).listen
    assert asyncio.run(listen(qemu)) == connects
    assert qemu.told[0] == ("migrate-incoming", {"uri": listens, "exit-on-error": False})


def test_a_port_that_is_not_told() -> None:
    listen: Callable[[Any], Coroutine[Any, Any, str]] = TcpChannel("b").listen
    with pytest.raises(QemuError, match="give --ram-address one"):
        asyncio.run(listen(PlayedQemu([])))


@pytest.mark.parametrize("text", ["", "b:", "b:x", "b:65536", "::1", "b c", "b,c", "exec:x:1", "b:1:2"])
def test_no_addresses(text: str) -> None:
    with pytest.raises(ValueError, match="is no address"):
        TcpChannel.parse(text)
