"""A lock for what several threads share, with or without the interpreter."""

from typing import final

@final
class Mutex:
    """Not reentrant. Its holder takes a moment, waits for nothing, and raises nothing.

    Who has the interpreter's lock, and must wait, gives that up meanwhile. So a holder may need it.
    """

    def take(self) -> int:
        """Wait for it. 0."""
    def give(self) -> int:
        """Let the next one have it. 0."""
