"""The 4096 bytes of configuration space of one function.

PCI header type 0, the list of capabilities from 0x40 on, and extended capabilities, the first of which is at
0x100. Everything is a register record (`pymodel.registers`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from types import MappingProxyType
from typing import NamedTuple, Protocol, Self

from pymodel.pci.capability import Capability
from pymodel.registers import Register, RegisterFile, RegisterMap
from pymodel.spec import pci

_FIELDS = pci.HEADER.fields
assert _FIELDS is not None
_FIRST_CAPABILITY = 0x40


@dataclass(frozen=True, slots=True)
class Identity:
    """What tells one function from another in its header."""

    vendor_id: int
    device_id: int
    subsystem_vendor_id: int
    subsystem_id: int
    revision: int
    class_code: int
    interrupt_pin: int


class HeaderOwner(Protocol):
    """The header registers that do something."""

    def read_status(self) -> int:
        """Interrupt Status comes and goes by itself."""
        ...

    def write_command(self, value: int) -> None:
        """Bus Master Enable and INTx Disable open and close gates."""
        ...


def _header(name: str, reset: int = 0, writable: int = 0, part: int = 0, width: int = 0) -> Register:
    dtype, offset = _FIELDS[name][:2]  # type: ignore[index]
    width = width or dtype.itemsize
    label = name if not part and width == dtype.itemsize else f"{name}{part}"
    return Register(label, offset + part * width, width, reset, writable)


def _header_registers(identity: Identity, bars: Mapping[int, int]) -> tuple[Register, ...]:
    registers = [
        _header("vendor_id", identity.vendor_id),
        _header("device_id", identity.device_id),
        _header("command"),
        _header("status", pci.STATUS_CAP_LIST),
        _header("revision", identity.revision),
        _header("class_code", identity.class_code),
        _header("cache_line_size", writable=0xFF),
        _header("header_type"),
        _header("subsystem_vendor_id", identity.subsystem_vendor_id),
        _header("subsystem_id", identity.subsystem_id),
        _header("capabilities"),
        _header("interrupt_line", writable=0xFF),
        _header("interrupt_pin", identity.interrupt_pin),
    ]
    for index, size in bars.items():
        low, high = bar_masks(size)
        registers.append(_header("bar", pci.BAR_MEMORY_64 | pci.BAR_PREFETCH, low, index, 4))
        registers.append(_header("bar", 0, high, index + 1, 4))
    return tuple(registers)


def bar_masks(size: int) -> tuple[int, int]:
    """The writable bits of both halves of a 64-bit BAR of `size` bytes, a power of 2."""
    mask = ~(size - 1)
    return mask & 0xFFFFFFFF & ~pci.BAR_FLAGS, mask >> 32 & 0xFFFFFFFF


class _Block(NamedTuple):
    """What makes a capability's block in a map: all but the capability itself, which is a function's own."""

    owner: type
    id: int
    name: str
    size: int
    registers: tuple[Register, ...]

    @classmethod
    def of(cls, capability: Capability) -> Self:
        return cls(type(capability), capability.id, capability.name, capability.size, capability.registers)


class _ConfigMap(RegisterMap):
    """Configuration space of functions that look alike; `offsets` has where each capability is."""

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, int],
        owner: type,
        capabilities: Sequence[_Block],
        extended: Mapping[int, _Block],
    ) -> None:
        super().__init__(pci.CONFIG_SIZE)
        self.place(0, _header_registers(identity, bars), owner)
        self.offsets: dict[str, int] = {}
        self._chain(capabilities)
        self._chain_extended(extended)

    def _chain(self, capabilities: Sequence[_Block]) -> None:
        at, link = _FIRST_CAPABILITY, "capabilities"
        for block in capabilities:
            self.offsets[block.name] = at
            self.preset(link, at)
            link = f"{block.name}.next"
            self.place(
                at,
                (Register("id", 0, 1, block.id), Register("next", 1, 1), *block.registers),
                block.owner,
                f"{block.name}.",
            )
            at += -(-block.size // 4) * 4
        if at > pci.EXTENDED_START:
            raise ValueError(f"capabilities end at {at:#x}, past {pci.EXTENDED_START:#x}")

    def _chain_extended(self, capabilities: Mapping[int, _Block]) -> None:
        link, header = "", 0
        for at, block in capabilities.items():
            self.offsets[block.name] = at
            if link:
                self.preset(link, header | at << 20)
            link, header = f"{block.name}.header", block.id | 1 << 16
            self.place(
                at,
                (Register("header", 0, 4, header), *block.registers),
                block.owner,
                f"{block.name}.",
            )


@cache
def _map_of(
    identity: Identity,
    bars: tuple[tuple[int, int], ...],
    owner: type,
    capabilities: tuple[_Block, ...],
    extended: tuple[tuple[int, _Block], ...],
) -> _ConfigMap:
    """One map for all functions of which all this is the same: there are as many as kinds of functions."""
    return _ConfigMap(identity, dict(bars), owner, capabilities, dict(extended))


class ConfigSpace(RegisterFile):
    """Header, capabilities and extended capabilities of one function.

    `bars` maps the first index of each 64-bit memory BAR to its size. The capabilities are chained in
    the order given, the extended ones are where `extended` says.
    """

    def __init__(
        self,
        identity: Identity,
        bars: Mapping[int, int],
        owner: HeaderOwner,
        capabilities: Sequence[Capability],
        extended: Mapping[int, Capability] = MappingProxyType({}),
    ) -> None:
        layout = _map_of(
            identity,
            tuple(bars.items()),
            type(owner),
            tuple(map(_Block.of, capabilities)),
            tuple((at, _Block.of(capability)) for at, capability in extended.items()),
        )
        super().__init__(layout, (owner, *capabilities, *extended.values()))
        self.offsets = layout.offsets
