"""A virtio-net driver: frames, several queue pairs, mergeable buffers, control commands.

virtio 1.4, "Network Device".
"""

from __future__ import annotations

import struct
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np

from pymodel.spec import net
from vfu_client.drivers.driver import Driver
from vfu_client.vfio.connection import DEFAULT_TIMEOUT
from vfu_client.vfio.memory import Buffer, GuestMemory
from vfu_client.virtio.driver_queue import Completion, DriverQueue
from vfu_client.virtio.function import KNOWN_FEATURES, VirtioPci

FEATURES: Final = frozenset(
    {
        net.F_MTU,
        net.F_MAC,
        net.F_MRG_RXBUF,
        net.F_STATUS,
        net.F_CTRL_VQ,
        net.F_CTRL_RX,
        net.F_CTRL_VLAN,
        net.F_CTRL_RX_EXTRA,
        net.F_MQ,
        net.F_CTRL_MAC_ADDR,
        net.F_SPEED_DUPLEX,
    }
)
"""What a driver takes that is not told otherwise: no offloads, no hashes, no announcing."""

# Room in each receive buffer that the driver makes, and in each transmit buffer, header included.
BUFFER_SIZE: Final = 2048

_HEADER: Final = struct.Struct("<BBHHHHH")
_HASH: Final = struct.Struct("<IHH")
assert (_HEADER.size, _HASH.size) == (net.HEADER.itemsize, net.HEADER_HASH.itemsize)


class CommandError(Exception):
    """A control command that the device answered with VIRTIO_NET_ERR."""


class Received(NamedTuple):
    """A frame, and the header that it came with. Without HASH_REPORT the hash is 0."""

    data: bytes
    flags: int
    gso_type: int
    hdr_len: int
    gso_size: int
    csum_start: int
    csum_offset: int
    num_buffers: int
    hash_value: int
    hash_report: int


@dataclass(frozen=True, slots=True)
class Header:
    """What a driver puts in front of a frame that it sends."""

    flags: int = 0
    gso_type: int = net.GSO_NONE
    hdr_len: int = 0
    gso_size: int = 0
    csum_start: int = 0
    csum_offset: int = 0

    def pack(self) -> bytes:
        """The header, 12 bytes."""
        return _HEADER.pack(
            self.flags, self.gso_type, self.hdr_len, self.gso_size, self.csum_start, self.csum_offset, 0
        )


class Slots:
    """Buffers of one size for one queue, and which chain each is in."""

    def __init__(self, memory: GuestMemory, count: int, size: int) -> None:
        self.size = size
        self.pool = memory.allocate(count * size, 64)
        self.bytes = self.pool.view.data
        self.free = list(range(count - 1, -1, -1))
        self.of_head: dict[int, int] = {}

    def address(self, slot: int) -> int:
        """Where the device finds a slot."""
        return self.pool.address + slot * self.size

    def release(self, head: int) -> int:
        """The slot of a chain that was used; whose it is then is the caller's business."""
        return self.of_head.pop(head)


