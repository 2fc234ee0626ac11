"""A device type of one's own: say what it is and what a request does; all the rest is here.

docs/own-device.md walks through two of them.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Final

import numpy as np

from pymodel.devices.device import Notifier
from pymodel.errors import BrokenQueue, GuestError, InvalidField
from pymodel.memory import Buffer, GuestMemory
from pymodel.migration.parts import Part
from pymodel.migration.state import DeviceField, FunctionState, Mark
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import context

EMPTY: Final = np.dtype([])
DATA_MAX: Final = 16 << 20
"""Bytes that a request may bring. One with more breaks the queue."""


class _Nobody:
    """The transport of a device that has none yet."""

    def wake(self) -> None:
        """Nobody sleeps."""

    def config_changed(self, name: str = "", change: Callable[[], None] | None = None) -> None:
        """Nobody is told."""
        if change is not None:
            change()

    def config_set(self) -> None:
        """Nobody is told."""

    def enabled(self, queue: int) -> bool:
        """No queue is."""
        return False

    def resume(self, queue: int) -> None:
        """There is none."""

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """There is no time."""


class Request:
    """One buffer of the driver's: `data` is what it brings, `room` how many bytes can be answered."""

    def __init__(self, buffer: Buffer, data: bytes) -> None:
        self.queue = buffer.queue
        self.data = data
        self.room = buffer.writable.length
        self._buffer = buffer

    def complete(self, answer: bytes | bytearray | memoryview = b"") -> None:
        """Give `answer`, cut to `room`, to the driver. Once; after a reset nothing happens.

        Raises TypeError for what has no bytes.

        On the function's own thread, as everything here: in `OwnDevice.request`, or in what `after` calls.
        """
        content = memoryview(answer).tobytes()[: self.room]
        self._buffer.complete(self._buffer.writable.put(0, content) if content else 0)


