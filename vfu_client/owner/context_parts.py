"""Contexts made from others: the part that tells whether a device takes them, and the state after a reset."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from pymodel.spec import context
from vfu_client.owner.context import Field
from vfu_client.owner.stream import ContextWalker

# Field types from here on belong to the device type: they can be large.
DEVICE_TYPES = 0x100

NO_VECTOR = 0xFFFF


def common_part(start: memoryview) -> list[Field]:
    """The whole common fields in the first bytes of a context. Raises `BadContextError`."""
    fields: list[Field] = []
    device_type: int | None = None
    for kind, at, length in ContextWalker().feed(start):
        if at + length > len(start) or kind >= DEVICE_TYPES:
            break
        if kind == context.DEVICE_ID:
            device_type = int.from_bytes(start[at : at + 2], "little")
        if kind not in (context.START_MARKER, context.END_MARKER):
            fields.append(Field(kind, start[at : at + length], at - context.FIELD.itemsize, device_type))
    return fields


def assemble(fields: Iterable[Field]) -> bytes:
    """A context of these fields."""
    parts = [_field(context.START_MARKER, b"")]
    parts += [_field(field.type, bytes(field.value)) for field in fields]
    return b"".join([*parts, _field(context.END_MARKER, b"")])


def as_reset(fields: Iterable[Field]) -> bytes:
    """The context that puts a device into the state after a reset, made from its own common fields.

    What a device holds for its user, such as a disk's content, is left out and so stays as it is.
    """
    reset = ((field.type, reset_value(field)) for field in fields)
    return assemble(Field(kind, value, 0) for kind, value in reset if value is not None)


_RESET = frozenset(
    {context.DRIVER_FEATURES, context.COMMON_CFG, context.VQ_CFG, context.ISR_STATUS, context.PENDING}
)


def reset_value(field: Field) -> memoryview | None:
    """What a field has after a reset; None for one that says what a device holds, or is."""
    if field.type not in _RESET:
        return None
    if field.type == context.COMMON_CFG:
        common = np.frombuffer(bytes(field.value), context.COMMON_CFG_VALUE).copy()
        for name in ("device_feature_select", "driver_feature_select", "queue_select", "device_status"):
            common[name] = 0
        common["config_msix_vector"] = NO_VECTOR
        return memoryview(common.tobytes())
    if field.type == context.VQ_CFG:
        queue = np.frombuffer(bytes(field.value), context.VQ_CFG_VALUE).copy()
        for name in ("enable", "reset", "desc", "driver", "device"):
            queue[name] = 0
        queue["msix_vector"] = NO_VECTOR
        return memoryview(queue.tobytes())
    return memoryview(bytes(len(field.value)))


def _field(kind: int, value: bytes) -> bytes:
    return np.array((kind, 0, len(value)), context.FIELD).tobytes() + value
