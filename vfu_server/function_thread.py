"""One thread for each function: waits in the library for its client, and is the `Host` of its model.

A client can stall only its own function: the library blocks on a half-sent message and on a client that takes
no replies, and no lock is held there. The model's lock is taken around each call into the model.
"""

from __future__ import annotations

import heapq
import itertools
import logging
import re
import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar, cast

from pymodel.host import Host
from pymodel.memory import GuestMemory as Memory
from pymodel.pci.lane import Lane
from vfu_server.budget import Budget
from vfu_server.datapath import COMPILED, DirectMemory, Loop
from vfu_server.vfio._vfu import CONFIG_REGION, Context, take_short_turns
from vfu_server.vfio.turn_lock import TurnLock

Result = TypeVar("Result")

TRACE: Final = 5
"""The log level below `debug`: what the library has to say of each access."""

FLUX_SECONDS: Final = 0.5
"""How long memory that the client unmapped may be missing before that is the driver's mistake."""

PROMPT_NS: Final = 400_000
"""A turn of a thread that is to be prompt: more than an admin command takes, and less than others get."""

_NO_MEMORY: Final = "the server has no memory for an access"
_PAST_THE_END: Final = "guest memory is past the end of the client's file"

_NUMBER: Final = re.compile(r"0x[0-9a-fA-F]+|\d+")
"""What differs in lines of the library that say the same."""

_SYSLOG_ERROR: Final = 3
_SYSLOG_DEBUG: Final = 7


class Served(Protocol):
    """What a thread needs of `pymodel.pci.function.Function`. Its lock is held around all calls but one."""

    @property
    def name(self) -> str: ...
    @property
    def lock(self) -> AbstractContextManager[Any]: ...
    @property
    def bars(self) -> dict[int, int]: ...
    @property
    def msix_vectors(self) -> int: ...
    @property
    def has_intx(self) -> bool: ...
    def attach(self, host: Host) -> None: ...
    def detach(self) -> None: ...
    def config_read(self, offset: int, length: int) -> bytes: ...
    def config_write(self, offset: int, data: bytes) -> None: ...
    def bar_read(self, bar: int, offset: int, length: int) -> bytes: ...
    def bar_write(self, bar: int, offset: int, data: bytes) -> None: ...
    def device_reset(self) -> None: ...
    @property
    def waits(self) -> Sequence[tuple[int, int]]: ...
    def service(self) -> None: ...
    def work_unlocked(self) -> bool: ...
    def lanes(self) -> list[Lane]: ...
    def go_on(self, queues: Iterable[int]) -> None: ...
    def memory_lost(self, reason: str) -> None: ...
    def mapping_changed(self, address: int, length: int, *, there: bool, writable: bool) -> None: ...
    @property
    def watched(self) -> bool: ...


