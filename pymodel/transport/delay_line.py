"""Buffers that are held between fetch and completion, for tests of what has to wait for those."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from pymodel.memory import Buffer, Consumer


class DelayLine:
    """Holds each buffer for `seconds` before its consumer gets it; `after` calls back when they are over.

    What is dropped is never given to anybody, whenever its time is over.
    """

    def __init__(self, seconds: float, after: Callable[[float, Callable[[], None]], None]) -> None:
        self.seconds = seconds
        self._after = after
        self._held: set[Buffer] = set()
        # Their time is over.
        self._due: deque[tuple[Consumer, Buffer]] = deque()

    def hold(self, consumer: Consumer, buffer: Buffer) -> None:
        """Begin the time of a buffer that was taken for `consumer`."""
        self._held.add(buffer)

        def over() -> None:
            if buffer in self._held:
                self._held.remove(buffer)
                self._due.append((consumer, buffer))

        self._after(self.seconds, over)

    def go_on(self) -> None:
        """Give the consumers what is due. Raises as `Consumer.take`; that buffer stays due."""
        while self._due:
            consumer, buffer = self._due[0]
            consumer.take(buffer)
            # A take may have reset the device, which drops all.
            if self._due:
                self._due.popleft()

    def drop(self, queue: int) -> None:
        """Forget the buffers of a queue."""
        self._held = {buffer for buffer in self._held if buffer.queue != queue}
        self._due = deque(entry for entry in self._due if entry[1].queue != queue)

    def clear(self) -> None:
        """Forget all buffers."""
        self._held.clear()
        self._due.clear()


class Delayed:
    """A consumer whose buffers go through a delay line first."""

    def __init__(self, line: DelayLine, consumer: Consumer) -> None:
        self._line = line
        self._consumer = consumer

    def accepts(self, queue: int) -> bool:
        """See `Consumer`."""
        return self._consumer.accepts(queue)

    def take(self, buffer: Buffer) -> None:
        """See `Consumer`."""
        self._line.hold(self._consumer, buffer)

    def service(self) -> None:
        """See `Consumer`."""
        self._consumer.service()

    def drop(self, queue: int) -> None:
        """See `Consumer`."""
        self._consumer.drop(queue)

    def reset(self) -> None:
        """See `Consumer`."""
        self._consumer.reset()
