"""The server's monitor, `DIR/monitor.sock`: what the functions do, and ways to make things happen to them.

docs/monitor.md describes commands and events.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeVar

from pymodel import __version__
from pymodel.devices.device import Linked
from pymodel.migration.member import MODE_NAMES
from pymodel.pci.function import Function
from pymodel.pci.physical_function import PhysicalFunction
from pymodel.pci.sriov.vf_slot import VfSlot
from pymodel.queue.virtqueue import Virtqueue
from pymodel.rules.breaches import Breaches
from pymodel.rules.checker import RULES
from pymodel.spec import context
from pymodel.transport import status
from pymodel.transport.faults import Fault
from pymodel.watch.ring_view import ring_view
from vfu_server.bounded_log import LEVELS
from vfu_server.function_thread import FunctionThread
from vfu_server.monitor.qmp import Command, CommandFailed, QmpServer
from vfu_server.networks.networks import Networks
from vfu_server.watch.watching import Watching

SOCKET_NAME: Final = "monitor.sock"

Result = TypeVar("Result")

CALL_SECONDS: Final = 5.0
"""How long a function's thread may take to begin what it is asked for: its client may hold it up."""


class Monitor:
    """Watches the functions (`pymodel.host.Observer`), and serves those who want to know while `serving`."""

    def __init__(self, path: Path, networks: Networks | None = None) -> None:
        """`networks` are what network functions are connected to."""
        self._networks = networks
        self._device: PhysicalFunction | None = None
        self._threads: Callable[[], Mapping[str, FunctionThread]] = dict
        self._watching: Watching | None = None
        self._reload: Callable[[], None] | None = None
        self._stop: Callable[[], None] = _nothing
        greeting = _greeting()
        self._qmp = QmpServer(
            path,
            {
                "query-functions": Command(
                    self._query_functions, {"function": str}, optional=frozenset({"function"})
                ),
                "query-queue": Command(self._query_queue, {"function": str, "queue": int}),
                "query-rules": Command(self._query_rules),
                "query-uplink": Command(self._query_uplink),
                "log-level": Command(
                    self._log_level, {"level": str, "function": str}, optional=frozenset({"function"})
                ),
                "config-change": Command(self._config_change, {"function": str}),
                "inject": Command(
                    self._inject,
                    {
                        "function": str,
                        "fault": str,
                        "queue": int,
                        "count": int,
                        "percent": int,
                        "ms": int,
                        "value": int,
                    },
                    optional=frozenset({"queue", "count", "percent", "ms", "value"}),
                ),
                "query-faults": Command(self._query_faults),
                "end-faults": Command(self._end_faults, {"function": str}, optional=frozenset({"function"})),
                "reload": Command(self._do_reload),
                "trace": Command(self._trace, {"on": bool, "file": str}, optional=frozenset({"on", "file"})),
                "set-link": Command(self._set_link, {"function": str, "up": bool}),
                "announce-self": Command(self._announce_self, {"function": str}),
                "query-version": Command(lambda: greeting),
                "quit": Command(_nothing, then=self._end),
            },
            greeting,
        )

    def event(self, function: str, kind: str, data: Mapping[str, Any]) -> None:
        """Tell all clients. Never waits."""
        self._qmp.publish(kind, {"function": function, **data})

    @contextmanager
    def serving(
        self,
        device: PhysicalFunction,
        threads: Callable[[], Mapping[str, FunctionThread]],
        watching: Watching,
        reload: Callable[[], None],
        stop: Callable[[], None],
    ) -> Iterator[None]:
        """Serve: `threads` are those of the functions by name, which `watching` watches; `reload` has their
        device type read again, and raises ValueError; `stop` ends the server. Raises OSError for the socket.
        """
        self._device, self._threads, self._watching, self._reload = device, threads, watching, reload
        self._stop = stop
        self._qmp.start()
        try:
            yield
        finally:
            self._qmp.close()

    # -- commands --------------------------------------------------------------------------------------

    def _end(self) -> None:
        self._stop()

    def _query_functions(self, function: str | None = None) -> list[dict[str, Any]]:
        found = self._served.values() if function is None else [self._find(function)]
        return [self._describe(*one) for one in found]

    def _query_queue(self, function: str, queue: int) -> dict[str, Any]:
        found, thread = self._find(function)
        there = found.transport.queues
        if queue not in there:
            raise CommandFailed(f"{function} has no queue {queue}; it has 0 to {max(there)}")
        # Guest memory is for the function's own thread.
        return {"function": function, **_on_thread(thread, partial(ring_view, there[queue], found.memory))}

    def _query_rules(self) -> list[dict[str, Any]]:
        counted = self._breaches
        if counted is None:
            raise CommandFailed("drivers are not checked: start vfu-server with --check-driver")
        breaches = counted.all()
        return [
            {
                "rule": name,
                "level": rule.level,
                "section": rule.section,
                "text": rule.text,
                "breaches": [
                    {"function": breach.function, "subject": breach.subject, "count": breach.count}
                    for breach in breaches
                    if breach.rule == name
                ],
            }
            for name, rule in RULES.items()
        ]

    def _log_level(self, level: str, function: str | None = None) -> None:
        if level not in LEVELS:
            raise CommandFailed(f"There is no level {level[:80]!r}; there are: {', '.join(LEVELS)}")
        served = self._served if function is None else {function: self._find(function)}
        if function is None:
            logging.getLogger().setLevel(level.upper())
        for name, (_, thread) in served.items():
            logging.getLogger(f"virtio.{name}").setLevel(level.upper() if function else logging.NOTSET)
            thread.log_level_changed()

    def _query_uplink(self) -> dict[str, Any]:
        uplink = self._networks.uplink if self._networks is not None else None
        if uplink is None:
            raise CommandFailed("there is no uplink: start vfu-server with --uplink")
        return {"carrier": uplink.port.link_up, **uplink.counters()}

    def _config_change(self, function: str) -> None:
        found, thread = self._find(function)
        _on_thread(thread, found.transport.config_changed)

    def _set_link(self, function: str, up: bool) -> None:
        found, thread, device = self._find_linked(function)
        _on_thread(thread, partial(found.transport.config_changed, "link", partial(device.set_link, up)))

    def _announce_self(self, function: str) -> None:
        _, thread, device = self._find_linked(function)
        _on_thread(thread, device.announce)

    def _inject(self, function: str, fault: str, percent: int = 100, **more: int) -> None:
        found, thread = self._find(function)
        asked = Fault(fault, chance=percent / 100, **more)
        try:
            _on_thread(thread, partial(found.transport.inject, asked))
        except ValueError as error:
            raise CommandFailed(f"{function}: {error}") from None

    def _query_faults(self) -> list[dict[str, Any]]:
        found = []
        for function, _ in self._served.values():
            with function.lock:
                faults = function.transport.faults
                found += [
                    {
                        "function": function.name,
                        "fault": fault.kind,
                        "queue": fault.queue,
                        "count": fault.count,
                        "percent": round(fault.chance * 100),
                        "met": fault.met,
                    }
                    for fault in (faults.asked if faults is not None else ())
                ]
        return found

    def _end_faults(self, function: str | None = None) -> None:
        served = self._served.values() if function is None else [self._find(function)]
        for found, thread in served:
            _on_thread(thread, found.transport.end_faults)

    def _do_reload(self) -> None:
        assert self._reload is not None
        try:
            self._reload()
        except ValueError as error:
            raise CommandFailed(str(error)) from None

    def _trace(self, on: bool | None = None, file: str | None = None) -> dict[str, Any]:
        assert self._watching is not None
        if on and file is None:
            raise CommandFailed("'file' is missing: the trace is written there")
        try:
            if on and file is not None:
                self._watching.start_trace(Path(file))
            elif on is not None:
                self._watching.stop_trace()
        except OSError as error:
            raise CommandFailed(f"{file}: {error.strerror}") from None
        return self._watching.trace()

    # -- inside ----------------------------------------------------------------------------------------

    @property
    def _breaches(self) -> Breaches | None:
        return self._watching.breaches if self._watching is not None else None

    @property
    def _served(self) -> dict[str, tuple[Function, FunctionThread]]:
        """All functions, also those that wait for VF Enable, each with its thread."""
        assert self._device is not None
        threads = self._threads()
        # A copy, as the PF's thread may change it.
        served = (self._device, *dict(self._device.served).values())
        return {
            one.name: (one.vf if isinstance(one, VfSlot) else one, threads[one.name])
            for one in served
            if one.name in threads and threads[one.name].function is one
        }

    def _find(self, name: str) -> tuple[Function, FunctionThread]:
        """One of `_served`. Raises `CommandFailed`."""
        served = self._served
        if name not in served:
            raise CommandFailed(f"There is no function {name[:80]!r}; there are: {', '.join(served)}")
        return served[name]

    def _find_linked(self, name: str) -> tuple[Function, FunctionThread, Linked]:
        """A network function, its thread, its device. Raises `CommandFailed`."""
        function, thread = self._find(name)
        device = function.transport.device
        if not isinstance(device, Linked):
            raise CommandFailed(f"{name} is no network device: it has no link")
        return function, thread, device

    def _describe(self, function: Function, thread: FunctionThread) -> dict[str, Any]:
        with function.lock:
            transport, member = function.transport, function.member
            value = transport.status
            mode = member.mode if member is not None else context.MODE_ACTIVE
            requests = [queue for queue in transport.queues.values() if queue.index < transport.num_queues]
            commands = [queue for queue in transport.queues.values() if queue.index >= transport.num_queues]
            port = self._networks.backends[function.name].port if self._networks is not None else None
            return {
                "name": function.name,
                "served": thread.alive,
                "client-attached": function.attached,
                "status": value,
                "status-names": status.describe(value).split("|") if value else [],
                "features": transport.accepted,
                "mode": MODE_NAMES[mode],
                "power-state": f"D{function.power_state}",
                "write-record": member is not None and member.record.active,
                "config-generation": transport.generation,
                "config-change-owed": transport.config_owed,
                "queue-count": len(transport.queues),
                "queues": [
                    _queue(queue, transport.device.counters(queue.index) if queue in requests else {})
                    for queue in transport.queues.values()
                    if queue.enabled or queue.requests
                ],
                "counters": {
                    "requests": sum(queue.requests for queue in requests),
                    "bytes": sum(queue.bytes for queue in requests),
                    "admin-commands": sum(queue.requests for queue in commands),
                    "notifications": transport.notifications,
                    "interrupts": function.interrupts.sent,
                    "interrupts-dropped": thread.irqs_dropped,
                    "rules-broken": self._rules_broken(function.name),
                    **transport.device.counters(),
                },
                **self._describe_sriov(function),
                **({"port": {"carrier": port.link_up, **port.counters()}} if port is not None else {}),
            }

    def _describe_sriov(self, function: Function) -> dict[str, Any]:
        """What a guest's own SR-IOV is like: the layout at the PF, where VFs are at each VF."""
        device = self._device
        assert device is not None
        if device.placement is None:
            return {}
        if function is device:
            return {"sriov": device.placement.describe()}
        number = int(function.name.removeprefix("vf"))
        return {
            "enabled": number in device.vfs,
            "bars": [
                {
                    "bar": bar,
                    "size": function.bars[bar],
                    "wanted": wanted,
                    "found": device.placement.found(number, bar),
                }
                for bar, wanted in device.placement.wanted(number).items()
            ],
        }

    def _rules_broken(self, function: str) -> int:
        breaches = self._breaches.all() if self._breaches is not None else []
        return sum(breach.count for breach in breaches if breach.function == function)


def _queue(queue: Virtqueue, counters: Mapping[str, int]) -> dict[str, Any]:
    return {
        "index": queue.index,
        "size": queue.size,
        "enabled": queue.enabled,
        "format": queue.ring.name,
        "last-avail": queue.ring.last_avail,
        "used": queue.ring.used,
        "outstanding": queue.outstanding,
        "requests": queue.requests,
        **counters,
    }


def _on_thread(thread: FunctionThread, work: Callable[[], Result]) -> Result:
    """Have a function's own thread do something. Raises `CommandFailed` where it is held up."""
    try:
        return thread.call(work, CALL_SECONDS)
    except TimeoutError as error:
        raise CommandFailed(str(error)) from None


def _greeting() -> dict[str, Any]:
    """The version of this package as QMP has it."""
    major, minor, micro = (int(part) for part in __version__.split("."))
    return {"qemu": {"major": major, "minor": minor, "micro": micro}, "package": "vfu-server"}


def _nothing() -> None:
    """What `quit` does before its answer is sent."""