class NetDriver(Driver):
    """Drives a network function. Made ready to run by the constructor, on `pairs` queue pairs.

    `features` and `ring_features` are those that the driver takes where they are offered. Receive queues are
    filled unless `fill` is False; `buffer_size` is what each receive buffer holds, header included. With
    more than one pair MQ is switched on. Raises `CommandError` where that is refused.
    """

    def __init__(
        self,
        device: VirtioPci,
        *,
        pairs: int = 1,
        queue_size: int | None = None,
        features: Iterable[int] = FEATURES,
        ring_features: frozenset[int] = KNOWN_FEATURES,
        use_msix: bool = True,
        buffer_size: int = BUFFER_SIZE,
        fill: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        wanted = ring_features | frozenset(features)
        super().__init__(device, wanted=wanted, use_msix=use_msix, timeout=timeout)
        self.pairs = pairs
        hashes = device.negotiated(net.F_HASH_REPORT)
        self.header_size = _HEADER.size + (_HASH.size if hashes else 0)
        self.receivers: list[DriverQueue] = []
        self.transmitters: list[DriverQueue] = []
        self._receive_slots: list[Slots] = []
        self._transmit_slots: list[Slots] = []
        self._large: dict[tuple[int, int], Buffer] = {}
        for pair in range(pairs):
            for queues, slots, size in (
                (self.receivers, self._receive_slots, buffer_size),
                (self.transmitters, self._transmit_slots, BUFFER_SIZE),
            ):
                index = 2 * pair + (queues is self.transmitters)
                queues.append(device.setup_queue(index, size=queue_size))
                slots.append(Slots(device.memory, queues[-1].size, size))
        self.control: DriverQueue | None = None
        if device.negotiated(net.F_CTRL_VQ):
            many = device.negotiated(net.F_MQ) or device.negotiated(net.F_RSS)
            self.control = device.setup_queue(2 * self.max_pairs if many else 2)
        device.driver_ok()
        if fill:
            for pair in range(pairs):
                self.refill(pair)
        if pairs > 1 and device.negotiated(net.F_MQ):
            self.set_pairs(pairs)

    # Configuration.

    def _config(self, name: str) -> bytes:
        return self.device.config_field(net.CONFIG, name)

    @property
    def mac(self) -> bytes:
        """The address that the configuration shows."""
        return self._config("mac")

    @property
    def status(self) -> int:
        """The status that the configuration shows: S_LINK_UP, S_ANNOUNCE."""
        return int.from_bytes(self._config("status"), "little")

    @property
    def max_pairs(self) -> int:
        """Queue pairs that there are."""
        return int.from_bytes(self._config("max_virtqueue_pairs"), "little")

    # Sending.

    def send(self, frame: bytes, *, header: Header | None = None, pair: int = 0, kick: bool = True) -> None:
        """Put a frame on a transmit queue. Waits for room; raises `TimeoutError` where none comes.

        A frame of more than a slot of `BUFFER_SIZE` gets memory of its own until it was sent.
        """
        queue, slots = self.transmitters[pair], self._transmit_slots[pair]
        if len(slots.free) < 1:
            self._reclaim(pair)
            if not slots.free:
                queue.kick()
                self.flush(pair, pending=queue.in_flight - 1)
        slot = slots.free.pop()
        raw = b"" if header is None else header.pack()
        data = raw.ljust(self.header_size, b"\0") + frame
        if len(data) <= slots.size:
            at = slot * slots.size
            slots.bytes[at : at + len(data)] = data
            segment = slots.address(slot), len(data)
            large = None
        else:
            large = self.device.memory.allocate(len(data))
            large.view[:] = np.frombuffer(data, np.uint8)
            segment = large.segment
        head = queue.add([segment])
        slots.of_head[head] = slot
        if large is not None:
            self._large[pair, head] = large
        if kick:
            queue.kick()

    def flush(self, pair: int = 0, *, pending: int = 0, timeout: float | None = None) -> None:
        """Wait until at most `pending` frames of a queue have not been sent. Raises `TimeoutError`."""
        queue = self.transmitters[pair]
        deadline = time.monotonic() + (self.timeout if timeout is None else timeout)
        self._reclaim(pair)
        while queue.in_flight > pending:
            for completion in queue.wait(deadline - time.monotonic()):
                self._sent(pair, completion)

    def _reclaim(self, pair: int) -> None:
        for completion in self.transmitters[pair].collect():
            self._sent(pair, completion)

    def _sent(self, pair: int, completion: Completion) -> None:
        slots = self._transmit_slots[pair]
        slots.free.append(slots.release(completion.head))
        large = self._large.pop((pair, completion.head), None)
        if large is not None:
            self.device.memory.free(large)

    # Receiving.

    def refill(self, pair: int = 0, count: int | None = None, *, kick: bool = True) -> int:
        """Give the device `count` empty buffers, all that there are by default. Says how many it got."""
        queue, slots = self.receivers[pair], self._receive_slots[pair]
        wanted = len(slots.free) if count is None else min(count, len(slots.free))
        for _ in range(wanted):
            slot = slots.free.pop()
            slots.of_head[queue.add((), [(slots.address(slot), slots.size)])] = slot
        if wanted and kick:
            queue.kick()
        return wanted

    def receive(self, timeout: float | None = None, *, pair: int = 0, refill: bool = True) -> list[Received]:
        """Wait for frames, and take all that are there. Raises `TimeoutError`."""
        frames = self.received(self.receivers[pair].wait(self.timeout if timeout is None else timeout), pair)
        if refill:
            self.refill(pair)
        return frames

    def poll(self, *, pair: int = 0, refill: bool = True) -> list[Received]:
        """The frames that are there now."""
        frames = self.received(self.receivers[pair].collect(), pair)
        if refill and frames:
            self.refill(pair)
        return frames

    def received(self, completions: Sequence[Completion], pair: int = 0) -> list[Received]:
        """The frames that the device put into these buffers, which are free then."""
        slots = self._receive_slots[pair]
        frames = []
        at = 0
        while at < len(completions):
            slot = slots.of_head[completions[at].head]
            start = slot * slots.size
            fields = _HEADER.unpack_from(slots.bytes, start)
            count = fields[-1]
            hashed = self.header_size > _HEADER.size
            value, report, _ = _HASH.unpack_from(slots.bytes, start + _HEADER.size) if hashed else (0, 0, 0)
            parts = []
            skip = self.header_size
            for completion in completions[at : at + count]:
                begin = slots.of_head[completion.head] * slots.size
                parts.append(bytes(slots.bytes[begin + skip : begin + completion.length]))
                skip = 0
            if len(parts) != count:
                raise RuntimeError(f"{count} buffers were to be used together, {len(parts)} were")
            at += len(parts)
            frames.append(Received._make((b"".join(parts), *fields, value, report)))
        for completion in completions:
            slots.free.append(slots.release(completion.head))
        return frames

    # Control commands.

    def answer(self, kind: tuple[int, int], data: bytes = b"") -> int:
        """One control command; the device's answer. Raises `TimeoutError`."""
        if self.control is None:
            raise ValueError("CTRL_VQ was not negotiated")
        frame = self.device.memory.allocate(2 + len(data) + 1)
        frame.view[: 2 + len(data)] = np.frombuffer(bytes(kind) + data, np.uint8)
        frame.view[-1] = 0xFF
        readable = [(frame.address, 2)] + ([(frame.address + 2, len(data))] if data else [])
        self.control.add(readable, [(frame.address + 2 + len(data), 1)])
        self.control.kick()
        self.control.wait(self.timeout)
        status = int(frame.view[-1])
        self.device.memory.free(frame)
        return status

    def command(self, kind: tuple[int, int], data: bytes = b"") -> None:
        """One control command. Raises `CommandError` where it is refused, and `TimeoutError`."""
        status = self.answer(kind, data)
        if status != net.OK:
            raise CommandError(f"command {kind[0]}/{kind[1]} was answered with {status}")

    def set_mode(self, command: int, on: bool) -> None:
        """One of the receive modes (net.CTRL_RX_...)."""
        self.command((net.CTRL_RX, command), bytes([on]))

    def set_mac(self, mac: bytes) -> None:
        """The function's own address."""
        self.command((net.CTRL_MAC, net.CTRL_MAC_ADDR_SET), mac)

    def set_mac_table(self, unicast: Sequence[bytes], multicast: Sequence[bytes]) -> None:
        """Addresses that are received beside the function's own."""
        data = b"".join(len(table).to_bytes(4, "little") + b"".join(table) for table in (unicast, multicast))
        self.command((net.CTRL_MAC, net.CTRL_MAC_TABLE_SET), data)

    def set_vlan(self, vlan: int, on: bool = True) -> None:
        """Receive a VLAN's frames, or no more."""
        command = net.CTRL_VLAN_ADD if on else net.CTRL_VLAN_DEL
        self.command((net.CTRL_VLAN, command), vlan.to_bytes(2, "little"))

    def set_pairs(self, pairs: int) -> None:
        """Use so many queue pairs, with automatic receive steering."""
        self.command((net.CTRL_MQ, net.CTRL_MQ_VQ_PAIRS_SET), pairs.to_bytes(2, "little"))

    def set_rss(
        self, table: Sequence[int], *, types: int, key: bytes, unclassified: int = 0, pairs: int | None = None
    ) -> None:
        """Choose receive queues by hash; entries are numbers of queue pairs, from 0."""
        data = struct.pack("<IHH", types, len(table) - 1, unclassified)
        data += struct.pack(f"<{len(table)}H", *table)
        data += struct.pack("<HB", self.pairs if pairs is None else pairs, len(key)) + key
        self.command((net.CTRL_MQ, net.CTRL_MQ_RSS_CONFIG), data)

    def set_hash(self, types: int, key: bytes) -> None:
        """What hash is reported, where queues are not chosen by it."""
        data = struct.pack("<I8xB", types, len(key)) + key
        self.command((net.CTRL_MQ, net.CTRL_MQ_HASH_CONFIG), data)

    def set_offloads(self, offloads: int) -> None:
        """The offloads of the guest that are on, as feature bits."""
        self.command((net.CTRL_GUEST_OFFLOADS, net.CTRL_GUEST_OFFLOADS_SET), offloads.to_bytes(8, "little"))

    def acknowledge_announce(self) -> None:
        """The driver has seen S_ANNOUNCE."""
        self.command((net.CTRL_ANNOUNCE, net.CTRL_ANNOUNCE_ACK))
