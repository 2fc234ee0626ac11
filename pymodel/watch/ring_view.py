"""A ring as it stands: what is in guest memory, and what the device makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pymodel.errors import MemoryFault
from pymodel.memory import GuestMemory
from pymodel.queue.split import SplitRing
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import ring

FLAGS: Final[Mapping[int, str]] = {
    ring.DESC_F_NEXT: "NEXT",
    ring.DESC_F_WRITE: "WRITE",
    ring.DESC_F_INDIRECT: "INDIRECT",
    ring.PACKED_DESC_F_AVAIL: "AVAIL",
    ring.PACKED_DESC_F_USED: "USED",
}
BUFFERS_MAX: Final = 64
"""Buffers of each kind that are shown."""

TABLE_MAX: Final = 64
"""Descriptors of an indirect table that are shown."""

_SIZE: Final = ring.DESC.itemsize


def ring_view(queue: Virtqueue, memory: GuestMemory) -> dict[str, Any]:
    """All of a queue that one looks for when it does not go on, as JSON has it.

    What guest memory does not tell, because it is not mapped or the function may not access it now, is told
    as `memory`: why. Changes nothing.
    """
    found: dict[str, Any] = {
        "index": queue.index,
        "format": queue.ring.name,
        "size": queue.size,
        "enabled": queue.enabled,
        "vector": queue.vector,
        "desc": queue.desc,
        "driver": queue.driver,
        "device": queue.device,
        "interrupt-owed": queue.owed,
        "outstanding": queue.outstanding,
        "requests": queue.requests,
    }
    if not queue.enabled:
        return found
    split = queue.ring.name == SplitRing.name
    try:
        found |= _split(queue, memory) if split else _packed(queue, memory)
    except MemoryFault as fault:
        found["memory"] = str(fault)
    return found


def place(position: int) -> tuple[int, int]:
    """The descriptor and the wrap counter of a position in a packed ring."""
    return position & ring.OFFSET_MASK, position >> ring.WRAP_SHIFT


def available(wrap: int) -> int:
    """AVAIL and USED of a descriptor that is available, with this wrap counter."""
    return ring.PACKED_DESC_F_AVAIL if wrap else ring.PACKED_DESC_F_USED


# -- split -----------------------------------------------------------------------------------------------


def _split(queue: Virtqueue, memory: GuestMemory) -> dict[str, Any]:
    available = memory.load_u16(queue.driver + ring.RING_IDX)
    taken = queue.ring.last_avail
    waiting = (available - taken) & 0xFFFF
    used_end = queue.device + ring.RING_ENTRIES + ring.USED_ELEM.itemsize * queue.size
    return {
        "avail": {
            "flags": memory.load_u16(queue.driver),
            "idx": available,
            "used-event": memory.load_u16(queue.driver + ring.RING_ENTRIES + 2 * queue.size),
        },
        "used": {
            "flags": memory.load_u16(queue.device),
            "idx": memory.load_u16(queue.device + ring.RING_IDX),
            "avail-event": memory.load_u16(used_end),
        },
        "last-avail": taken,
        "last-used": queue.ring.used,
        "available": [
            _split_buffer(queue, memory, (taken + step) & 0xFFFF)
            for step in range(min(waiting, queue.size, BUFFERS_MAX))
        ],
        "in-flight": [
            _split_buffer(queue, memory, position, head)
            for head, position in list(queue.in_flight.items())[:BUFFERS_MAX]
        ],
    }


def _split_buffer(
    queue: Virtqueue, memory: GuestMemory, position: int, head: int | None = None
) -> dict[str, Any]:
    """A buffer by its position. The head of one that was taken is known, and may not be there any more."""
    if head is None:
        head = memory.load_u16(queue.driver + ring.RING_ENTRIES + 2 * (position % queue.size))
    descriptors: list[dict[str, Any]] = []
    number = head
    while number < queue.size and len(descriptors) < queue.size:
        descriptors.append(_with_table(memory, _descriptor(memory, queue.desc, number, packed=False)))
        if "NEXT" not in descriptors[-1]["flags"]:
            break
        number = descriptors[-1]["next"]
    return {"position": position, "head": head, "descriptors": descriptors}


# -- packed ----------------------------------------------------------------------------------------------


def _packed(queue: Virtqueue, memory: GuestMemory) -> dict[str, Any]:
    return {
        "driver-event": _event(memory, queue.driver),
        "device-event": _event(memory, queue.device),
        "last-avail": _position(queue.ring.last_avail),
        "last-used": _position(queue.ring.used),
        # Available or not: a driver with another wrap counter is seen here.
        "next": _descriptor(memory, queue.desc, place(queue.ring.last_avail)[0], packed=True),
        "available": _packed_available(queue, memory),
        "in-flight": [
            {"id": number, **_packed_buffer(queue, memory, position)}
            for number, position in list(queue.in_flight.items())[:BUFFERS_MAX]
        ],
    }


def _event(memory: GuestMemory, address: int) -> dict[str, int]:
    return {
        **_position(memory.load_u16(address + ring.EVENT_DESC)),
        "flags": memory.load_u16(address + ring.EVENT_FLAGS),
    }


def _position(position: int) -> dict[str, int]:
    offset, wrap = place(position)
    return {"offset": offset, "wrap": wrap}


def _packed_available(queue: Virtqueue, memory: GuestMemory) -> list[dict[str, Any]]:
    """What the driver made available, from where the device is on."""
    position, left = queue.ring.last_avail, queue.size
    found: list[dict[str, Any]] = []
    while left > 0 and len(found) < BUFFERS_MAX:
        offset, wrap = place(position)
        flags = _descriptor(memory, queue.desc, offset, packed=True)["flags"]
        if ("AVAIL" in flags, "USED" in flags) != (bool(wrap), not wrap):
            break
        found.append(_packed_buffer(queue, memory, position))
        count = len(found[-1]["descriptors"])
        left -= count
        offset += count
        if offset >= queue.size:
            offset, wrap = offset - queue.size, wrap ^ 1
        position = offset | wrap << ring.WRAP_SHIFT
    return found


def _packed_buffer(queue: Virtqueue, memory: GuestMemory, position: int) -> dict[str, Any]:
    descriptors: list[dict[str, Any]] = []
    offset = position & ring.OFFSET_MASK
    while len(descriptors) < queue.size:
        descriptors.append(_with_table(memory, _descriptor(memory, queue.desc, offset, packed=True)))
        if "NEXT" not in descriptors[-1]["flags"]:
            break
        offset = (offset + 1) % queue.size
    return {"position": _position(position), "descriptors": descriptors}


# -- both ------------------------------------------------------------------------------------------------


def _descriptor(memory: GuestMemory, table: int, number: int, *, packed: bool) -> dict[str, Any]:
    raw = memory.read(table + _SIZE * number, _SIZE)
    third, fourth = int.from_bytes(raw[12:14], "little"), int.from_bytes(raw[14:], "little")
    flags = fourth if packed else third
    return {
        "index": number,
        "address": int.from_bytes(raw[:8], "little"),
        "length": int.from_bytes(raw[8:12], "little"),
        "flags": [name for bit, name in FLAGS.items() if flags & bit],
        **({"id": third} if packed else {"next": fourth}),
    }


def _with_table(memory: GuestMemory, entry: dict[str, Any]) -> dict[str, Any]:
    """A descriptor with the indirect table that it may stand for."""
    if "INDIRECT" in entry["flags"]:
        count = min(entry["length"] // _SIZE, TABLE_MAX)
        packed = "id" in entry
        try:
            entry["table"] = [
                _descriptor(memory, entry["address"], number, packed=packed) for number in range(count)
            ]
        except MemoryFault as fault:
            entry["memory"] = str(fault)
    return entry
