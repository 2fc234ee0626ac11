"""One QEMU of a move: its QMP monitor, its qtest connection, and what a migration needs of both."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Self

from vfu_client.qemu.config_space import ConfigSpace
from vfu_client.qemu.qtest import QTest
from vfu_client.qemu.running import QemuError, RunningQemu, socket_in

CAPABILITIES = {"events": True, "pause-before-switchover": True}

# Lines of `info mtree -f`; see `ram`.
VIEW = re.compile(r"^FlatView #\d+$", re.MULTILINE)
RAM = re.compile(r"^ +([0-9a-f]{16})-([0-9a-f]{16}) \(prio -?\d+, ram\)", re.MULTILINE)


class Qemu(RunningQemu):
    """A QEMU that runs already. `name` is what messages call it. One `connect`, then commands, then
    `close`.
    """

    @classmethod
    def at(cls, name: str, qmp: Path, qtest: Path) -> Self:
        """One of this host, whose sockets may be named by their folder: qmp.sock and qtest.sock in it."""
        return cls(name, socket_in(qmp, "qmp"), socket_in(qtest, "qtest"))

    def __init__(self, name: str, qmp: Path, qtest: Path) -> None:
        super().__init__(name, qmp, ("MIGRATION", "STOP", "RESUME"))
        self.qtest_path = qtest
        self._stamps: dict[str, float] = {}
        self._qtest: QTest | None = None
        self._registers: ConfigSpace | None = None

    async def connect(self) -> None:
        """Connect to monitor and qtest, and find the way to PCI registers: nobody asks while the guest stands
        still. Raises QemuError, QTestError; nothing of the machine is changed.
        """
        await super().connect()
        self._registers = await self.config_space()
        self._qtest = QTest(self.qtest_path)
        # Whatever is read: does anybody answer?
        await asyncio.to_thread(self._qtest.run, ["read 0x0 0x1"])

    @property
    def qtest(self) -> QTest:
        """The qtest connection."""
        assert self._qtest is not None, "not connected"
        return self._qtest

    @property
    def registers(self) -> ConfigSpace:
        """The way to PCI registers."""
        assert self._registers is not None, "not connected"
        return self._registers

    async def close(self) -> None:
        """Hang up; the machine goes on."""
        if self._qtest is not None:
            self._qtest.close()
        await super().close()

    # -- the machine

    async def machine(self) -> str:
        """The machine type, with its version, as in -machine."""
        kind = await self.execute("qom-get", {"path": "/machine", "property": "type"})
        return str(kind).removesuffix("-machine")

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
            event = await self.next_event()
            self._note(event)
            if event["event"] == "MIGRATION":
                return str(event["data"]["status"])

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

    async def parameters(self, names: Iterable[str]) -> dict[str, Any]:
        """Migration parameters as they are, so that `set_parameters` gives them back."""
        found = await self.execute("query-migrate-parameters")
        return {name: found.get(name, "") for name in names}

    async def set_parameters(self, values: Mapping[str, Any]) -> None:
        """Set migration parameters."""
        await self.execute("migrate-set-parameters", values)
