"""Gates in front of what files do, in the hands of a test."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import pytest

from pymodel.devices.block.disk import Job
from tests.wire.running import until
from vfu_server.disks.image import Image

SECONDS = 10

Key = TypeVar("Key", bound=Hashable)


class Gates(Generic[Key]):
    """An image's jobs whose key was closed wait until the test opens it; all are kept when they begin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, key: Callable[[Job], Key]) -> None:
        self.begun: list[Job] = []
        self._key = key
        self._closed: dict[Key, threading.Event] = {}
        real = Image.perform

        def perform(image: Image, job: Job) -> None:
            self.begun.append(job)
            gate = self._closed.get(key(job))
            assert gate is None or gate.wait(SECONDS)
            real(image, job)

        monkeypatch.setattr(Image, "perform", perform)

    def close(self, key: Key) -> None:
        self._closed[key] = threading.Event()

    def open(self, key: Key) -> None:
        self._closed.pop(key).set()

    def wait(self, key: Key, count: int = 1) -> None:
        """Wait until so many of the key have begun."""
        until(lambda: sum(self._key(job) == key for job in self.begun) >= count, f"{count} of {key!r} begun")

    def open_all(self) -> None:
        for gate in self._closed.values():
            gate.set()
