"""What a capability is to the configuration space that holds it."""

from __future__ import annotations

from typing import Protocol

from pymodel.registers import Register


class Capability(Protocol):
    """One capability: its records, and by name what reading and writing them does.

    Its id and next pointer are the configuration space's to write.
    """

    @property
    def id(self) -> int:
        """The capability id."""
        ...

    @property
    def name(self) -> str:
        """What its registers' names are prefixed with."""
        ...

    @property
    def size(self) -> int:
        """Bytes, header included."""
        ...

    @property
    def registers(self) -> tuple[Register, ...]:
        """The records, without id and next pointer."""
        ...
