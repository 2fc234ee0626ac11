"""A descriptor that says that something happened."""

from typing import final

@final
class Event:
    """An eventfd. `fd` is readable from `tell` to `forget`, and -1 when it is closed. Raises OSError."""

    @property
    def fd(self) -> int: ...
    def tell(self) -> int:
        """Something happened. 0, or -1 if it is closed."""
    def forget(self) -> int:
        """Begin anew. 0, or -1 if nothing was told."""
    def close(self) -> None:
        """Give the descriptor back. Nobody else may be at it."""