class OwnDevice:
    """The base class of a device type.

    A subclass says what it is by class attributes: `virtio_id` (1 to 63); `queues`, the size of each;
    `feature_bits`, those of its own by name; `config_layout`, the fields of its configuration, of which the
    driver may write those in `writable`; `state_layout`, what else it remembers.

    It has `request`, and may have `begin`, `started`, `config_written` and `check_state`. There are `config`
    and `state`, records of those layouts: what is set there is what the driver reads, and what is migrated.
    All is called on the function's own thread with its lock held, so nothing of it needs a lock, and nothing
    may wait.
    """

    virtio_id: int = 0
    class_code = 0x00FF00  # no class, as such devices of QEMU have
    queues: ClassVar[tuple[int, ...]] = (64,)
    feature_bits: ClassVar[Mapping[str, int]] = {}
    config_layout: np.dtype[np.void] = EMPTY
    writable: ClassVar[frozenset[str]] = frozenset()
    state_layout: ClassVar[np.dtype[np.void]] = EMPTY
    in_order = True
    content_size = 0
    part_types = ()
    waits: Sequence[tuple[int, int]] = ()

    # -- what a subclass has -------------------------------------------------------------------------------

    def begin(self) -> None:
        """The device was made, or reset: `config` and `state` are 0 and wait for their first values."""

    def request(self, request: Request) -> bytes | bytearray | memoryview | None:
        """Do what a buffer asks for, and return the answer; None if `Request.complete` comes later.

        An exception is logged, and the device needs a reset.
        """
        raise NotImplementedError

    def config_written(self, field: str) -> None:
        """The driver wrote a field of `writable`; `config` has its new value."""

    def check_state(self, config: np.void, state: np.void) -> None:
        """Raise ValueError, with the reason, for what a device cannot have brought with it from elsewhere."""

    # -- what it can use -------------------------------------------------------------------------------------

    def has(self, feature: str) -> bool:
        """Whether a feature of `feature_bits` was negotiated."""
        return bool(self._accepted >> self.feature_bits[feature] & 1)

    def config_changed(self) -> None:
        """Tell the driver that `config` has changed."""
        self._notifier.config_changed()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Have `call` called in a while; not after a reset."""
        life = self._life

        def due() -> None:
            if self._life == life:
                self._guarded(call)

        self._notifier.after(seconds, due)

    # -- the device type, as the model wants it ----------------------------------------------------------

    def __init__(self, _backend: object = None, *, name: str, queues: int = 1) -> None:
        """`queues` times as many as in the class."""
        self.name = name
        self.log = logging.getLogger(f"virtio.{name}")
        self.queue_sizes = tuple(self.queues) * queues
        self.features = sum(1 << bit for bit in self.feature_bits.values())
        self.config_length = self.config_layout.itemsize
        self._notifier: Notifier = _Nobody()
        self._life = 0
        self._clear()

    def _clear(self) -> None:
        self._life += 1
        self._accepted = 0
        # What went wrong outside of a request, for `service` to raise.
        self._failure: BrokenQueue | None = None
        self.config: Any = np.zeros((), self.config_layout)
        self.state: Any = np.zeros((), self.state_layout)
        self._guarded(self.begin)

    def connect(self, notifier: Notifier) -> None:
        """See `Device`."""
        self._notifier = notifier

    def acceptable(self, features: int) -> str | None:
        """See `Device`."""
        return None

    def engine(self, queue: Virtqueue, memory: GuestMemory) -> Engine | None:
        """See `Device`: there is none."""
        return None

    def delayable(self, queue: int) -> bool:
        """See `Device`."""
        return True

    def counters(self, queue: int | None = None) -> dict[str, int]:
        """See `Device`."""
        return {}

    def negotiated(self, features: int) -> None:
        """See `Device`."""
        self._accepted = features

    def started(self) -> None:
        """The driver set the device going. A subclass may have it do something."""

    def read_config(self, offset: int, length: int) -> bytes:
        """See `Device`."""
        raw: bytes = self.config.tobytes()
        return raw[offset : offset + length].ljust(length, b"\0")

    def write_config(self, offset: int, data: bytes) -> None:
        """See `Device`: whole fields or parts of them, those of `writable`."""
        fields: Mapping[str, Any] = self.config_layout.fields or {}
        for name in self.writable:
            kind, at = fields[name][:2]
            first, end = max(at, offset), min(at + kind.itemsize, offset + len(data))
            if first >= end:
                continue
            raw = bytearray(self.config.tobytes())
            raw[first:end] = data[first - offset : end - offset]
            self.config[name] = np.frombuffer(bytes(raw), self.config_layout)[0][name]
            self._guarded(self.config_written, name)

    def work_unlocked(self) -> bool:
        """See `Device`."""
        return False

    def expect_quiesce(self, *, soon: bool) -> None:
        """See `Device`."""

    def quiesce(self) -> bool:
        """See `Device`: it stands on nothing."""
        return True

    # -- requests ----------------------------------------------------------------------------------------

    def accepts(self, queue: int) -> bool:
        """See `Consumer`."""
        return True

    def take(self, buffer: Buffer) -> None:
        """See `Consumer`."""
        if buffer.readable.length > DATA_MAX:
            raise BrokenQueue(f"a request with {buffer.readable.length} bytes, of {DATA_MAX} at most")
        request = Request(buffer, buffer.readable.read(0, buffer.readable.length))
        answer = self._call(self.request, request)
        if answer is not None:
            self._call(request.complete, answer)

    def _call(self, method: Callable[..., Any], *arguments: object) -> Any:
        """Call a method of the subclass. Raises `BrokenQueue` where that fails."""
        try:
            return method(*arguments)
        except GuestError:
            raise
        except Exception as error:
            name = getattr(method, "__qualname__", repr(method))
            self.log.exception("%s failed", name)
            what = f"{name}: {type(error).__name__}: {error}"
            raise BrokenQueue(what) from error

    def fail(self, buffer: Buffer) -> int:
        """See `Device`: no answer. A subclass may have a better one."""
        return 0

    def _guarded(self, method: Callable[..., Any], *arguments: object) -> None:
        """The same where no queue waits for it: the queues break in the next turn."""
        try:
            self._call(method, *arguments)
        except BrokenQueue as failure:
            self._failure = failure
            self._notifier.wake()

    def service(self) -> None:
        """See `Consumer`."""
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def drop(self, queue: int) -> None:
        """See `Consumer`."""

    def reset(self) -> None:
        """See `Device`."""
        self._clear()

    # -- state -------------------------------------------------------------------------------------------

    def mark(self) -> Mark:
        """See `Device`."""
        return Mark()

    def field_lengths(self) -> dict[int, int]:
        """See `Device`: one, where there is anything to remember."""
        return {context.OWN_STATE: self.state_layout.itemsize} if self.state_layout.itemsize else {}

    def capture_fields(self, since: Mark | None) -> list[DeviceField]:
        """See `Device`."""
        raw = np.frombuffer(self.state.tobytes(), np.uint8)
        return [DeviceField(context.OWN_STATE, [raw])] if self.field_lengths() else []

    def check(self, config: bytes, fields: list[DeviceField]) -> None:
        """See `Device`."""
        if len(config) != self.config_length:
            raise InvalidField(f"a configuration of {len(config)} bytes, here it has {self.config_length}")
        try:
            self.check_state(self._config_of(config), self._state_of(fields))
        except ValueError as error:
            raise InvalidField(str(error)) from None

    def _config_of(self, raw: bytes) -> Any:
        return np.frombuffer(raw, self.config_layout)[0] if raw else np.zeros((), self.config_layout)

    def _state_of(self, fields: list[DeviceField]) -> Any:
        """What the last of the fields says; without one, the state as it is."""
        for field in reversed(fields):
            raw = b"".join(part.tobytes() for part in field.value)
            if len(raw) == self.state_layout.itemsize:
                return np.frombuffer(raw, self.state_layout)[0]
        return self.state

    def reserve(self, fields: list[DeviceField]) -> None:
        """See `Device`."""

    def restore(self, config: bytes, fields: list[DeviceField]) -> None:
        """See `Device`."""
        self._life += 1
        self.config = np.array(self._config_of(config), self.config_layout)
        self.state = np.array(self._state_of(fields), self.state_layout)

    def encode_parts(self, state: FunctionState) -> list[Part]:
        """See `PartsOfType`: the standard has none."""
        return []

    def decode_parts(self, found: list[Part], state: FunctionState) -> None:
        """See `PartsOfType`."""
