"""One QEMU of a move: its QMP monitor, its qtest connection, and what a migration needs of both."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from qemu.qmp import EventListener, ExecuteError, QMPClient, Runstate
from qemu.qmp.error import QMPError

from vfu_client.move.pci_state import Address
from vfu_client.move.qtest import QTest

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0

DRIVER = "vfio-user-pci"
CAPABILITIES = {"events": True, "pause-before-switchover": True}

# Lines of `info mtree -f`; see `ram`.
VIEW = re.compile(r"^FlatView #\d+$", re.MULTILINE)
RAM = re.compile(r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\)", re.MULTILINE)
REGION = re.compile(r"vfio-user:(.+?)(?: base)? BAR \d")

# qemu.qmp says through this logger what the exceptions say too.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class QemuError(Exception):
    """QEMU refused a command, is not in the state that is needed, or does not answer; the message tells."""


class Qemu:
    """A QEMU that runs already. `name` is what messages call it. One `connect`, then commands, then
    `close`.
    """

    def __init__(self, name: str, qmp: Path, qtest: Path) -> None:
        self.name = name
        self.qmp_path = qmp
        self.qtest_path = qtest
        self._stamps: dict[str, float] = {}
        self._client = QMPClient(name)
        self._events = EventListener(("MIGRATION", "STOP", "RESUME"))
        self._qtest: QTest | None = None

    async def connect(self) -> None:
        """Connect to monitor and qtest. Raises QemuError, QTestError; nothing of the machine is changed."""
        hint = f"give QEMU -qmp unix:{self.qmp_path},server=on,wait=off; a monitor takes one client at a time"
        self._client.register_listener(self._events)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._client.connect(str(self.qmp_path))
        except TimeoutError:
            raise QemuError(f"{self.name}: no greeting on the monitor {self.qmp_path}: {hint}") from None
        except (QMPError, OSError) as error:
            raise QemuError(f"{self.name}: no monitor on {self.qmp_path}: {error} ({hint})") from error
        self._qtest = QTest(self.qtest_path)
        await asyncio.to_thread(self._qtest.run, ["inl 0xcf8"])

    @property
    def qtest(self) -> QTest:
        """The qtest connection."""
        assert self._qtest is not None, "not connected"
        return self._qtest

    async def close(self) -> None:
        """Hang up; the machine goes on."""
        if self._qtest is not None:
            self._qtest.close()
        # A QEMU that is gone says so here once more.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._client.disconnect()

    async def execute(self, command: str, arguments: Mapping[str, object] | None = None) -> Any:
        """Run a QMP command and return its value. Raises QemuError."""
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise QemuError(f"{self.name}: no answer to {command} within {ANSWER_SECONDS:g} s") from None
        except ExecuteError as error:
            raise QemuError(f"{self.name}: {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise self._gone(command) from error

    def _gone(self, doing: str) -> QemuError:
        return QemuError(f"{self.name}: {doing}: QEMU hung up on {self.qmp_path}: did it end?")

    # -- the machine

    async def status(self) -> str:
        """The run state: running, paused, inmigrate ..."""
        return str((await self.execute("query-status"))["status"])

    async def memory_size(self) -> int:
        """Bytes of RAM, hot-plugged memory included."""
        summary = await self.execute("query-memory-size-summary")
        return int(summary["base-memory"]) + int(summary.get("plugged-memory", 0))

    async def ram(self) -> list[range]:
        """The guest addresses that are RAM now and may be written."""
        text: str = await self.execute("human-monitor-command", {"command-line": "info mtree -f"})
        for view in VIEW.split(text):
            if ' AS "memory", root: system\n' in view.replace("\r", ""):
                return [range(int(low, 16), int(high, 16) + 1) for low, high in RAM.findall(view)]
        raise QemuError(f"{self.name}: 'info mtree -f' shows no system memory")

    # -- its passthrough devices

    async def devices(self) -> dict[str, str]:
        """The vfio-user devices, by id: the socket that each one is connected to, as QEMU names it.

        Raises QemuError for one without an id.
        """
        found: dict[str, str] = {}
        for folder in ("/machine/peripheral", "/machine/peripheral-anon"):
            for child in await self.execute("qom-list", {"path": folder}):
                if child["type"] != f"child<{DRIVER}>":
                    continue
                if folder.endswith("-anon"):
                    raise QemuError(
                        f"{self.name}: a {DRIVER} device has no id: give it one, as in"
                        ' {"driver":"vfio-user-pci","id":"vf1",'
                    )
                properties = await self.execute("qom-list", {"path": f"{folder}/{child['name']}"})
                names = (REGION.search(part["name"].replace("\\x2f", "/")) for part in properties)
                found[child["name"]] = next((name[1] for name in names if name), "")
        return found

    async def place(self, device: str) -> tuple[str, str]:
        """Bus, and address on it, of a device as the command line puts it. Raises QemuError for none."""
        path = f"/machine/peripheral/{device}"
        bus = await self.execute("qom-get", {"path": path, "property": "parent_bus"})
        return str(bus), str(await self.execute("qom-get", {"path": path, "property": "addr"}))

    async def addresses(self, devices: Sequence[str]) -> list[Address]:
        """Where devices are on the PCI buses, as the guest numbered them. Raises QemuError for nowhere."""
        buses = await self.execute("query-pci")
        found = {part["qdev_id"]: part for bus in buses for part in _functions(bus["devices"])}
        missing = [device for device in devices if device not in found]
        if missing:
            raise QemuError(
                f"{self.name}: {', '.join(missing)} is not on any PCI bus that the guest has set up"
            )
        return [Address(found[name]["bus"], found[name]["slot"], found[name]["function"]) for name in devices]

    # -- migration

    async def migration(self) -> str:
        """The state of the last migration, `none` where there was none."""
        return str((await self.execute("query-migrate")).get("status", "none"))

    async def check_migration(self) -> str:
        """The state of the migration under way. Raises QemuError with the reason when it failed."""
        found = await self.execute("query-migrate")
        if found.get("status") == "failed":
            why = found.get("error-desc", "QEMU gives no reason")
            raise QemuError(f"{self.name}: the migration failed: {why}")
        return str(found.get("status", "none"))

    async def await_migration(self, wanted: str, seconds: float) -> None:
        """Wait for a state of the migration. Raises QemuError when it fails or ends otherwise, or when QEMU
        does, and TimeoutError.
        """
        deadline = time.monotonic() + seconds
        status = ""
        while status != wanted:
            if status in ("cancelled", "completed"):
                raise QemuError(f"{self.name}: the migration is {status}, {wanted} was expected")
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(
                    f"{self.name}: the migration is {status} after {seconds:g} s, {wanted} was expected"
                )
            try:
                # An event normally; the query is for a monitor that is lost, and for what was said before.
                async with asyncio.timeout(min(left, 1.0)):
                    status = await self._next_status()
            except TimeoutError:
                status = await self.check_migration()
            if status == "failed":
                status = await self.check_migration()

    async def _next_status(self) -> str:
        while True:
            event = await self._next_event()
            self._note(event)
            if event["event"] == "MIGRATION":
                return str(event["data"]["status"])

    async def _next_event(self) -> Any:
        """The next event, of those that were listened for. Raises QemuError as soon as QEMU hangs up."""
        event, gone = asyncio.ensure_future(self._events.get()), asyncio.ensure_future(self._hung_up())
        try:
            await asyncio.wait((event, gone), return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                return event.result()
        finally:
            for task in (event, gone):
                task.cancel()
        raise self._gone("waiting")

    async def _hung_up(self) -> None:
        """Return when the monitor's connection ends."""
        while self._client.runstate == Runstate.RUNNING:
            await self._client.runstate_changed()

    def last(self, event: str) -> float | None:
        """When QEMU last said STOP or RESUME: seconds since 1970, None if never on this connection."""
        for each in self._events.clear():
            self._note(each)
        return self._stamps.get(event)

    def _note(self, event: Any) -> None:
        stamp = event["timestamp"]
        self._stamps[event["event"]] = stamp["seconds"] + stamp["microseconds"] / 1e6

    async def capabilities(self) -> dict[str, bool]:
        """Those migration capabilities that a move changes, as they are."""
        found = await self.execute("query-migrate-capabilities")
        return {row["capability"]: row["state"] for row in found if row["capability"] in CAPABILITIES}

    async def set_capabilities(self, states: Mapping[str, bool]) -> None:
        """Switch migration capabilities."""
        rows = [{"capability": name, "state": state} for name, state in states.items()]
        await self.execute("migrate-set-capabilities", {"capabilities": rows})


def same_socket(named: str, path: Path) -> bool:
    """Whether the socket that QEMU names is the one at `path`; a relative name may be of another folder."""
    try:
        return os.path.samefile(named, path)
    except OSError:
        return bool(named) and path.resolve().as_posix().endswith(os.path.normpath(named).lstrip("./"))


def _functions(devices: Sequence[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
    for device in devices:
        yield device
        yield from _functions(device.get("pci_bridge", {}).get("devices", ()))
