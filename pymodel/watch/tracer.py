"""Everything that passes a function, in words, for a trace that people look at."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any, Final, Protocol

from pymodel.admin.queue import QUALIFIER_NAMES, STATUS_NAMES
from pymodel.devices.net.device import NetDevice
from pymodel.errors import BrokenQueue
from pymodel.memory import Buffer
from pymodel.pci.function import Function
from pymodel.pci.physical_function import PhysicalFunction
from pymodel.queue.split import SplitRing
from pymodel.spec import net, ring, virtio
from pymodel.transport.status import describe
from pymodel.watch import names
from pymodel.watch.access import COMMON, NOTIFY, Access, Piece
from pymodel.watch.listener import Listener
from pymodel.watcher import INTX

# Tracks of a function beside those of its queues.
REGISTERS: Final = "registers"
INTERRUPTS: Final = "interrupts"
EVENTS: Final = "events"
MEMORY: Final = "memory"

_BLOCK: Final = struct.Struct("<IIQ")
_RESULT: Final = struct.Struct("<HH")
_NET: Final = struct.Struct("<BBHHHHH")


class Sink(Protocol):
    """Where a trace goes to. Called on any thread, with the function's lock held."""

    def instant(self, function: str, track: str, name: str, details: Mapping[str, Any]) -> None:
        """Something happened."""
        ...

    def begin(self, function: str, track: str, name: str, number: int, details: Mapping[str, Any]) -> None:
        """Something begins that takes a while: `number` tells it from others of the track."""
        ...

    def end(self, function: str, track: str, name: str, number: int, details: Mapping[str, Any]) -> None:
        """It ends."""
        ...


