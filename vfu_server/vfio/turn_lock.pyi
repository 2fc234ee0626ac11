"""The lock of a function: whoever waits for it is next."""

from typing import final

@final
class TurnLock:
    """A reentrant lock that its holder can't have again before one who waits for it.

    A thread that is busy takes its function's lock again at once after it gave it up. With `threading.RLock`
    it mostly wins against a waiter that must first be woken, so a VF with much to do would keep its owner's
    commands waiting. Here a waiter stands in the door, and the thread that comes back has to queue behind it.

    The data path takes it without the interpreter. `entries` counts how often Python had it: where that is
    what it was, nothing of the function can have changed.
    """

    @property
    def entries(self) -> int: ...
    @property
    def awaited(self) -> bool:
        """Whether somebody stands in the door."""

    def __enter__(self) -> None: ...
    def __exit__(self, *_: object) -> None: ...
