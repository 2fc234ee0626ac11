"""Sets of device parts: what they tell as fields of a context, and the state after a reset made of them."""

from __future__ import annotations

import numpy as np

from pymodel.spec import context, parts, virtio_pci
from vfu_client.owner.context import Field
from vfu_client.owner.context_parts import reset_value
from vfu_client.owner.part import Part, decode, header
from vfu_client.owner.stream import ReadBytes

_AS_FIELDS = {
    parts.DEV_FEATURES: context.DEVICE_FEATURES,
    parts.DRV_FEATURES: context.DRIVER_FEATURES,
}
# After a reset, by offset; num_queues is as ever.
_COMMON = {
    virtio_pci.COMMON_CFG.fields[name][1]: value  # type: ignore[index]  # a structure has fields
    for name, value in (
        ("device_feature_select", bytes(4)),
        ("driver_feature_select", bytes(4)),
        ("config_msix_vector", virtio_pci.NO_VECTOR.to_bytes(2, "little")),
        ("queue_select", bytes(2)),
    )
}


def common_fields(stream: ReadBytes) -> list[Field]:
    """What a set tells of the device and its driver, as fields. Raises `BadPartsError`."""
    found = decode(stream)
    fields = [
        Field(_AS_FIELDS[part.type], part.value, part.offset) for part in found if part.type in _AS_FIELDS
    ]
    return fields + [part.field for part in found if part.field is not None]


def as_reset(stream: ReadBytes) -> bytes:
    """The set that puts a device into the state after a reset, made from its own.

    As with contexts, what a device holds for its user is left out and so stays as it is.
    """
    made = []
    for part in decode(stream):
        value = _value(part)
        if value is not None:
            made += [header(part.type, part.flags, part.selector, len(value)), bytes(value)]
    return b"".join(made)


def _value(part: Part) -> bytes | memoryview | None:
    """The value after a reset; None where the part is to be left out."""
    match part.type:
        case parts.DEV_FEATURES | parts.VQ_NOTIFY_CFG:
            return part.value
        case parts.DRV_FEATURES | parts.DEVICE_STATUS:
            return bytes(len(part.value))
        case parts.PCI_COMMON_CFG:
            return _COMMON.get(part.key[1], part.value)
        case parts.VQ_CFG:
            queue = np.frombuffer(bytes(part.value), parts.VQ_CFG_VALUE).copy()
            for name in ("enabled", "queue_desc", "queue_driver", "queue_device"):
                queue[name] = 0
            queue["vector"] = virtio_pci.NO_VECTOR
            return queue.tobytes()
    return None if part.field is None else reset_value(part.field)
