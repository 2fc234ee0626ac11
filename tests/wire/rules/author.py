"""A driver's author at work on a function that nobody had before, and what the server tells him."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Self

from pymodel.spec import virtio_pci
from tests.server_process import ServerProcess
from vfu_client.vfio.memory import Buffer
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.function import VirtioPci
from vfu_client.virtio.split import SplitQueue
from vfu_images.qmp import QMP

ACKNOWLEDGE, DRIVER, DRIVER_OK, FEATURES_OK, NEEDS_RESET, FAILED = 1, 2, 4, 8, 64, 128
EVENT_IDX, VERSION_1, ACCESS_PLATFORM, RING_PACKED, IN_ORDER = 29, 32, 33, 34, 35
NOTIFICATION_DATA, NOTIF_CONFIG_DATA, RING_RESET = 38, 39, 40

SHOULDS = frozenset({"FEAT-04", "FEAT-05", "FEAT-06"})
"""What a driver is told that leaves out a feature which it should take: tests choose theirs."""


class Listener:
    """A client of the monitor that hears of broken rules."""

    def __init__(self, server: ServerProcess) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(20)
        self._socket.connect(str(server.folder / "monitor.sock"))
        self._monitor = QMP(self._socket)
        self._monitor.negotiate()
        self._broken: list[dict[str, Any]] = []

    def close(self) -> None:
        self._socket.close()

    def told(self, function: str) -> dict[str, dict[str, Any]]:
        """What was told of a function's driver so far, by rule: the data of the event."""
        self._monitor.execute("query-commands", {})
        events, self._monitor.events = self._monitor.events, []
        self._broken += [event["data"] for event in events if event["event"] == "RULE_BROKEN"]
        return {data["rule"]: data for data in self._broken if data["function"] == function}

    def wait(self, function: str, rule: str) -> None:
        """Until a rule was told of a function's driver."""
        while rule not in self.told(function):
            self._broken.append(self._monitor.wait_event("RULE_BROKEN")["data"])


class Author:
    """Does by hand what `VirtioPci` would do; each step is right unless the caller makes it wrong."""

    def __init__(self, server: ServerProcess, function: str, listener: Listener) -> None:
        self.server = server
        self.function = function
        self._listener = listener
        self.device = VirtioPci.open(server.socket(function), timeout=20)
        self.memory = self.device.memory
        self.shoulds = SHOULDS

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.device.close()

    # Registers.

    def read(self, name: str) -> int:
        return self.device.common.read(name)

    def write(self, name: str, value: int) -> None:
        self.device.common.write(name, value)

    def status(self, *bits: int) -> None:
        """Write bits to device_status."""
        self.write("device_status", sum(bits))

    def reset(self) -> None:
        self.status(0)
        assert self.read("device_status") == 0

    def select(self, queue: int = 0) -> None:
        self.write("queue_select", queue)

    def notify(self, offset: int, data: bytes) -> None:
        """Write to the notify structure."""
        structure = self.device.structures[virtio_pci.CAP_NOTIFY_CFG]
        self.device.function.bar_write(
            structure.bar, structure.offset + offset, len(data), int.from_bytes(data, "little")
        )

    # Steps of an initialization.

    def begin(self) -> None:
        """Bus Master Enable, MSI-X, reset, ACKNOWLEDGE and DRIVER."""
        self.device.function.set_command(6)
        self.reset()
        self.device.enable_interrupts()
        self.status(ACKNOWLEDGE)
        self.status(ACKNOWLEDGE, DRIVER)

    def accept(self, features: Iterable[int] | None = None) -> int:
        """Write features, all that are offered by default; what was written."""
        offered = self.device.common.features()
        accepted = offered if features is None else sum(1 << bit for bit in features)
        self.device.common.accept(accepted)
        self.device.features = accepted
        return accepted

    def agree(self, features: Iterable[int] | None = None) -> None:
        """Up to FEATURES_OK, which stays set."""
        self.begin()
        self.accept(features)
        self.status(ACKNOWLEDGE, DRIVER, FEATURES_OK)
        assert self.read("device_status") == 11

    def queue(self, index: int = 0, *, size: int = 8, enable: bool = True) -> DriverQueue:
        return self.device.setup_queue(index, size=size, enable=enable)

    def drive(
        self, features: Iterable[int] | None = None, queues: Iterable[int] = (0,), *, size: int = 8
    ) -> dict[int, DriverQueue]:
        """All of it, with these queues."""
        self.agree(features)
        found = {index: self.queue(index, size=size) for index in queues}
        self.go()
        # It looks at all queues then.
        self.settle()
        return found

    def run(self, features: Iterable[int] | None = None, *, size: int = 8) -> DriverQueue:
        """All of it, with queue 0."""
        return self.drive(features, size=size)[0]

    def split(self, *features: int, size: int = 8) -> SplitQueue:
        """The same with a split queue, and what else is wanted."""
        queue = self.run((VERSION_1, *features), size=size)
        assert isinstance(queue, SplitQueue)
        return queue

    def go(self) -> None:
        """DRIVER_OK."""
        self.status(ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK)

    # Memory.

    def bytes(self, data: bytes) -> Buffer:
        buffer = self.memory.allocate(len(data), 16)
        buffer.view[:] = list(data)
        return buffer

    def settle(self) -> None:
        """Let the server finish what it is about: it looks at its queues after 64 messages at the latest."""
        for _ in range(64):
            self.device.function.config_read(0, 2)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Writes to BARs wait for no answer, and arrive at once."""
        connection = self.device.connection
        send, messages = connection.send_raw, []
        connection.posted_writes = True
        connection.send_raw = lambda message, fds=(): messages.append(message)  # type: ignore[method-assign]
        try:
            yield
        finally:
            connection.posted_writes = False
            connection.send_raw = send  # type: ignore[method-assign]
            send(b"".join(messages))

    # What is told.

    def until_told(self, rule: str) -> None:
        """Wait for what is told later."""
        self._listener.wait(self.function, rule)

    def told(self) -> dict[str, dict[str, Any]]:
        """By rule, but for features that a test does without."""
        self.settle()
        found = self._listener.told(self.function)
        return {rule: data for rule, data in found.items() if rule not in self.shoulds}


@dataclass(frozen=True)
class Mistake:
    """A rule, how an author breaks it, and what he is told: words of what was seen, and of the place."""

    rule: str
    make: Callable[[Author], Any]
    seen: str
    also: frozenset[str] = frozenset()
    """Rules that are broken with it."""
    where: dict[str, Any] = field(default_factory=dict)

    @property
    def id(self) -> str:
        return f"{self.rule} {self.make.__name__.strip('_')}"
