"""A client of a QMP monitor: QEMU's, or that of vfu-server, which speaks the same."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

from qemu.qmp import EventListener, ExecuteError, QMPClient, Runstate
from qemu.qmp.error import QMPError

CONNECT_SECONDS = 5.0
ANSWER_SECONDS = 20.0

# qemu.qmp says through this logger what the exceptions say too.
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)


class MonitorError(Exception):
    """A monitor is not there, does not answer, or refused a command; the message tells."""


class Monitor:
    """A monitor at `qmp_path` of what messages call `name`. One `connect`, then commands, then `close`.

    `hint` is what to do where there is none; `events` are those that can be waited for.
    """

    error: ClassVar[type[MonitorError]] = MonitorError
    """What its methods raise."""

    def __init__(self, name: str, qmp: Path, hint: str, events: Sequence[str] = ()) -> None:
        self.name = name
        self.qmp_path = qmp
        self._hint = hint
        self._client = QMPClient(name)
        self._events = EventListener(events)

    async def __aenter__(self) -> Self:
        await self.connect()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def connect(self) -> None:
        """Connect. Raises `error`; nothing is changed by it."""
        self._client.register_listener(self._events)
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._client.connect(str(self.qmp_path))
        except TimeoutError:
            raise self.error(
                f"{self.name}: no greeting on the monitor {self.qmp_path}: {self._hint}"
            ) from None
        except (QMPError, OSError) as error:
            raise self.error(f"{self.name}: no monitor on {self.qmp_path}: {error} ({self._hint})") from error

    async def close(self) -> None:
        """Hang up; who has the monitor goes on."""
        # One that is gone says so here once more.
        with contextlib.suppress(QMPError, OSError, EOFError, TimeoutError):
            async with asyncio.timeout(CONNECT_SECONDS):
                await self._client.disconnect()

    async def execute(
        self,
        command: str,
        arguments: Mapping[str, object] | None = None,
        *,
        seconds: float = ANSWER_SECONDS,
    ) -> Any:
        """Run a QMP command and return its value. Raises `error`."""
        try:
            async with asyncio.timeout(seconds):
                return await self._client.execute(command, arguments)
        except TimeoutError:
            raise self.error(f"{self.name}: no answer to {command} within {seconds:g} s") from None
        except ExecuteError as error:
            raise self.error(f"{self.name}: {command}: {error}") from error
        except (QMPError, OSError, EOFError) as error:
            raise self._gone(command) from error

    def _gone(self, doing: str) -> MonitorError:
        return self.error(f"{self.name}: {doing}: it hung up on {self.qmp_path}: did it end?")

    async def next_event(self) -> Any:
        """The next event, of those that were listened for. Raises `error` as soon as the monitor hangs up."""
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
