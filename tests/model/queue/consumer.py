"""What takes a queue's buffers in these tests."""

from __future__ import annotations

from dataclasses import dataclass, field

from pymodel.memory import Buffer


@dataclass
class Consumer:
    """Completes at once with `written` bytes, or keeps buffers while `keep`; takes `room` more."""

    written: int = 1
    keep: bool = False
    room: int = 1 << 30
    kept: list[Buffer] = field(default_factory=list)
    taken: int = 0

    def accepts(self, queue: int) -> bool:
        return self.room > 0

    def take(self, buffer: Buffer) -> None:
        self.room -= 1
        self.taken += 1
        if self.keep:
            self.kept.append(buffer)
        else:
            buffer.complete(self.written)

    def service(self) -> None:
        """Nothing waits."""

    def drop(self, queue: int) -> None:
        self.kept.clear()

    def reset(self) -> None:
        self.kept.clear()
