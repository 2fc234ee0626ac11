"""What a move's two sides tell each other, in the types that `messages` carries."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from vfu_client.move.moved_vf import Vf
from vfu_client.move.pci_state import PciState
from vfu_client.move.pf import Former, Pf
from vfu_client.owner.context import Field
from vfu_client.qemu.address import Address
from vfu_client.vfio.memory import Bytes


@dataclass(frozen=True)
class Shape:
    """How a value becomes plain, and back, which raises LookupError, TypeError or ValueError."""

    there: Callable[[Any], Any]
    back: Callable[[Any], Any]


def _fields(plain: Any) -> list[Field]:
    return [
        Field(int(kind), memoryview(value.tobytes()), int(offset), None if device is None else int(device))
        for kind, value, offset, device in plain
    ]


def _pci_state(plain: Any) -> PciState:
    address, words, capabilities, table = plain
    return PciState(
        Address(*map(int, address)),
        {int(offset): int(word) for offset, word in words},
        {int(capability): int(offset) for capability, offset in capabilities},
        bytearray(table.tobytes()),
    )


def _state(plain: Any) -> list[Bytes]:
    if not all(isinstance(piece, np.ndarray) for piece in plain):
        raise TypeError("a state is made of bytes")
    return list(plain)


def _vf(plain: Any) -> Vf:
    number, server = plain
    return Vf(int(number), str(server))


INTEGER: Final = Shape(int, int)
VF: Final = Shape(lambda vf: [vf.number, vf.server], _vf)
ADDRESS: Final = Shape(
    lambda address: [address.bus, address.slot, address.function], lambda plain: Address(*map(int, plain))
)
FIELDS: Final = Shape(
    lambda fields: [[each.type, bytes(each.value), each.offset, each.device_type] for each in fields], _fields
)
CONTEXTS: Final = Shape(
    lambda contexts: [[vf.number, vf.server, former.mode] for vf, former in contexts.items()],
    lambda plain: {Vf(number, server): Former(mode, forgotten=True) for number, server, mode in plain},
)
"""What VFs at the destination had before; their states are forgotten."""

STATE: Final = Shape(list, _state)
"""The pieces of a VF's state."""

PCI_STATE: Final = Shape(
    lambda state: [
        ADDRESS.there(state.address),
        list(state.words.items()),
        list(state.capabilities.items()),
        bytes(state.table),
    ],
    _pci_state,
)

CALLS: Final[Mapping[str, tuple[Callable[..., Any], tuple[Shape, ...]]]] = {
    "check_destination": (Pf.check_destination, (FIELDS,)),
    "mode": (Pf.mode, ()),
    "write_last": (Pf.write_last, (STATE,)),
    "activate": (Pf.activate, ()),
    "check_runs": (Pf.check_runs, (INTEGER,)),
    "check_active": (Pf.check_active, ()),
}
"""What the destination's side does for a VF, beside `prepare` and `restore`: the method, its arguments.

What they return is None or a number.
"""
