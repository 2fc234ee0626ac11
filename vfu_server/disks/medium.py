"""What a disk's content is on while a driver has it: a file that is open, an export that is connected."""

from __future__ import annotations

from typing import Protocol

from pymodel.devices.block.disk import Job, Kind
from pymodel.memory import Bytes
from vfu_server.datapath import FileStore


class Medium(Protocol):
    """`take`, `check_size`, `perform`, `flush` and `close` may wait, on a thread of the disk's own."""

    size: int

    @property
    def store(self) -> FileStore | None:
        """What an engine may use; None where all is to be waited for."""
        ...

    @property
    def busy(self) -> bool:
        """Whether an engine is about to write what it has copied: then it is not to be closed."""
        ...

    def take(self) -> bool:
        """Keep other programs from it. False where one has it: try again. Raises OSError."""
        ...

    def check_size(self, size: int) -> None:
        """Raise OSError where there are less than `size` bytes, which there must be from now on."""
        ...

    def attempt(self, job: Job, views: list[Bytes]) -> bool:
        """Do a job at once, on `views` of guest memory. What failed is left to `perform`."""
        ...

    def cached(self, kind: Kind) -> bool:
        """Whether a small job of this kind should be over in a moment, though nobody can tell."""
        ...

    def perform(self, job: Job) -> None:
        """Do a job with memory of its own. Raises OSError, the range then holding anything."""
        ...

    def flush(self) -> None:
        """Make what was written durable. Raises OSError, and then always does."""
        ...

    def give_up(self) -> None:
        """The driver is gone: have those that wait for what may never come fail."""
        ...

    def close(self) -> None:
        """Let go of it. Raises OSError where that tells of an error."""
        ...
