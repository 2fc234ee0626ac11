"""All functions of one device, at their sockets in one folder."""

from __future__ import annotations

import fcntl
import logging
import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from types import FrameType
from typing import Final, Protocol, Self

from vfu_server.budget import Budget
from vfu_server.function_thread import FunctionThread, Served
from vfu_server.socket_path import SOCKET_PATH_MAX

STOP_SECONDS: Final = 5.0
"""How long all functions together may take to stop."""

QUEUED_SECONDS: Final = 1.0
"""How long a client may wait to be let in before that is told."""

STARTERS: Final = 32
"""Threads of functions that are started at a time where there are more. Python waits for each until it runs,
which takes a busy machine milliseconds.
"""

NOT_TO_BE_HAD: Final = (OSError, RuntimeError, MemoryError)
"""Raised where there is no descriptor, no thread or no memory for another function."""

log: Final = logging.getLogger("virtio.server")


class FolderTakenError(Exception):
    """Another server listens in this folder."""


class StopSignals:
    """SIGTERM, SIGINT and SIGHUP ask for the end and do no more, however many come and whenever that is.

    A context manager, for the main thread. `came` is the name of the first one, else empty; `fd` is readable
    from then on. SIGHUP that is ignored (nohup) stays so. Afterwards all is as before; after a signal they
    are ignored, as the process is about to end.
    """

    def __enter__(self) -> Self:
        self.came = ""
        # The number of a signal is written to this pipe at once, whatever the interpreter is busy with.
        self.fd, self._writer = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._old_writer = signal.set_wakeup_fd(self._writer, warn_on_full_buffer=False)
        self._old_handlers = {
            number: signal.signal(number, self._on_signal)
            for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._old_handlers.items():
            signal.signal(number, signal.SIG_IGN if self.came else handler)
        signal.set_wakeup_fd(self._old_writer)
        os.close(self.fd)
        os.close(self._writer)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self.came = self.came or signal.Signals(number).name


class ServedDevice(Served, Protocol):
    """What the server needs of a physical function (`pymodel.build`)."""

    on_vfs_changed: Callable[[], None] | None

    @property
    def served(self) -> Mapping[int, Served]:
        """What is served beside it, by VF number."""
        ...


class Folder:
    """The folder of a server's sockets, which it has to itself until `close`.

    Made if it is missing, for its owner only. Raises FolderTakenError, OSError, or ValueError for a name that
    is too long for what is to be in it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        longest = os.fsencode(path / "vf65535.sock")
        if len(longest) > SOCKET_PATH_MAX:
            raise ValueError(f"{path}: the name is too long for a socket in it; choose a shorter one")
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

    Each client may take what `budget` says. A context manager: entering it makes all sockets, leaving it ends
    all threads and removes the sockets.
    """

    def __init__(self, device: ServedDevice, folder: Folder, budget: Budget = Budget()) -> None:  # noqa: B008 - a tuple
        self._device = device
        self._folder = folder
        self._budget = budget
        self._threads: dict[int, FunctionThread] = {}  # by VF number; 0 is the physical function
        self._changed = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._stopped = False
        self._events = select.epoll()
        self._queued: dict[int, float] = {}  # listeners at which somebody came, and when

    def __enter__(self) -> Self:
        # Called on the PF's thread with the lock held: starting and stopping threads is left to this one.
        self._device.on_vfs_changed = self._wake
        try:
            failed = self._serve({0: self._device, **self._vfs})
        except BaseException:
            self._close()
            raise
        for error in failed.values():
            self._close()
            raise error
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def run(self, ready: Callable[[], None], stop: StopSignals | None = None) -> None:
        """Serve until `stop` has come, or a signal where there is none of the caller; call `ready` before."""
        with ExitStack() as own:
            if stop is None:
                stop = own.enter_context(StopSignals())
            waiting = self._events
            waiting.register(stop.fd, select.EPOLLIN)
            waiting.register(self._changed, select.EPOLLIN)
            if not stop.came:
                ready()
            while not self._ended(stop):
                for fd, _ in waiting.poll(QUEUED_SECONDS if self._queued else None):
                    if fd in {stop.fd, self._changed}:
                        os.read(fd, 4096)
                    else:
                        self._queued[fd] = time.monotonic()
                if not self._ended(stop):
                    with suppress(*NOT_TO_BE_HAD):
                        self._follow_vfs()
                    self._tell_of_queued()
            waiting.unregister(stop.fd)
            log.info("%s: stopping", stop.came or "quit")

    @property
    def threads(self) -> dict[str, FunctionThread]:
        """The functions that are served now, by name. Any thread may ask."""
        return {thread.function.name: thread for _, thread in sorted(self._threads.copy().items())}

    def stop(self) -> None:
        """End `run`. Any thread may call it."""
        self._stopped = True
        self._wake()

    def _ended(self, stop: StopSignals) -> bool:
        return self._stopped or stop.came != ""

    def _wake(self) -> None:
        os.eventfd_write(self._changed, 1)

    @property
    def _vfs(self) -> dict[int, Served]:
        with self._device.lock:
            return dict(self._device.served)

    def _serve(self, functions: Mapping[int, Served]) -> dict[int, Exception]:
        """Have a socket and a thread for each of these. One of NOT_TO_BE_HAD for each that has none."""
        made: dict[int, FunctionThread] = {}
        failed: dict[int, Exception] = {}
        for number in sorted(functions):
            try:
                made[number] = self._make(functions[number])
            except NOT_TO_BE_HAD as error:
                failed[number] = error
        if len(made) > STARTERS:
            _start_as_can_be(made.values())
        for number, thread in made.items():
            try:
                thread.start()
                self._threads[number] = thread
            except NOT_TO_BE_HAD as error:
                thread.stop()
                thread.join(0)
                failed[number] = error
        return failed

    def _make(self, function: Served) -> FunctionThread:
        # A command of the owner is not to wait until all VFs that are busy had their turns.
        prompt = function is self._device
        path = self._folder.path / f"{function.name}.sock"
        thread = FunctionThread(function, path, self._budget, prompt=prompt)
        try:
            # Once for each client that comes, and not for as long as it waits.
            self._events.register(thread.listener, select.EPOLLIN | select.EPOLLET)
        except BaseException:
            thread.stop()
            thread.join(0)
            raise
        return thread

    def _tell_of_queued(self) -> None:
        """Tell of clients that came a while ago and still wait: one of two at a socket would seem to hang."""
        looked = select.poll()
        names = {thread.listener: name for name, thread in self.threads.items() if thread.alive}
        for fd, since in list(self._queued.items()):
            if time.monotonic() - since < QUEUED_SECONDS and fd in names:
                continue
            del self._queued[fd]
            if fd not in names:
                continue
            looked.register(fd, select.POLLIN)
            if looked.poll(0):
                log.warning("%s: a client waits: there is one already, and a socket has one", names[fd])
            looked.unregister(fd)

    def _follow_vfs(self) -> None:
        """Have a thread for each VF that there is; a new one where a number is another VF than before.

        Raises the first of NOT_TO_BE_HAD, each told, once all others have theirs.
        """
        wanted = self._vfs
        gone = [n for n, thread in self._threads.items() if n and wanted.get(n) is not thread.function]
        for number in gone:
            thread = self._threads[number]
            log.log(
                logging.WARNING if thread.attached else logging.INFO,
                "%s is gone: the PF's driver, or a reset of the PF, cleared VF Enable%s",
                thread.function.name,
                "; its client is hung up on" if thread.attached else "",
            )
        self._end(gone)
        failed = self._serve({number: wanted[number] for number in wanted.keys() - self._threads.keys()})
        for number, error in failed.items():
            log.error("%s is not served, until VFs are enabled again: %s", wanted[number].name, error)
        for error in failed.values():
            raise error

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
        self._events.close()
        os.close(self._changed)


def _start_as_can_be(threads: Iterable[FunctionThread]) -> None:
    """Start threads, `STARTERS` at a time. Those for which no thread is to be had are not started."""
    with suppress(*NOT_TO_BE_HAD), ThreadPoolExecutor(STARTERS, "starter") as starters:
        starters.map(FunctionThread.start, threads)
