"""All functions of one device, at their sockets in one folder."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType
from typing import Final, Protocol, Self

from vfu_server.function_thread import FunctionThread, Served
from vfu_server.socket_path import SOCKET_PATH_MAX

STOP_SECONDS: Final = 5.0
"""How long all functions together may take to stop."""

log: Final = logging.getLogger("virtio.server")


class FolderTakenError(Exception):
    """Another server listens in this folder."""


class ServedDevice(Served, Protocol):
    """What the server needs of a physical function (`pymodel.build`)."""

    on_vfs_changed: Callable[[], None] | None

    @property
    def vfs(self) -> Mapping[int, Served]: ...


class Folder:
    """The folder of a server's sockets, which it has to itself until `close`.

    Made if it is missing, for its owner only. Raises FolderTakenError, or OSError.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        longest = os.fsencode(path / "vf65535.sock")
        if len(longest) > SOCKET_PATH_MAX:
            raise OSError(f"{path}: the name is too long for a socket in it; choose a shorter one")
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(self._lock)
            raise FolderTakenError(
                f"another server runs in {path}: stop it, or choose another folder"
            ) from None

    def close(self) -> None:
        """Let another server have the folder. The lock file stays: removing it would race with that one."""
        os.close(self._lock)


class Server:
    """Serves a physical function and the VFs that it has, while they come and go. For the main thread.

    A context manager: entering it makes all sockets, leaving it ends all threads and removes the sockets.
    """

    def __init__(self, device: ServedDevice, folder: Folder) -> None:
        self._device = device
        self._folder = folder
        self._threads: dict[int, FunctionThread] = {}  # by VF number; 0 is the physical function
        self._changed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False

    def __enter__(self) -> Self:
        # Called on the PF's thread with the lock held: starting and stopping threads is left to this one.
        self._device.on_vfs_changed = self._wake
        try:
            self._start(0, self._device)
            self._follow_vfs()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, ready: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; call `ready` once those are handled."""
        # The number of a signal is written to this pipe at once, whatever the interpreter is busy with.
        reader, writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        old_writer = signal.set_wakeup_fd(writer)
        old_handlers = {
            number: signal.signal(number, self._on_signal) for number in (signal.SIGTERM, signal.SIGINT)
        }
        waiting = select.poll()
        waiting.register(reader, select.POLLIN)
        waiting.register(self._changed, select.POLLIN)
        try:
            ready()
            while not self._stopped:
                for fd, _ in waiting.poll():
                    os.read(fd, 4096)
                if not self._stopped:
                    self._follow_vfs()
        finally:
            for number, handler in old_handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(old_writer)
            os.close(reader)
            os.close(writer)

    @property
    def threads(self) -> dict[str, FunctionThread]:
        """The functions that are served now, by name. Any thread may ask."""
        return {thread.function.name: thread for _, thread in sorted(self._threads.copy().items())}

    def stop(self) -> None:
        """End `run`. Any thread may call it."""
        self._stopped = True
        self._wake()

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        log.info("%s: stopping", signal.Signals(number).name)
        self._stopped = True

    def _wake(self) -> None:
        os.eventfd_write(self._changed, 1)

    def _start(self, number: int, function: Served) -> None:
        thread = FunctionThread(function, self._folder.path / f"{function.name}.sock")
        self._threads[number] = thread
        thread.start()

    def _follow_vfs(self) -> None:
        """Have a thread for each VF that there is; a new one where a number is another VF than before."""
        with self._device.lock:
            wanted = dict(self._device.vfs)
        gone = [n for n, thread in self._threads.items() if n and wanted.get(n) is not thread.function]
        self._end(gone)
        for number in sorted(wanted.keys() - self._threads.keys()):
            self._start(number, wanted[number])

    def _end(self, numbers: list[int]) -> None:
        threads = [self._threads.pop(number) for number in numbers]
        for thread in threads:
            thread.stop()
        deadline = time.monotonic() + STOP_SECONDS
        for thread in threads:
            thread.join(max(deadline - time.monotonic(), 0.0))

    def _close(self) -> None:
        self._device.on_vfs_changed = None
        self._end(list(self._threads))
        os.close(self._changed)