class Tracer(Listener):
    """Tells a sink of all that passes `function`: registers and features by name, chains with their parts,
    requests with their answers, interrupts, modes.
    """

    def __init__(self, function: Function, sink: Sink) -> None:
        self._function = function
        self._sink = sink
        self._owner = function if isinstance(function, PhysicalFunction) else None
        self._type = function.transport.device.virtio_id
        # What was begun and has not ended, by queue and buffer id: its number and name.
        self._begun: dict[tuple[int, int], tuple[int, str]] = {}
        self._count = 0

    # -- accesses ------------------------------------------------------------------------------------------

    def read(self, access: Access) -> None:
        """See `Listener`."""
        self._access("read", access)

    def write(self, access: Access) -> None:
        """See `Listener`."""
        if access.structure == NOTIFY:
            self._instant(REGISTERS, f"notify queue {access.offset // 4}", {"data": access.data.hex()})
        else:
            self._access("write", access)

    def _access(self, what: str, access: Access) -> None:
        if not access.pieces:
            details = {"structure": access.structure, "offset": access.offset, "data": access.data.hex()}
            self._instant(REGISTERS, f"{what} {access.structure}", details)
        for piece in access.pieces:
            details = {"structure": access.structure, "value": piece.value, "bytes": piece.length}
            if access.structure == COMMON:
                details |= self._meaning(piece)
            self._instant(REGISTERS, f"{what} {piece.name}", details)

    def _meaning(self, piece: Piece) -> dict[str, Any]:
        """What a field of the common configuration says."""
        transport = self._function.transport
        if piece.name == "device_status":
            return {"meaning": describe(piece.value)}
        if piece.name in {"device_feature", "driver_feature"}:
            device = piece.name == "device_feature"
            word = transport.device_feature_select if device else transport.driver_feature_select
            # Words beyond all features are legal, and a driver may name any.
            bits = piece.shifted << 32 * word if word < 4 else 0
            return {"meaning": ", ".join(names.features(self._type, bits)), "word": word}
        if piece.name.startswith("queue_") and piece.name != "queue_select":
            return {"queue": transport.queue_select}
        return {}

    # -- buffers -------------------------------------------------------------------------------------------

    def taken(self, buffer: Buffer) -> None:
        """See `Listener`."""
        queue = self._function.transport.queues[buffer.queue]
        chain = queue.chain
        name, details = self._request(buffer)
        split = queue.ring.name == SplitRing.name
        position = queue.ring.last_avail & (0xFFFF if split else ring.OFFSET_MASK)
        details |= {
            "head": chain.id,
            "next-position": position,
            "readable": [list(pair) for pair in chain.readable],
            "writable": [list(pair) for pair in chain.writable],
        }
        self._count += 1
        self._begun[buffer.queue, chain.id] = self._count, name
        self._sink.begin(self._function.name, _track(buffer.queue), name, self._count, details)

    def given_back(self, buffer: Buffer) -> None:
        """See `Listener`."""
        self._end(buffer, {"given-back": True})

    def used(self, buffer: Buffer, written: int) -> None:
        """See `Listener`."""
        self._end(buffer, {"written": written, **self._answer(buffer, written)})

    def _end(self, buffer: Buffer, details: Mapping[str, Any]) -> None:
        number, name = self._begun.pop((buffer.queue, getattr(buffer, "id", -1)), (0, ""))
        if number:
            self._sink.end(self._function.name, _track(buffer.queue), name, number, details)

    def _kind(self, queue: int) -> str:
        """What a queue is for."""
        transport = self._function.transport
        device = transport.device
        if queue >= transport.num_queues:
            return "admin"
        if self._type == virtio.ID_BLOCK:
            return "block"
        if isinstance(device, NetDevice):
            return "control" if queue == device.control_queue else ("transmit" if queue & 1 else "receive")
        return "buffer"

    def _request(self, buffer: Buffer) -> tuple[str, dict[str, Any]]:
        """What a buffer asks for: its name, and what else there is to say."""
        kind = self._kind(buffer.queue)
        if kind == "admin" and self._owner is not None:
            sent = self._owner.admin.look(buffer)
            member = {"member": sent.member.name} if sent.member is not None else {}
            return sent.name, {"opcode": sent.call.opcode, "group": sent.call.group, **member}
        if kind == "block":
            raw = buffer.readable.read(0, _BLOCK.size).ljust(_BLOCK.size, b"\0")
            number, _, sector = _BLOCK.unpack(raw)
            size = max(buffer.readable.length - _BLOCK.size, buffer.writable.length - 1, 0)
            name = names.BLOCK_REQUESTS.get(number, f"type {number}")
            return name, {"sector": sector, "bytes": size}
        if kind == "control":
            head = buffer.readable.read(0, 2).ljust(2, b"\0")
            return names.command((head[0], head[1])), {"data": buffer.readable.read(2, 64).hex()}
        if kind == "transmit":
            return "transmit", {"bytes": buffer.readable.length, **_header(buffer.readable.read(0, 12))}
        return kind, {"readable-bytes": buffer.readable.length, "writable-bytes": buffer.writable.length}

    def _answer(self, buffer: Buffer, written: int) -> dict[str, Any]:
        """What the device answered."""
        kind = self._kind(buffer.queue)
        if kind == "admin":
            raw = buffer.writable.read(0, _RESULT.size)
            if len(raw) < _RESULT.size:
                return {}
            status, qualifier = _RESULT.unpack(raw)
            return {
                "status": STATUS_NAMES.get(status, status),
                "qualifier": QUALIFIER_NAMES.get(qualifier, qualifier),
            }
        if kind == "block" and buffer.writable.length:
            status = buffer.writable.read(buffer.writable.length - 1, 1)
            return {"status": names.BLOCK_STATUSES.get(status[0], status[0])}
        if kind == "control":
            answer = buffer.writable.read(0, 1)
            return {"answer": names.NET_ANSWERS.get(answer[0], answer[0])} if answer else {}
        if kind == "receive" and written:
            return {"bytes": written, **_header(buffer.writable.read(0, 12))}
        return {}

    # -- everything else -------------------------------------------------------------------------------------

    def broke(self, queue: int, error: BrokenQueue) -> None:
        """See `Listener`."""
        self._instant(_track(queue), "broken", {"reason": str(error)})

    def interrupt(self, vector: int) -> None:
        """See `Listener`."""
        self._instant(INTERRUPTS, "INTx" if vector == INTX else f"MSI-X {vector}", {})

    def mapped(self, address: int, length: int, *, there: bool, writable: bool) -> None:
        """See `Listener`."""
        details = {"address": address, "length": length, **({"writable": writable} if there else {})}
        self._instant(MEMORY, "map" if there else "unmap", details)

    def was_reset(self) -> None:
        """See `Listener`: what was in flight ends here."""
        for (queue, _), (number, name) in self._begun.items():
            self._sink.end(self._function.name, _track(queue), name, number, {"forgotten": True})
        self._begun.clear()
        self._instant(EVENTS, "reset", {})

    def event(self, kind: str, data: Mapping[str, Any]) -> None:
        """See `Listener`."""
        self._instant(EVENTS, kind, data)

    def _instant(self, track: str, name: str, details: Mapping[str, Any]) -> None:
        self._sink.instant(self._function.name, track, name, details)


def _track(queue: int) -> str:
    return f"queue {queue}"


def _header(raw: bytes) -> dict[str, Any]:
    """A network header, where it says anything."""
    if len(raw) < net.HEADER.itemsize or not any(raw):
        return {}
    fields = net.HEADER.names or ()
    return {"header": dict(zip(fields, _NET.unpack(raw), strict=True))}
