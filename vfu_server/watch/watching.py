"""Who watches the functions of a server: the rules for drivers, a trace, captures of frames."""

from __future__ import annotations

import weakref
from functools import partial
from pathlib import Path
from typing import Any, Final

from pymodel.devices.net.device import NetDevice
from pymodel.pci.function import Function
from pymodel.rules.breaches import Breaches
from pymodel.rules.checker import topics
from pymodel.watch.frames import Frames
from pymodel.watch.listener import Decoder, Listener
from pymodel.watch.tracer import Tracer
from vfu_server.watch.capture_file import CaptureFile
from vfu_server.watch.trace_file import TraceFile

TRACE_BYTES: Final = 256 << 20
"""A trace is no longer than this. A viewer takes about as much."""

CAPTURE_BYTES: Final = 1 << 30
"""Nor is a capture than this."""


class Watching:
    """Puts watchers to functions. Nobody is put to one that nobody watches.

    With `breaches` drivers are held to the rules. Captures are asked for before the functions are made; a
    trace comes and goes.
    """

    def __init__(self, breaches: Breaches | None) -> None:
        self.breaches = breaches
        self._captures: dict[str, CaptureFile] = {}
        self._trace: TraceFile | None = None
        self._functions: weakref.WeakSet[Function] = weakref.WeakSet()

    def capture(self, function: str, path: Path) -> None:
        """Have the frames of a function in a file, which several may share. Raises OSError."""
        there = [capture for capture in self._captures.values() if capture.file.path == path]
        self._captures[function] = there[0] if there else CaptureFile(path, CAPTURE_BYTES)

    def begin(self, function: Function) -> None:
        """A function was made, and nobody else has it yet."""
        listeners: list[Listener] = []
        if self.breaches is not None:
            listeners += topics(function, self.breaches)
        capture = self._captures.get(function.name)
        device = function.transport.device
        if capture is not None and isinstance(device, NetDevice):
            listeners.append(Frames(function, device, partial(capture.keep, function.name)))
        self._functions.add(function)
        self._put(function, listeners)

    def _put(self, function: Function, listeners: list[Listener]) -> None:
        if self._trace is not None:
            listeners.append(Tracer(function, self._trace))
        function.watch(Decoder(function, listeners) if listeners else None)

    # -- the trace -------------------------------------------------------------------------------------------

    def start_trace(self, path: Path) -> None:
        """Trace all functions into a new file, and no longer into another one. Raises OSError."""
        trace = TraceFile(path, TRACE_BYTES)
        self.stop_trace()
        self._follow(trace)

    def stop_trace(self) -> None:
        """End a trace, if there is one: all of it is in its file then."""
        trace = self._trace
        self._follow(None)
        if trace is not None:
            trace.close()

    def trace(self) -> dict[str, Any]:
        """Whether there is a trace, and how long it is."""
        trace = self._trace
        if trace is None:
            return {"on": False}
        return {
            "on": True,
            "file": str(trace.file.path),
            "events": trace.events,
            "bytes": trace.file.size,
            "full": trace.file.full,
        }

    def _follow(self, trace: TraceFile | None) -> None:
        """Have every function traced into `trace`."""
        self._trace = trace
        for function in list(self._functions):
            with function.lock:
                watcher = function.watcher
                kept = watcher.listeners if isinstance(watcher, Decoder) else ()
                self._put(function, [one for one in kept if not isinstance(one, Tracer)])

    def close(self) -> None:
        """The server ends: all of trace and captures is in their files."""
        self.stop_trace()
        for capture in self._captures.values():
            capture.close()
