"""What a network device counts, since it was made: for the monitor."""

from __future__ import annotations

from typing import Final

NAMES: Final = (
    "rx-frames",
    "rx-bytes",
    "rx-dropped-malformed",
    "rx-dropped-offload",  # needs an offload that the driver has not switched on
    "rx-dropped-too-long",
    "rx-dropped-no-queue",
    "rx-dropped-no-buffers",
    "rx-dropped-buffer-too-small",
    "rx-dropped-reset",  # waited for buffers when its queue was reset, or the function restored
    "tx-frames",
    "tx-bytes",
    "tx-dropped-length",
    "tx-dropped-header",
    "tx-dropped-link-down",
    "tx-dropped-congested",
    "announcements",
    "commands",
    "commands-refused",
)
QUEUE_NAMES: Final = ("frames", "bytes", "dropped")


class NetCounters:
    """Of the device by name, and of each queue: frames and bytes that passed, frames that were dropped."""

    def __init__(self, queues: int) -> None:
        self.device = dict.fromkeys(NAMES, 0)
        self._queues = [[0, 0, 0] for _ in range(queues)]

    def received(self, queue: int, length: int) -> None:
        """A frame reached the driver."""
        self._passed("rx-frames", "rx-bytes", queue, length)

    def sent(self, queue: int, length: int) -> None:
        """A frame left."""
        self._passed("tx-frames", "tx-bytes", queue, length)

    def _passed(self, frames: str, octets: str, queue: int, length: int) -> None:
        self.device[frames] += 1
        self.device[octets] += length
        counts = self._queues[queue]
        counts[0] += 1
        counts[1] += length

    def drop(self, reason: str, queue: int | None = None, count: int = 1) -> None:
        """Frames were dropped."""
        self.device[reason] += count
        if queue is not None:
            self._queues[queue][2] += count

    def count(self, name: str) -> None:
        """One more of something else."""
        self.device[name] += 1

    def queue(self, index: int) -> dict[str, int]:
        """The counts of one queue."""
        return dict(zip(QUEUE_NAMES, self._queues[index], strict=True))
