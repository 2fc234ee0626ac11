"""What a device type is to the layers above it, and what it needs of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from pymodel.memory import Buffer, Consumer, GuestMemory
from pymodel.migration.parts import PartsOfType
from pymodel.migration.state import DeviceField, Mark
from pymodel.queue.engine import Engine
from pymodel.queue.virtqueue import Virtqueue


class Notifier(Protocol):
    """What a device type needs of its transport."""

    def wake(self) -> None:
        """Have `service` called soon. Any thread may call it, without a lock."""
        ...

    def config_changed(self, name: str = "", change: Callable[[], None] | None = None) -> None:
        """The configuration changed, or is to, by `change`: the driver is told.

        In Freeze both wait until it is left; of each `name` the last one counts.
        """
        ...

    def config_set(self) -> None:
        """The driver itself changed the configuration, by a command: nobody is to be told."""
        ...

    def enabled(self, queue: int) -> bool:
        """Whether the driver has enabled a queue."""
        ...

    def resume(self, queue: int) -> None:
        """Look at a queue again, of which a buffer was given back, in the `service` under way or the next."""
        ...

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        """Call `call` in `seconds`, on the function's own thread with its lock held, then `service`."""
        ...


class Device(Consumer, PartsOfType, Protocol):
    """A device type: its identity, its configuration, and, as the consumer of its queues, what it does.

    `reset` brings back the state after a device reset; what is stored on a disk is not part of it.
    """

    virtio_id: int
    class_code: int
    features: int
    queue_sizes: tuple[int, ...]
    config_layout: np.dtype[np.void]
    """The fields of the configuration structure."""
    config_length: int
    in_order: bool
    """Whether the requests of a queue finish in the order in which they are taken (`IN_ORDER`)."""

    def connect(self, notifier: Notifier) -> None:
        """Called once, before anything else."""
        ...

    def acceptable(self, features: int) -> str | None:
        """Why a driver cannot have these of the offered features together; None if it can."""
        ...

    def engine(self, queue: Virtqueue, memory: GuestMemory) -> Engine | None:
        """What does the buffers of a queue at once, as far as it can, as long as nobody has the function's
        lock.

        Asked for at the end of each turn, with the lock held. None where all are for `take`. `queue.waiting`
        means here what it means for `accepts`.
        """
        ...

    def fail(self, buffer: Buffer) -> int:
        """See `pymodel.transport.faults`: the answer of a request that failed, and its used length."""
        ...

    def delayable(self, queue: int) -> bool:
        """Whether `--io-delay-ms` holds the buffers of a queue."""
        ...

    def counters(self, queue: int | None = None) -> dict[str, int]:
        """What the device type counts by name, since it was made; with `queue` what it counts of that one."""
        ...

    def negotiated(self, features: int) -> None:
        """The driver's features were agreed, or are those of a context that is about to be restored."""
        ...

    def started(self) -> None:
        """The driver set the device going (DRIVER_OK), or it became Active with a driver that had done so.

        Guest memory is not to be touched: it may be the owner's thread that calls.
        """
        ...

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """File descriptors on which `service` has work, each with the events of poll(2).

        Asked for before each wait, while the function may fetch buffers.
        """
        ...

    def read_config(self, offset: int, length: int) -> bytes:
        """Read device configuration; bytes past its end are 0."""
        ...

    def write_config(self, offset: int, data: bytes) -> None:
        """Write device configuration; what the driver may not write is dropped."""
        ...

    def work_unlocked(self) -> bool:
        """Do what may wait for a moment, after a `service`. Whether there was any: `service` is to follow.

        Called on the function's own thread without its lock, so nothing of the model may be touched.
        """
        ...

    def expect_quiesce(self, *, soon: bool) -> None:
        """Whether a `quiesce` is to come, for which a guest will stand still: it should take little time."""
        ...

    def quiesce(self) -> bool:
        """Let another host have what this device stands on. Called when no buffer is taken any more.

        False: under way, it wakes; call again. Raises `CommandError` where that is not possible; the device
        goes on as before. Nothing is to be done to go on after it: the next buffer brings it back.
        """
        ...

    @property
    def content_size(self) -> int:
        """Bytes of content that travels in a context (a disk in memory), else 0."""
        ...

    def mark(self) -> Mark:
        """The present content, for `capture_fields`. The same as the last one while nothing changed."""
        ...

    def capture_fields(self, since: Mark | None) -> list[DeviceField]:
        """Snapshots of the device type's own context fields, by number.

        With `since`, which `mark` returned, content that has not changed since may be left out where the
        rest is smaller than the whole; the fields then say what they build on.
        """
        ...

    def field_lengths(self) -> dict[int, int]:
        """The device type's own field types, each with its exact length or LENGTH_VARIES."""
        ...

    def check(self, config: bytes, fields: list[DeviceField]) -> None:
        """Raise `InvalidField`, with the reason, for values that do not fit this device."""
        ...

    def reserve(self, fields: list[DeviceField]) -> None:
        """Hold the memory that `restore` will take. Raises MemoryError, nothing changed."""
        ...

    def restore(self, config: bytes, fields: list[DeviceField]) -> None:
        """Take over what `check` accepted. The fields' buffers become the device's own.

        What no field mentions stays as it is. All queues were dropped.
        """
        ...


@runtime_checkable
class Transitional(Protocol):
    """A device type that legacy drivers know too. One of them drives it where VERSION_1 was not agreed."""

    def write_legacy_config(self, offset: int, data: bytes) -> None:
        """A legacy driver writes to one field of the configuration; what it may not write is dropped."""
        ...


@runtime_checkable
class Linked(Protocol):
    """A device type with a link that can go down."""

    def set_link(self, up: bool) -> None:
        """Change the link as the configuration shows it. Telling the driver is the transport's."""
        ...

    def announce(self) -> None:
        """Tell the network where this function is, and have its driver do so too. Needs a running driver."""
        ...
