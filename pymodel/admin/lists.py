"""LIST_QUERY and LIST_USE: for each group type, which commands there are and which may be used.

virtio 1.4, "Group administration commands". Bit n of a list is opcode n. The lists belong to the owner,
not to a queue, and start anew at its reset.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from pymodel.errors import InvalidField
from pymodel.spec import admin as spec

_LIST_COMMANDS = 1 << spec.LIST_QUERY | 1 << spec.LIST_USE
# Commands of virtio 1.4 of the Self group (0x07-0x09) that Linux uses once the SR-IOV group's LIST_USE
# named them, without a LIST_USE of the Self group (P-DEV-08).
_SELF_BY_SRIOV = 0b111 << 7

# Bytes of LIST_USE that can hold a bit: one for every 16-bit opcode. More is surplus (P-DEV-16).
LONGEST_LIST = 1 << 13


class Lists:
    """The lists of all group types. Made from the opcodes of each; LIST_QUERY and LIST_USE are always in."""

    def __init__(self, opcodes: Mapping[int, Iterable[int]], *, strict: bool = False) -> None:
        self._offered = {
            group: _LIST_COMMANDS | sum(1 << opcode for opcode in set(codes) - {0, 1})
            for group, codes in opcodes.items()
        }
        self._strict = strict
        self._used: dict[int, int] = {}
        self.reset()

    def reset(self) -> None:
        """Owner reset: only LIST_QUERY and LIST_USE are allowed, in each group (P-DEV-08)."""
        self._used = dict.fromkeys(self._offered, _LIST_COMMANDS)

    def allows(self, group: int, opcode: int) -> bool:
        """Whether the driver may use this command now (P-DEV-09)."""
        if self._used.get(group, 0) >> opcode & 1:
            return True
        if self._strict or group != spec.GROUP_SELF:
            return False
        by_sriov = self._used.get(spec.GROUP_SRIOV, 0) & _SELF_BY_SRIOV & self._offered[group]
        return bool(by_sriov >> opcode & 1)

    def offered(self, group: int) -> int:
        """The commands that LIST_QUERY reports, as bits; none of a group that is not there."""
        return self._offered.get(group, 0)

    def used(self, group: int) -> int:
        """The commands that the driver said it uses, as bits."""
        return self._used.get(group, 0)

    def query(self, group: int) -> bytes:
        """The list that LIST_QUERY returns, in whole words."""
        offered = self._offered[group]
        words = -(-offered.bit_length() // 64)
        return offered.to_bytes(words * spec.LIST_WORD.itemsize, "little")

    def use(self, group: int, data: bytes) -> None:
        """Allow exactly the commands in `data`. Raises `InvalidField` for one that is not offered.

        A list without LIST_QUERY or LIST_USE closes them too, until the owner's reset (P-DEV-09).
        """
        wanted = int.from_bytes(data[:LONGEST_LIST], "little")
        if wanted & ~self._offered[group]:
            raise InvalidField("LIST_USE names a command that LIST_QUERY did not")
        self._used[group] = wanted
