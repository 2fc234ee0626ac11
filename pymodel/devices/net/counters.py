"""What a network device counts, since it was made: for the monitor."""

from __future__ import annotations

from array import array
from typing import Final

NAMES: Final = (
    "rx-frames",
    "rx-bytes",
    "tx-frames",
    "tx-bytes",
    "rx-dropped-malformed",
    "rx-dropped-offload",  # needs an offload that the driver has not switched on
    "rx-dropped-too-long",
    "rx-dropped-no-queue",
    "rx-dropped-no-buffers",
    "rx-dropped-buffer-too-small",
    "rx-dropped-reset",  # waited for buffers when its queue was reset, or the function restored
    "tx-dropped-length",
    "tx-dropped-header",
    "tx-dropped-link-down",
    "tx-dropped-congested",
    "announcements",
    "commands",
    "commands-refused",
)
QUEUE_NAMES: Final = ("frames", "bytes", "dropped")

# The places of the first ones, for code that is compiled.
_RX, _TX = NAMES.index("rx-frames"), NAMES.index("tx-frames")
# Counts of a queue.
_EACH = len(QUEUE_NAMES)


class NetCounters:
    """Of the device by name, and of each queue: frames and bytes that passed, frames that were dropped."""

    def __init__(self, queues: int) -> None:
        self._device = array("Q", bytes(8 * len(NAMES)))
        self._queues = array("Q", bytes(8 * _EACH * queues))

    def received(self, queue: int, length: int) -> int:
        """A frame reached the driver."""
        return self._passed(_RX, queue, length)

    def sent(self, queue: int, length: int) -> int:
        """A frame left."""
        return self._passed(_TX, queue, length)

    def _passed(self, name: int, queue: int, length: int) -> int:
        self._device[name] += 1
        self._device[name + 1] += length
        self._queues[_EACH * queue] += 1
        self._queues[_EACH * queue + 1] += length
        return 0

    def drop(self, reason: str, queue: int | None = None, count: int = 1) -> None:
        """Frames were dropped."""
        place: int = NAMES.index(reason)
        self._device[place] += count
        if queue is not None:
            place = _EACH * queue + 2
            self._queues[place] += count

    def count(self, name: str) -> None:
        """One more of something else."""
        place: int = NAMES.index(name)
        self._device[place] += 1

    def device(self) -> dict[str, int]:
        """The counts of the device."""
        return dict(zip(NAMES, self._device, strict=True))

    def queue(self, index: int) -> dict[str, int]:
        """The counts of one queue."""
        counts = self._queues[_EACH * index : _EACH * (index + 1)]
        return dict(zip(QUEUE_NAMES, counts, strict=True))