class FunctionThread:
    """Serves one function at one socket until `stop`. It is the function's `Host`.

    Its client may take what `budget` says. `prompt`: when it wakes it goes ahead of others that wait for a
    processor, though it gets no more time than they. Constructing it makes the socket, so a client may
    connect from then on; raises OSError with nothing left behind. An exception that comes out of the model is
    a bug of ours: it is logged and ends this thread and its socket, the other functions go on.
    """

    def __init__(
        self,
        function: Served,
        path: Path,
        budget: Budget = Budget(),  # noqa: B008 - a tuple
        *,
        prompt: bool = False,
    ) -> None:
        self.function = function
        self._prompt = prompt
        self.failed = False
        self._log = logging.getLogger(f"virtio.{function.name}")
        self._accesses = _Accesses(function, self._log)
        self._context = Context(
            str(path),
            self._accesses,
            bars=function.bars,
            msix_vectors=function.msix_vectors,
            intx=function.has_intx,
            log_level=self._library_level,
            eventfds_max=budget.eventfds,
            mappings_max=budget.mappings,
            bytes_max=budget.address_space,
        )
        # What serves queues without the interpreter, where that is there and the lock is one for it.
        lock = function.lock
        self._loop = Loop(self._context, lock) if COMPILED and isinstance(lock, TurnLock) else None
        # The context's has all that the model asks for where that is not compiled.
        memory = self._context.memory
        self._memory = DirectMemory(memory) if COMPILED else cast("Memory", memory)
        self._path = path
        self._stopping = False
        self._waits: Sequence[tuple[int, int]] = ()
        self._posted: list[tuple[int, bytes]] = []
        self._lost_pages = 0
        self._refused = 0
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        # A daemon, so that a backend that hangs for good can't keep the process from ending.
        self._thread = threading.Thread(target=self._main, name=function.name, daemon=True)

    def start(self) -> None:
        """Start to serve, unless that was done. Not for two threads at a time.

        Raises RuntimeError or MemoryError where no thread is to be had.
        """
        if self._thread.ident is None:
            self._thread.start()

    def stop(self) -> None:
        """Tell the thread to end, whatever its client does. Returns at once; any thread may call it."""
        self._stopping = True
        self._context.hang_up()

    def join(self, timeout: float) -> bool:
        """Wait until the thread ended and its socket is gone. Whether that happened in `timeout` seconds.

        Not to be called with the model's lock held, which the thread needs to end.
        """
        if self._thread.ident is None:
            self._context.close()
            return True
        self._thread.join(timeout)
        if self._thread.is_alive():
            self._log.error("did not stop in %g s; its backend may hang", timeout)
            self._path.unlink(missing_ok=True)
            return False
        return True

    @property
    def alive(self) -> bool:
        """Whether the function is served."""
        return self._thread.is_alive()

    @property
    def attached(self) -> bool:
        """Whether a client is attached."""
        return self._context.attached

    @property
    def listener(self) -> int:
        """The descriptor that clients connect to, for poll(2): readable while one waits to be let in."""
        return self._context.listener

    @property
    def _library_level(self) -> int:
        """What the library is to say: each access, or what goes wrong."""
        return _SYSLOG_DEBUG if self._log.isEnabledFor(TRACE) else _SYSLOG_ERROR

    def log_level_changed(self) -> None:
        """Have the library say as much as the log takes now. Any thread may call it, without the lock."""
        with self.function.lock:
            self.after(0, lambda: self._context.log_up_to(self._library_level))

    def call(self, work: Callable[[], Result], timeout: float) -> Result:
        """Have `work` done on this thread, the function's lock held, and return what it returns.

        For other threads, which must not hold the lock. Raises what `work` raises, and TimeoutError where it
        was not begun in `timeout` seconds, as while the client holds the thread up: then it never is.
        """
        if not self.alive:
            raise TimeoutError(f"{self.function.name} is not served any more")
        future: Future[Result] = Future()

        def run() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - raised again on the thread that asked
                future.set_exception(error)

        with self.function.lock:
            self.after(0, run)
        try:
            return future.result(timeout)
        except TimeoutError:
            future.cancel()  # in vain if it runs
        try:
            return future.result(timeout)
        except CancelledError:
            raise TimeoutError(f"{self.function.name} did not answer within {timeout:g} s") from None

    # What the model calls (pymodel.host.Host).

    @property
    def memory(self) -> Memory:
        """The client's memory; nothing is mapped while none is attached."""
        return self._memory

    @property
    def memory_in_flux(self) -> bool:
        """Whether the client unmapped something a moment ago."""
        return time.monotonic() - self._context.memory.unmapped_at < FLUX_SECONDS

    @property
    def irqs_dropped(self) -> int:
        """Interrupts that the client's eventfd could not take."""
        return self._context.irqs_dropped

    def msix(self, vector: int) -> None:
        """Send the MSI-X message of `vector`, unless the client gave no eventfd for it."""
        self._trigger(vector)

    def intx(self) -> None:
        """Assert INTx. The library keeps its eventfd where vector 0's is: only one kind is on at a time."""
        self._trigger(0)

    def post_write(self, address: int, data: bytes) -> None:
        """Have the client write at an address, once this thread holds no lock: it may have to wait for it."""
        self._posted.append((address, data))

    def _trigger(self, vector: int) -> None:
        if threading.current_thread() is self._thread:
            self._context.irq_trigger(vector)
        else:
            # An admin command of the PF may make a VF owe one, while the VF's thread takes new eventfds.
            self.after(0, lambda: self._trigger(vector))

    def wake(self) -> None:
        """Have the function serviced soon. Any thread may call it."""
        self._context.wake()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` on this thread `seconds` from now, then service the function."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), call))
        if threading.current_thread() is not self._thread:
            self._context.wake()

    def end(self, reason: str) -> None:
        """Serve the function no more."""
        self._log.error("is no longer served: %s", reason)
        self.stop()

    # The thread itself.

    def _main(self) -> None:
        # Signals are for the main thread: a system call in the library is not to be interrupted.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM, signal.SIGHUP})
        if self._prompt:
            take_short_turns(PROMPT_NS)
        try:
            while not self._stopping:
                self._turn()
            if self._context.attached:
                self._detach("it is no longer served")
        except Exception:  # noqa: BLE001 - the one place: a bug of this function must not hurt its neighbours
            self.failed = True
            self._log.exception("internal error: this function is no longer served, please report it")
            self._give_up()
        finally:
            self._context.close()

    def _give_up(self) -> None:
        """Have nothing of the function under way any more: its owner and its disk's other users may go on."""
        try:
            with self.function.lock:
                self.function.detach()
                self.function.service()
        except Exception:  # noqa: BLE001 - of a function that has failed already
            self._log.exception("internal error: what was under way stays so")

    def _turn(self) -> None:
        """Wait for a client, a message, a timer or `wake`, and have the model work on it."""
        try:
            if self._context.attached:
                if self._serve_client():
                    return
            elif self._context.attach(self._patience()):
                self._lost_pages = self._context.memory.lost
                with self.function.lock:
                    self.function.attach(self)
                self._log.info("a client attached")
        except ConnectionResetError:
            self._detach("the client left")
        except ConnectionError as error:
            self._log.warning("a client was refused: %s", error)
        except BlockingIOError as error:
            self._log.warning("%s: clients wait", error.strerror)
        with self.function.lock:
            self._run_timers()
            self._service()
            memory = self._context.memory
            if memory.lost != self._lost_pages:
                self._lost_pages = memory.lost
                self.function.memory_lost(_PAST_THE_END)
            if memory.refused != self._refused:
                self._refused = memory.refused
                self.function.memory_lost(memory.refusal)
            self._rest()
        if self._posted:
            posted, self._posted = self._posted, []
            self._context.post_writes(posted)
        if self.function.work_unlocked():
            with self.function.lock:
                self._service()
                self._rest()
            if self.function.work_unlocked():
                self.wake()  # the client's messages come first

    def _serve_client(self) -> bool:
        """Wait for the client, and have the library handle its messages. Whether there is nothing else to do.

        Raises ConnectionResetError where it left.
        """
        patience = self._patience()
        if self._loop is not None:
            if not self._loop.run(patience, self._waits):
                return False
            if self._loop.armed:
                patience = 0.0  # the loop has waited
        handled = self._context.run(patience, self._waits)
        # Registers that were read leave nothing to do.
        return 0 < handled == self._accesses.take_reads() and not self._context.woken and not self._timers

    def _service(self) -> None:
        """Have the model work, also on turns of queues that the loop was to give."""
        if self._loop is not None:
            self.function.go_on(self._loop.others())
        self.function.service()

    def _rest(self) -> None:
        """The function has nothing to do now: what is waited for, and who serves its queues meanwhile."""
        self._waits = self.function.waits
        self._context.tells_of_memory = self.function.watched
        if self._loop is not None:
            self._loop.arm(self.function.lanes() if self._context.attached else ())

    def _detach(self, reason: str) -> None:
        with self.function.lock:
            self.function.detach()
        self._log.info("detached: %s", reason)

    def _patience(self) -> float | None:
        """Seconds until the first timer."""
        return max(self._timers[0][0] - time.monotonic(), 0.0) if self._timers else None

    def _run_timers(self) -> None:
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()


class _Accesses:
    """A client's accesses, on their way from the library into the model (`vfu_server.vfio._vfu.Handler`)."""

    def __init__(self, function: Served, log: logging.Logger) -> None:
        self._function = function
        self._log = log
        self._reads = 0

    def take_reads(self) -> int:
        """How many reads there were since the last call."""
        reads, self._reads = self._reads, 0
        return reads

    def region_read(self, region: int, offset: int, length: int) -> bytes:
        self._reads += 1
        with self._function.lock:
            try:
                if region == CONFIG_REGION:
                    return self._function.config_read(offset, length)
                return self._function.bar_read(region, offset, length)
            except MemoryError:
                self._function.memory_lost(_NO_MEMORY)
                return b"\xff" * length  # as where nothing answers

    def region_write(self, region: int, offset: int, data: bytes) -> None:
        with self._function.lock:
            try:
                if region == CONFIG_REGION:
                    self._function.config_write(offset, data)
                else:
                    self._function.bar_write(region, offset, data)
            except MemoryError:
                self._function.memory_lost(_NO_MEMORY)

    def reset(self) -> None:
        with self._function.lock:
            try:
                self._function.device_reset()
            except MemoryError:
                self._function.memory_lost(_NO_MEMORY)

    def mapping_changed(self, address: int, length: int, there: bool, writable: bool) -> None:
        with self._function.lock:
            self._function.mapping_changed(address, length, there=there, writable=writable)

    def log(self, level: int, text: str) -> None:
        if level > _SYSLOG_ERROR:
            self._log.log(TRACE, "libvfio-user: %s", text)
            return
        self._log.warning("libvfio-user: %s", text, extra={"kind": _NUMBER.sub("#", text)})
