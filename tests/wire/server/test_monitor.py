"""The monitor: QMP as qemu.qmp speaks it, what it shows, and what it makes happen to a function."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

import pytest
from qemu.qmp import ExecuteError, QMPClient

from pymodel.spec import context
from tests.server_process import ServerProcess
from tests.wire.driving import driven, works
from tests.wire.running import until
from vfu_client.owner.admin import AdminError
from vfu_client.owner.owner import OwnerDriver
from vfu_client.virtio.function import VirtioPci
from vfu_images.qmp import QMPError
from vfu_server.monitor import qmp
from vfu_server.monitor.framer import MESSAGE_MAX, Framer
from vfu_server.monitor.qmp import CLIENTS_MAX, EVENTS_MAX, MISTAKES_MAX

T = TypeVar("T")


class Monitor:
    """A client of qemu.qmp, for tests that do one thing at a time."""

    def __init__(self, server: ServerProcess) -> None:
        self.client = QMPClient("test")
        self._loop = asyncio.new_event_loop()
        self._do(self.client.connect(str(server.folder / "monitor.sock")))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._do(self.client.disconnect())
        self._loop.close()

    def _do(self, work: Coroutine[Any, Any, T]) -> T:
        return self._loop.run_until_complete(asyncio.wait_for(work, 20))

    def __call__(self, command: str, **arguments: Any) -> Any:
        return self._do(self.client.execute(command, arguments))

    def function(self, name: str) -> dict[str, Any]:
        (found,) = self("query-functions", function=name)
        assert found["name"] == name
        return dict(found)

    def wait(self, kind: str, **data: Any) -> dict[str, Any]:
        """The data of the next event of this kind, and with this data."""
        while True:
            event = self._do(self.client.events.get())
            found = event["data"]
            assert isinstance(found, dict)
            if event["event"] == kind and data.items() <= found.items():
                return found


class Raw:
    """Bytes to the monitor and back."""

    def __init__(self, server: ServerProcess | Path) -> None:
        folder = server if isinstance(server, Path) else server.folder
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        self.socket.connect(str(folder / "monitor.sock"))
        self._lines = self.socket.makefile("rb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._lines.close()
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def line(self) -> dict[str, Any]:
        """One message; EOFError where the server hung up."""
        line = self._lines.readline()
        if not line:
            raise EOFError
        found = json.loads(line)
        assert isinstance(found, dict)
        return found

    def greeted(self) -> Self:
        assert "QMP" in self.line()
        self.send(b'{"execute":"qmp_capabilities"}')
        assert self.line() == {"return": {}}
        return self

    def error(self) -> str:
        return str(self.line()["error"]["desc"])


@pytest.fixture
def server(shared: ServerProcess) -> ServerProcess:
    return shared


@pytest.fixture
def monitor(server: ServerProcess) -> Iterator[Monitor]:
    with Monitor(server) as made:
        yield made


# QMP.


def test_the_socket_is_its_owners_only(server: ServerProcess) -> None:
    assert stat.S_IMODE((server.folder / "monitor.sock").stat().st_mode) == 0o600


def test_commands_are_listed(monitor: Monitor) -> None:
    names = {command["name"] for command in monitor("query-commands")}
    assert names == {
        "announce-self",
        "config-change",
        "end-faults",
        "inject",
        "log-level",
        "query-commands",
        "query-faults",
        "query-functions",
        "query-queue",
        "query-rules",
        "query-uplink",
        "query-version",
        "quit",
        "reload",
        "set-link",
        "trace",
    }


@pytest.mark.parametrize(
    ("command", "arguments", "kind", "text"),
    [
        ("nonsense", {}, "CommandNotFound", "nonsense"),
        ("qmp_capabilities", {}, "CommandNotFound", "complete already"),
        ("config-change", {}, "GenericError", "'function' is missing"),
        ("config-change", {"function": "vf1", "now": 1}, "GenericError", "'now' is unexpected"),
        ("config-change", {"function": 1}, "GenericError", "'function' is no string"),
        ("config-change", {"function": "vf9"}, "GenericError", "no function 'vf9'; there are: pf, vf1"),
        ("query-functions", {"function": "vf9"}, "GenericError", "no function 'vf9'"),
        ("set-link", {"function": "vf1", "up": 1}, "GenericError", "'up' is no boolean"),
        ("set-link", {"function": "vf1", "up": False}, "GenericError", "vf1 is no network device"),
        ("query-rules", {}, "GenericError", "--check-driver"),
        ("query-uplink", {}, "GenericError", "--uplink"),
    ],
)
def test_refusals_name_what_is_wrong(
    monitor: Monitor, command: str, arguments: dict[str, Any], kind: str, text: str
) -> None:
    with pytest.raises(ExecuteError) as caught:
        monitor(command, **arguments)
    assert caught.value.error.error.class_ == kind
    assert text in caught.value.error.error.desc


def test_negotiation_and_ids(server: ServerProcess) -> None:
    with Raw(server) as raw:
        assert set(raw.line()["QMP"]) == {"version", "capabilities"}
        raw.send(b'{"execute":"query-functions","id":[1,{"a":null}]}')
        assert raw.line() == {
            "error": {"class": "CommandNotFound", "desc": "Negotiate with 'qmp_capabilities' first"},
            "id": [1, {"a": None}],
        }
        raw.send(b'{"execute":"qmp_capabilities","arguments":{"enable":["oob"]}}')
        assert "no capabilities" in raw.error()
        # Two at once, without anything between them; a string that looks like an end; white space.
        raw.send(b'\r\n {"execute":"qmp_capabilities","id":"}\\"{"}{"execute":"query-functions","id":2} ')
        assert raw.line() == {"return": {}, "id": '}"{'}
        assert raw.line()["id"] == 2
        raw.send(b'{"execute":"query-commands","extra":1}{"arguments":{}}{"execute":"x","arguments":[]}')
        assert ["extra" in raw.error(), "execute" in raw.error(), "arguments" in raw.error()] == [True] * 3


def test_qmp_shell(server: ServerProcess, tmp_path: Path) -> None:
    shell = subprocess.run(
        [Path(sys.executable).with_name("qmp-shell"), server.folder / "monitor.sock"],
        input="query-functions function=vf2\nset-link function=vf2 up=true\n",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
        env={**os.environ, "HOME": str(tmp_path)},
    )
    assert '"name": "vf2"' in shell.stdout
    assert "vf2 is no network device" in shell.stdout


# Hostile clients.


@pytest.mark.parametrize(
    "rubbish",
    [b"\xff\xfe\n", b"GET / HTTP/1.1\n", b"{[}]\n", b"{'a': 1}", b'{"a"}', b'{"\xff": 1}', b"[]\n", b'"x"\n'],
)
def test_rubbish_is_answered(server: ServerProcess, rubbish: bytes) -> None:
    with Raw(server) as raw:
        raw.greeted()
        raw.send(rubbish)
        assert "JSON" in raw.error()
        raw.send(b'{"execute":"query-commands"}')
        assert "return" in raw.line()


@pytest.mark.parametrize(
    "flood",
    [b'{"a":"' + b"x" * MESSAGE_MAX, b'{"a":' + b"[" * 1000, b"rubbish\n" * MISTAKES_MAX, b"[" * (1 << 20)],
    ids=["long", "deep", "many", "no object"],
)
def test_floods_end_with_their_connection(server: ServerProcess, flood: bytes) -> None:
    with Raw(server) as raw:
        raw.greeted()
        try:
            for _ in range(MISTAKES_MAX):
                raw.send(flood)
            while True:
                assert "error" in raw.line()
        except (EOFError, ConnectionError):
            pass
    works(server.socket("vf1"))


def test_clients_that_read_nothing_disturb_nobody(server: ServerProcess, monitor: Monitor) -> None:
    silent = [Raw(server) for _ in range(CLIENTS_MAX - 1)]
    try:
        for raw in silent:
            raw.greeted()
            raw.socket.setblocking(False)
            try:
                while True:
                    raw.socket.send(b'{"execute":"query-functions"}' * 64)
            except BlockingIOError:
                pass
        with Raw(server) as surplus, pytest.raises((EOFError, ConnectionError)):
            surplus.line()
        started = time.monotonic()
        assert monitor.function("vf1")
        works(server.socket("vf1"))
        assert time.monotonic() - started < 5
    finally:
        for raw in silent:
            raw.__exit__()
    until(lambda: _accepts(server), "a new client")


def _accepts(server: ServerProcess) -> bool:
    with Raw(server) as raw:
        try:
            raw.line()
        except (EOFError, ConnectionError):
            return False
        return True


@pytest.mark.parametrize("step", [1, 2, 7, 100])
def test_framing_however_it_is_cut(step: int) -> None:
    messages = [b'{"a":"}\\"\\\\"}', b"{}", b'{"b":[{"c":"\\\\"}]}']
    stream = b" \r\n".join(messages) + b"".join(messages)
    framer = Framer()
    found = [one for at in range(0, len(stream), step) for one in framer.feed(stream[at : at + step])]
    assert found == messages * 2


def test_a_command_that_hangs_and_one_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(qmp, "COMMAND_SECONDS", 0.2)
    over = threading.Event()
    commands = {"hang": qmp.Command(over.wait), "fail": qmp.Command(lambda: 1 // 0)}
    server = qmp.QmpServer(tmp_path / "monitor.sock", commands, {})
    server.start()
    try:
        with Raw(tmp_path) as raw:
            raw.greeted()
            raw.send(b'{"execute":"hang"}{"execute":"fail"}{"execute":"query-commands"}')
            assert "no answer within 0.2 s" in raw.error()
            assert "internal error" in raw.error()
            assert "return" in raw.line()
        assert "ZeroDivisionError" in caplog.text
    finally:
        over.set()
        server.close()
    assert not (tmp_path / "monitor.sock").exists()


def test_events_that_come_too_fast_are_counted(tmp_path: Path) -> None:
    server = qmp.QmpServer(tmp_path / "monitor.sock", {}, {})
    server.start()
    try:
        with Raw(tmp_path) as raw:
            raw.greeted()
            over = threading.Event()
            assert server._loop is not None
            server._loop.call_soon_threadsafe(over.wait)
            for number in range(EVENTS_MAX + 5):
                server.publish("TICK", {"number": number})
            over.set()
            first = raw.line()
            assert (first["event"], first["data"]) == ("EVENTS_LOST", {"count": 5})
            assert [raw.line()["data"]["number"] for _ in range(EVENTS_MAX)] == list(range(5, EVENTS_MAX + 5))
    finally:
        server.close()


# What it shows.


def test_functions_are_shown_as_they_are(server: ServerProcess, monitor: Monitor) -> None:
    assert [function["name"] for function in monitor("query-functions")] == ["pf", "vf1", "vf2", "vf3"]
    before = monitor.function("vf1")
    assert (before["client-attached"], before["status"]) == (False, 0)
    assert not any(queue["enabled"] for queue in before["queues"])
    works(server.socket("vf1"))
    with driven(server.socket("vf1")):
        during = monitor.function("vf1")
    assert during["client-attached"]
    assert (during["status"], during["status-names"][-1]) == (15, "DRIVER_OK")
    assert (during["mode"], during["power-state"], during["queue-count"]) == ("active", "D0", 2)
    assert [(queue["index"], queue["size"]) for queue in during["queues"] if queue["enabled"]] == [(0, 8)]
    counted = {name: during["counters"][name] - before["counters"][name] for name in during["counters"]}
    assert counted["requests"] == 2
    assert counted["bytes"] == 16 + 512 + 1 + 16 + 512 + 1
    assert counted["notifications"] >= 2
    assert counted["interrupts"] >= 1


def test_events_come_to_every_client(server: ServerProcess, monitor: Monitor) -> None:
    with Monitor(server) as second, OwnerDriver.open(server.socket("pf")) as owner:
        with driven(server.socket("vf2")):
            for each in (monitor, second):
                each.wait("FUNCTION_ATTACHED", function="vf2")
                assert each.wait("DRIVER_STATUS", function="vf2", status=15)["names"][-1] == "DRIVER_OK"
            owner.mode_set(2, context.MODE_FREEZE)
            for each in (monitor, second):
                each.wait("MODE_CHANGED", function="vf2", mode="stop")
                each.wait("MODE_CHANGED", function="vf2", mode="freeze")
            assert monitor.function("vf2")["mode"] == "freeze"
            owner.mode_set(2, context.MODE_ACTIVE)
        for each in (monitor, second):
            each.wait("FUNCTION_DETACHED", function="vf2")
        assert monitor.function("pf")["counters"]["admin-commands"] >= 4


# What it makes happen.


def read(owner: OwnerDriver, vf: int) -> bytes:
    owner.context_discard(vf)
    return b"".join(piece.tobytes() for piece in owner.context_read(vf))


def field(stream: bytes, kind: int) -> bytes:
    """The value of the last field of a type."""
    found = b""
    while stream:
        length = int.from_bytes(stream[8:16], "little")
        if int.from_bytes(stream[:4], "little") == kind:
            found = stream[16 : 16 + length]
        stream = stream[16 + length :]
    return found


@pytest.mark.spec("DEV-23")
def test_a_change_while_active_is_told_at_once(server: ServerProcess, monitor: Monitor) -> None:
    with driven(server.socket("vf1")) as vf:
        assert vf.device.msix is not None
        generation = vf.device.common.read("config_generation")
        vf.device.config_read(0, 4)
        monitor("config-change", function="vf1")
        assert vf.device.msix.interrupts[0].wait(10) == 1
        assert vf.device.isr_read() & 2
        assert vf.device.common.read("config_generation") == generation + 1


@pytest.mark.spec("DEV-23", "A-21")
def test_changes_in_stop_are_told_once_on_active(server: ServerProcess, monitor: Monitor) -> None:
    with OwnerDriver.open(server.socket("pf")) as owner, driven(server.socket("vf1")) as vf:
        assert vf.device.msix is not None
        interrupt = vf.device.msix.interrupts[0]
        owner.mode_set(1, context.MODE_STOP)
        for _ in range(3):
            monitor("config-change", function="vf1")
        assert monitor.function("vf1")["config-change-owed"]
        assert field(read(owner, 1), context.PENDING) == b"\1" + bytes(7)
        assert interrupt.drain() == 0
        owner.mode_set(1, context.MODE_ACTIVE)
        assert interrupt.wait(10) == 1
        assert not monitor.function("vf1")["config-change-owed"]
        assert interrupt.drain() == 0


@pytest.mark.spec("DEV-20", "DEV-23", "A-21")
@pytest.mark.parametrize("by_way_of", [(context.MODE_ACTIVE,), (context.MODE_STOP, context.MODE_ACTIVE)])
def test_changes_in_freeze_are_held_apart(
    server: ServerProcess, monitor: Monitor, by_way_of: tuple[int, ...]
) -> None:
    with OwnerDriver.open(server.socket("pf")) as owner, driven(server.socket("vf1")) as vf:
        assert vf.device.msix is not None
        interrupt = vf.device.msix.interrupts[0]
        vf.device.config_read(0, 4)
        owner.mode_set(1, context.MODE_FREEZE)
        before = read(owner, 1)
        for _ in range(3):
            monitor("config-change", function="vf1")
        assert read(owner, 1) == before
        assert interrupt.drain() == 0
        # A written context does not undo what happened here.
        owner.context_write(1, before)
        assert read(owner, 1) == before
        for mode in by_way_of:
            assert interrupt.drain() == 0
            owner.mode_set(1, mode)
        assert interrupt.wait(10) == 1
        generation = before[before.find(field(before, context.COMMON_CFG)) + 15]
        assert vf.device.common.read("config_generation") == generation + 1
        monitor.function("vf1")
        assert interrupt.drain() == 0


@pytest.mark.spec("DEV-20", "A-21")
def test_a_reset_drops_what_is_held(server: ServerProcess, monitor: Monitor) -> None:
    with OwnerDriver.open(server.socket("pf")) as owner:
        with driven(server.socket("vf1")) as vf:
            owner.mode_set(1, context.MODE_FREEZE)
            running = read(owner, 1)
            monitor("config-change", function="vf1")
            vf.device.connection.device_reset()
            # With a driver again, so that there is somebody to tell.
            owner.context_write(1, running)
            owner.mode_set(1, context.MODE_STOP)
            assert read(owner, 1) == running
            owner.mode_set(1, context.MODE_ACTIVE)
        with driven(server.socket("vf1")) as vf:
            assert vf.device.msix is not None
            monitor.function("vf1")
            assert vf.device.msix.interrupts[0].drain() == 0


def test_a_function_that_is_held_up_is_said_to_be(server: ServerProcess, monitor: Monitor) -> None:
    """A client that sent half a message holds up its own function, and no command about another."""
    with socket.socket(socket.AF_UNIX) as half:
        half.connect(str(server.socket("vf3")))
        half.sendall(b"\1\0\1")
        started = time.monotonic()
        monitor("config-change", function="vf2")
        assert time.monotonic() - started < 2
        with pytest.raises(ExecuteError, match="vf3 did not answer within"):
            monitor("config-change", function="vf3")
        assert monitor.function("vf3")["served"]
    until(lambda: not monitor("config-change", function="vf3"), "vf3 is free again")


# The log.


def test_log_level(serve: Callable[..., ServerProcess]) -> None:
    """Of one function every access, and then no more; of the other nothing."""
    server = serve("--vfs", "2", "--disk", "ram:64k", log_level="info")
    with VirtioPci.open(server.socket("vf1")) as first, VirtioPci.open(server.socket("vf2")) as second:
        server.ask("log-level", level="trace", function="vf1")
        assert second.status == 0

        # The function's own thread has the library say more when it comes to it.
        def told() -> bool:
            return first.status == 0 and "virtio.vf1: libvfio-user: " in server.log_of("vf1")

        until(told, "accesses of vf1 are logged")
        server.wait_log("virtio.vf1: libvfio-user: .*region0")
        assert "virtio.vf2: libvfio-user" not in server.log
        server.ask("log-level", level="warning")
        assert first.status == 0
        mark = server.mark()
        first.add_status(1)
        first.reset()
        assert server.log[mark:] == ""
        server.ask("log-level", level="debug")
        first.add_status(1)
        server.wait_log("virtio.vf1: driver status ACKNOWLEDGE", since=mark)
    for arguments in ({"level": "loud"}, {"level": "info", "function": "vf3"}):
        with pytest.raises(QMPError, match=r"There is no (level 'loud'|function 'vf3'); there are: "):
            server.ask("log-level", **arguments)


# Rules for drivers.


@pytest.mark.spec("DRV-04", "DRV-05", "DRV-06", "DRV-07", "P-DRV-06")
def test_breaches_are_logged_counted_and_told(serve: Callable[..., ServerProcess]) -> None:
    server = serve("--vfs", "1", "--disk", "ram:1M", "--check-driver")
    with (
        Monitor(server) as monitor,
        OwnerDriver.open(server.socket("pf"), obey=False) as owner,
        driven(server.socket("vf1")) as vf,
    ):
        broken = {rule["rule"] for rule in monitor("query-rules") if rule["breaches"]}
        # It takes two features and no more.
        assert broken == {"FEAT-04", "FEAT-05", "FEAT-06"}
        owner.mode_set(1, context.MODE_FREEZE)
        vf.device.config_read(0, 4)
        vf.device.window_write(0, 0, 4, 0)
        stream = read(owner, 1)
        for _ in range(2):
            with pytest.raises(AdminError):
                owner.context_write_part(1, stream[16:])
        owner.context_write_part(1, stream[:41])
        with pytest.raises(AdminError):
            owner.mode_set(1, context.MODE_ACTIVE)
        with pytest.raises(AdminError):
            owner.mode_get(7)
        owner.context_discard(1)
        owner.mode_set(1, context.MODE_ACTIVE)
        for rule in ("DRV-05", "DRV-06", "DRV-07", "DRV-04"):
            assert monitor.wait("RULE_BROKEN", rule=rule)["function"] == "vf1"
        assert monitor.wait("RULE_BROKEN", rule="P-DRV-06")["function"] == "pf"
        breaches = {rule["rule"]: rule["breaches"] for rule in monitor("query-rules") if rule["breaches"]}
        of_owners = {rule for rule in breaches if "DRV-" in rule}
        assert of_owners == {"DRV-03", "DRV-04", "DRV-05", "DRV-06", "DRV-07", "P-DRV-06"}
        assert breaches["DRV-07"] == [{"function": "vf1", "subject": "DEV_CTX_WRITE", "count": 2}]
        assert monitor.function("vf1")["counters"]["rules-broken"] >= 6
        assert server.log.count(" DRV-07 ") == 1


def test_the_end_of_the_server_with_clients_of_every_kind(serve: Callable[..., ServerProcess]) -> None:
    """Greeted or not, in the middle of a message, with answers unread: hung up on, and no word in the log."""
    server = serve("--vfs", "1", "--disk", "ram:1M")
    with Raw(server) as fresh, Raw(server) as idle, Raw(server) as half, Raw(server) as busy:
        assert "QMP" in fresh.line()
        idle.greeted()
        half.greeted().send(b'{"execute":')
        busy.greeted().send(b'{"execute":"query-functions"}' * 500)
        assert server.stop() == 0
        for raw in (fresh, idle, half):
            with pytest.raises((EOFError, ConnectionResetError)):
                raw.line()
    assert "Traceback" not in server.log
    assert " ERROR " not in server.log
    assert not (server.folder / "monitor.sock").exists()
