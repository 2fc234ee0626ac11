"""A context of the extension on a thread of its own, with a handler that keeps what it is told."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final, TypeVar

import pytest

from vfu_server.vfio._vfu import GUARDED, Context

PAGE: Final = 4096

T = TypeVar("T")

guarded = pytest.mark.skipif(not GUARDED, reason="a system libvfio-user has these faults")


class Device:
    """A handler that keeps what it is told, and a thread that runs its context until it is closed."""

    def __init__(self, path: Path, **limits: int) -> None:
        self.path = path
        self.writes: list[tuple[int, int, bytes]] = []
        self.logged: list[str] = []
        self.errors: list[Exception] = []
        self.resets = 0
        self.answer: Callable[[int, int, int], bytes] = lambda region, _, length: bytes([region]) * length
        self.todo: list[tuple[Callable[[], object], threading.Event, list[object]]] = []
        self.context = Context(
            str(path), self, bars={0: 0x1000, 4: 0x4000}, msix_vectors=4, intx=True, log_level=3, **limits
        )
        self._stopping = False
        self._thread = threading.Thread(target=self._main)
        self._thread.start()

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        return self.answer(region, offset, length)

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        self.writes.append((region, offset, data))

    def reset(self) -> None:
        self.resets += 1

    def mapping_changed(self, address: int, length: int, there: bool, writable: bool) -> None:
        raise AssertionError("nobody asked for it")

    def log(self, level: int, text: str) -> None:
        assert 0 <= level <= 7
        self.logged.append(text)

    def _main(self) -> None:
        while not self._stopping:
            try:
                if self.context.attached:
                    self.context.run(None)
                else:
                    self.context.attach(None)
            except Exception as error:  # noqa: BLE001 - the test looks at it
                self.errors.append(error)
            while self.todo:
                call, done, result = self.todo.pop()
                try:
                    result.append(call())
                except Exception as error:  # noqa: BLE001 - raised again by `do`
                    result.append(error)
                done.set()

    def do(self, call: Callable[[], T]) -> T:
        """Call on the context's own thread."""
        done = threading.Event()
        result: list[object] = []
        self.todo.append((call, done, result))
        self.context.wake()
        assert done.wait(10)
        if isinstance(result[0], Exception):
            raise result[0]
        return result[0]  # type: ignore[return-value]

    def close(self) -> None:
        self._stopping = True
        self.context.hang_up()
        self._thread.join(5)
        assert not self._thread.is_alive()
        self.context.close()


@contextlib.contextmanager
def memfd(size: int, name: str = "guest") -> Iterator[int]:
    fd = os.memfd_create(name)
    try:
        os.ftruncate(fd, size)
        yield fd
    finally:
        os.close(fd)


def fds_open() -> int:
    """On the device's thread all of a message are closed; its reply comes before that."""
    return len(os.listdir("/proc/self/fd"))
