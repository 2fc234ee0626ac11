"""A trace for ui.perfetto.dev and chrome://tracing: the Trace Event Format, which is JSON."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vfu_server.watch.bounded_file import BoundedFile


class TraceFile:
    """A `pymodel.watch.tracer.Sink`. A function is a process of the trace, a queue of it one of its threads.

    The list of events is closed when the trace is. Where a server is killed it is not, which the format
    allows. Raises OSError where the file cannot be made.
    """

    def __init__(self, path: Path, limit: int) -> None:
        self.file = BoundedFile(path, limit)
        self.events = 0
        self._begin = time.monotonic_ns()
        # Numbers of functions and of their tracks.
        self._functions: dict[str, int] = {}
        self._tracks: dict[tuple[str, str], int] = {}
        with self.file.lock:
            self.file.put(b"[")

    def instant(self, function: str, track: str, name: str, details: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self._event(function, track, {"ph": "i", "s": "t", "name": name, "args": details})

    def begin(self, function: str, track: str, name: str, number: int, details: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self._pair("b", function, track, name, number, details)

    def end(self, function: str, track: str, name: str, number: int, details: Mapping[str, Any]) -> None:
        """See `Sink`."""
        self._pair("e", function, track, name, number, details)

    def close(self) -> None:
        """Have all of it in the file."""
        self.file.close(b"\n]\n")

    def _pair(
        self, phase: str, function: str, track: str, name: str, number: int, details: Mapping[str, Any]
    ) -> None:
        # Requests of a queue overlap, so they are told apart by their numbers.
        event = {
            "ph": phase,
            "cat": track,
            "id2": {"local": f"{track} {number}"},
            "name": name,
            "args": details,
        }
        self._event(function, track, event)

    def _event(self, function: str, track: str, event: dict[str, Any]) -> None:
        with self.file.lock:
            process, thread = self._number(function, track)
            stamp = (time.monotonic_ns() - self._begin) / 1000
            self._put({**event, "ts": stamp, "pid": process, "tid": thread})

    def _number(self, function: str, track: str) -> tuple[int, int]:
        """The numbers of a function and a track, which are named when they come first."""
        process = self._functions.get(function)
        if process is None:
            process = self._functions[function] = len(self._functions) + 1
            self._put({"ph": "M", "name": "process_name", "pid": process, "args": {"name": function}})
        thread = self._tracks.get((function, track))
        if thread is None:
            thread = self._tracks[function, track] = len(self._tracks) + 1
            named = {"ph": "M", "name": "thread_name", "pid": process, "tid": thread, "args": {"name": track}}
            self._put(named)
        return process, thread

    def _put(self, event: Mapping[str, Any]) -> None:
        text = json.dumps(event, separators=(",", ":"), default=str)
        if self.file.put((b",\n" if self.events else b"\n") + text.encode()):
            self.events += 1
