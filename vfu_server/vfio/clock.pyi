"""The time, also for what runs without the interpreter."""

from typing import final

@final
class Clock:
    """A clock that never goes back, `ahead` nanoseconds ahead of the system's: for tests of what ages."""

    ahead: int

    def now(self) -> int:
        """Nanoseconds."""
