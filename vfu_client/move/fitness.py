"""Whether a device can go on where another one stopped, as far as their common fields tell."""

from __future__ import annotations

from collections.abc import Sequence

from pymodel.spec import context, virtio
from vfu_client.owner.context import Field, compare

MAY_DIFFER = {
    virtio.ID_BLOCK: frozenset(
        {
            "topology.physical_block_exp",
            "topology.alignment_offset",
            "topology.min_io_size",
            "topology.opt_io_size",
            "writeback",
        }
    ),
    virtio.ID_NET: frozenset({"mac", "status"}),
}
"""Members of the configuration that a context carries, or that are hints, by device type."""
MUST_AGREE = {context.DEVICE_ID: frozenset({"virtio_id"}), context.COMMON_CFG: frozenset({"num_queues"})}
TYPE_NAMES = {virtio.ID_BLOCK: "a disk", virtio.ID_NET: "a network card"}


def unfit(source: Sequence[Field], destination: Sequence[Field], *, same_features: bool = False) -> list[str]:
    """What keeps the destination's device from taking the source's state, in words; nothing where it fits.

    With `same_features` the device must offer the same, whether or not the guest uses it.
    """
    ours = {field.type: field for field in source}
    theirs = {field.type: field for field in destination}
    kinds = [_device_type(fields) for fields in (ours, theirs)]
    if kinds[0] != kinds[1]:
        here, there = (TYPE_NAMES.get(kind, f"a device of type {kind}") for kind in kinds)
        return [f"it is {there}, and the source's is {here}"]
    wanted = int.from_bytes(ours[context.DRIVER_FEATURES].value, "little")
    offered = int.from_bytes(theirs[context.DEVICE_FEATURES].value, "little")
    missing = [str(bit) for bit in range(128) if wanted & ~offered & 1 << bit]
    found = [f"it does not offer feature {', '.join(missing)}, which the guest uses"] if missing else []
    differing = offered ^ int.from_bytes(ours[context.DEVICE_FEATURES].value, "little")
    if same_features and differing and not missing:
        bits = ", ".join(str(bit) for bit in range(128) if differing >> bit & 1)
        found.append(f"one of both alone offers feature {bits}, and device parts want all alike")
    for difference in compare(list(ours.values()), list(theirs.values())):
        if difference.first is None or difference.second is None:
            continue
        one, two = difference.first.members(), difference.second.members()
        found += [
            f"{name} is {one.get(name)} at the source, {two.get(name)} at the destination"
            for name in difference.members()
            if _matters(difference.first.type, name, kinds[0])
        ]
    return found


def _device_type(fields: dict[int, Field]) -> int:
    return int(fields[context.DEVICE_ID].members()["virtio_id"])


def _matters(kind: int, name: str, device_type: int) -> bool:
    if kind == context.DEVICE_CFG:
        # What other types carry in it is known to their devices alone.
        return device_type in MAY_DIFFER and name not in MAY_DIFFER[device_type]
    return name in MUST_AGREE.get(kind, frozenset())
