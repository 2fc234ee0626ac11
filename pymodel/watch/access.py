"""Accesses to a function, by structure and register."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np

from pymodel.pci import virtio_bar
from pymodel.spec.virtio_pci import COMMON_CFG

if TYPE_CHECKING:
    from pymodel.pci.function import Function
    from pymodel.registers import RegisterFile

# Structures, by the names that people are told.
CONFIG: Final = "configuration space"
COMMON: Final = "common configuration"
ISR: Final = "ISR status"
DEVICE: Final = "device configuration"
NOTIFY: Final = "notification"
LEGACY_NOTIFY: Final = "legacy notification"
MSIX: Final = "MSI-X table"
NOTHING: Final = "nothing"

_PAGE: Final = 0x1000
_STRUCTURES: Final[Mapping[int, str]] = {
    virtio_bar.COMMON_AT: COMMON,
    virtio_bar.ISR_AT: ISR,
    virtio_bar.DEVICE_AT: DEVICE,
    virtio_bar.NOTIFY_AT: NOTIFY,
    virtio_bar.LEGACY_NOTIFY_AT: LEGACY_NOTIFY,
}


@dataclass(frozen=True, slots=True)
class Field:
    """A field of a structure: `unit` bytes are read or written at a time, of an array one element."""

    name: str
    start: int
    size: int
    unit: int


@dataclass(frozen=True, slots=True)
class Piece:
    """The part of an access that lies in one field. `value` is of the bytes that were accessed."""

    field: Field
    first: int
    length: int
    value: int

    @property
    def name(self) -> str:
        """The field's."""
        return self.field.name

    @property
    def whole(self) -> bool:
        """Whether it is all of the field."""
        return self.length == self.field.size

    @property
    def shifted(self) -> int:
        """The value, with its bytes where they are in the field."""
        return self.value << 8 * (self.first - self.field.start)


@dataclass(frozen=True, slots=True)
class Access:
    """One access: to which structure, where in it, what was read or is written.

    `pieces` are the fields that it touches; bytes that are no field's are in none of them.
    """

    structure: str
    offset: int
    data: bytes
    pieces: tuple[Piece, ...] = ()

    @property
    def value(self) -> int:
        """The data as a number."""
        return int.from_bytes(self.data, "little")

    def describe(self) -> str:
        """Which field, or which bytes, in words."""
        if len(self.pieces) == 1 and self.pieces[0].whole and len(self.data) == self.pieces[0].length:
            return self.pieces[0].name
        names = " and ".join(piece.name for piece in self.pieces) or "no field"
        return f"{len(self.data)} bytes at {self.offset:#x} of the {self.structure} ({names})"


def of_bar(function: Function, bar: int, offset: int, data: bytes) -> Access:
    """An access to a BAR."""
    if bar == function.msix.bar:
        return Access(MSIX, offset, data)
    if bar != function.virtio_bar:
        return Access(NOTHING, offset, data)
    structure, at = _STRUCTURES.get(offset // _PAGE * _PAGE, NOTHING), offset % _PAGE
    if structure == COMMON:
        return Access(structure, at, data, _pieces(fields_of(COMMON_CFG), at, data))
    if structure == DEVICE:
        return Access(
            structure, at, data, _pieces(fields_of(function.transport.device.config_layout), at, data)
        )
    return Access(structure, at, data)


def of_config(function: Function, offset: int, data: bytes) -> Access:
    """An access to configuration space."""
    return Access(CONFIG, offset, data, tuple(_registers(function.config, offset, data)))


def _registers(file: RegisterFile, offset: int, data: bytes) -> Iterator[Piece]:
    for name, start, width, first, end in file.touched(offset, len(data)):
        value = int.from_bytes(data[first - offset : end - offset], "little")
        yield Piece(Field(name, start, width, width), first, end - first, value)


def _pieces(fields: Sequence[Field], offset: int, data: bytes) -> tuple[Piece, ...]:
    found = []
    for field in fields:
        first, end = max(field.start, offset), min(field.start + field.size, offset + len(data))
        if first < end:
            value = int.from_bytes(data[first - offset : end - offset], "little")
            found.append(Piece(field, first, end - first, value))
    return tuple(found)


@cache
def fields_of(layout: np.dtype[np.void]) -> tuple[Field, ...]:
    """The fields of a structure, those of structures in it by `outer.inner`."""
    return tuple(_flat(layout, 0, ""))


def _flat(layout: np.dtype[np.void], start: int, prefix: str) -> Iterator[Field]:
    assert layout.fields is not None
    for name, (kind, offset, *_) in layout.fields.items():
        if kind.fields is not None:
            yield from _flat(kind, start + offset, f"{prefix}{name}.")
        else:
            unit = kind.subdtype[0].itemsize if kind.subdtype is not None else kind.itemsize
            yield Field(prefix + name, start + offset, kind.itemsize, unit)
