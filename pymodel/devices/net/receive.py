"""The receive side of a network device: frames that wait for a buffer, and how they are put into it.

virtio 1.4, "Processing of Incoming Packets".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from pymodel.devices.net import header as net_header
from pymodel.devices.net.channel import Channel
from pymodel.devices.net.counters import NetCounters
from pymodel.devices.net.port import FRAME_MAX
from pymodel.devices.net.receive_engine import ReceiveEngine
from pymodel.devices.net.settings import Settings
from pymodel.devices.net.steering import NO_HASH, Steering
from pymodel.errors import MemoryFault
from pymodel.memory import Buffer, Bytes, GuestMemory
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import net

FRAMES_MAX: Final = 256
"""Frames that wait for a queue's buffers; more are dropped."""

BYTES_MAX: Final = 16 << 20
"""Bytes of frames that wait for all queues of a function, each of which has its share or one frame."""

# Up to here a copy into one run of bytes costs less than two writes.
_SMALL: Final = 4096


@dataclass(slots=True)  # frozen ones take their time to make
class _Held:
    """A frame on its way to the driver: `header` is the port's, checked."""

    frame: Bytes
    header: bytes
    found: tuple[int, int] | None


class Receiver:
    """Holds what came in until the driver has buffers for it. `enabled` tells whether a queue is enabled.

    A frame that needs more buffers than there are waits for some to be added: `patience` calls its second
    argument when that has been long enough for a pair. Frames for which there are too few are then dropped at
    once, until one over several buffers gets through.
    """

    def __init__(
        self,
        pairs: int,
        counters: NetCounters,
        enabled: Callable[[int], bool],
        patience: Callable[[int, Callable[[], None]], None],
    ) -> None:
        self._counters = counters
        self._enabled = enabled
        self._patience = patience
        # By pair: what its first frame's wait for more buffers is known by, and whether that was in vain.
        self._waits: list[object | None] = [None] * pairs
        self._in_vain = [False] * pairs
        self._held: list[deque[_Held]] = [deque() for _ in range(pairs)]
        self._bytes = [0] * pairs
        self._share = BYTES_MAX // pairs
        self._features = 0
        self._merge = False
        self._report = False
        self._longest: int | None = None
        self._engine: ReceiveEngine | None = None
        # Bytes of header in front of each frame, both ways.
        self.header_size = net_header.SIZE
        self.steering = Steering(Settings(mac=b""), report=False)

    def configure(self, features: int, mtu: int | None) -> None:
        """What the driver agreed to, its offloads as they are now; `mtu` where it took that.

        `steer` follows.
        """
        self.take_over()
        self._features = features
        self._merge = bool(features >> net.F_MRG_RXBUF & 1)
        self._report = bool(features >> net.F_HASH_REPORT & 1)
        self.header_size = net_header.size(features)
        self._longest = None if mtu is None else mtu + net.ETHERNET_HEADER

    def steer(self, settings: Settings) -> None:
        """Choose queues by these settings and what was configured, also for the frames that wait already."""
        self.take_over()
        self._engine = None
        self.steering = Steering(settings, report=self._report)
        waiting = [entry.frame for held in self._held for entry in held]
        for pair, held in enumerate(self._held):
            held.clear()
            self._bytes[pair] = 0
            self._wait_anew(pair)
        for frame in waiting:
            self.hold(frame)

    # -- without the interpreter -----------------------------------------------------------------------

    def engine(self, queue: Virtqueue, memory: GuestMemory, channel: Channel) -> ReceiveEngine | None:
        """What puts frames into the buffers of a queue; None while some wait here, and where there are others
        that a frame can go to.
        """
        if queue.index or not self.steering.single or self._held[0]:
            return None
        engine = self._engine
        if engine is None or engine.life != queue.life or engine.channel is not channel:
            self.take_over()
            engine = self._engine = ReceiveEngine(
                queue,
                memory,
                channel,
                self._counters,
                self._features,
                start=self.header_size,
                hashes=self.steering.toeplitz if self._report else None,
                merge=self._merge,
                longest=FRAME_MAX if self._longest is None else self._longest,
            )
        engine.fd = channel.fd
        return engine

    def take_over(self) -> None:
        """Have what the engine kept wait with the others."""
        if self._engine is not None and self._engine.left:
            self.hold(self._engine.take_left())

    # -- frames in -------------------------------------------------------------------------------------

    def hold(self, frame: Bytes) -> None:
        """Take a frame from the port, and drop it if it is not good or there is no room."""
        length = len(frame) - net_header.SIZE
        if length < net.ETHERNET_HEADER:
            self._counters.drop("rx-dropped-malformed")
            return
        header = net_header.checked(
            frame[: net_header.SIZE].tobytes(), length, self._features, net_header.RECEIVE
        )
        if header is None:
            self._counters.drop("rx-dropped-offload")
            return
        if self._longest is not None and length > self._longest and not header[1] and self._too_long(frame):
            self._counters.drop("rx-dropped-too-long")
            return
        pair, found = 0, NO_HASH
        if self.steering.looks:
            start = net_header.SIZE
            pair, found = self.steering.choose(frame[start : start + Steering.HEAD].tobytes())
        if not self._enabled(2 * pair):
            # "SHOULD re-select another random queue" holds for automatic steering only.
            others = range(0 if self.steering.fixed else self.steering.pairs)
            other = next((other for other in others if self._enabled(2 * other)), None)
            if other is None:
                self._counters.drop("rx-dropped-no-queue")
                return
            pair = other
        held = self._held[pair]
        if len(held) >= FRAMES_MAX or (held and self._bytes[pair] + len(frame) > self._share):
            self._counters.drop("rx-dropped-no-buffers", 2 * pair)
            return
        held.append(_Held(frame, header, found if self._report else None))
        self._bytes[pair] += len(frame)

    def _too_long(self, frame: Bytes) -> bool:
        """Whether a frame is longer than the MTU allows with the tag that it may have."""
        assert self._longest is not None
        at = net_header.SIZE + net.ETHERNET_HEADER - 2
        tagged = int.from_bytes(frame[at : at + 2].tobytes()) in (
            net.ETHERTYPE_VLAN,
            net.ETHERTYPE_SERVICE_VLAN,
        )
        return len(frame) - net_header.SIZE > self._longest + net.VLAN_TAG * tagged

    def waiting(self, pair: int) -> bool:
        """Whether a frame waits for a buffer of this pair's receive queue."""
        return bool(self._held[pair])

    def drop(self, pair: int) -> None:
        """Forget what waits for a queue."""
        if pair == 0:
            self.take_over()
            self._engine = None
        held = self._held[pair]
        if held:
            self._counters.drop("rx-dropped-reset", 2 * pair, len(held))
            self._bytes[pair] = 0
            held.clear()
        self._wait_anew(pair)

    # -- frames out ------------------------------------------------------------------------------------

    def deliver(self, pair: int, buffer: Buffer) -> None:
        """Put the first frame that fits into `buffer`, or give the buffer back. Raises `MemoryFault`."""
        held = self._held[pair]
        while held:
            entry = held[0]
            total = self.header_size + len(entry.frame) - net_header.SIZE
            if total <= buffer.writable.length:
                self._put(entry, [buffer], total)
                break
            if self._merge and buffer.writable.length >= self.header_size:
                buffers, enough = self._gather(buffer, total)
                if enough:
                    self._put(entry, buffers, total)
                    self._wait_anew(pair)
                    break
                may_come = not buffer.ring_is_full
                _give_back(buffers[1:])
                if may_come and not self._in_vain[pair]:
                    buffer.give_back()
                    self._wait(pair)
                    return
            self._counters.drop("rx-dropped-buffer-too-small", 2 * pair)
            self._done(pair)
        else:
            buffer.give_back()
            return
        self._done(pair)
        self._counters.received(2 * pair, len(entry.frame) - net_header.SIZE)

    def _done(self, pair: int) -> None:
        self._bytes[pair] -= len(self._held[pair].popleft().frame)
        self._waits[pair] = None

    def _wait_anew(self, pair: int) -> None:
        """The next frame that needs more buffers than there are waits for them."""
        self._waits[pair] = None
        self._in_vain[pair] = False

    def _wait(self, pair: int) -> None:
        """The first frame waits from now on, unless it does already."""
        if self._waits[pair] is not None:
            return
        wait = self._waits[pair] = object()

        def over() -> None:
            if self._waits[pair] is wait:
                self._waits[pair] = None
                self._in_vain[pair] = True

        self._patience(pair, over)

    @staticmethod
    def _gather(first: Buffer, total: int) -> tuple[list[Buffer], bool]:
        """Take buffers after `first` until `total` bytes fit or none is left: all of them, and whether."""
        buffers = [first]
        room = first.writable.length
        try:
            while room < total and (more := first.next()) is not None:
                buffers.append(more)
                room += more.writable.length
        except MemoryFault:
            _give_back(buffers[1:])
            raise
        return buffers, room >= total

    def _put(self, entry: _Held, buffers: list[Buffer], total: int) -> None:
        """Write header and frame over `buffers`, and complete them."""
        header = net_header.received(entry.header, len(buffers), entry.found)[: self.header_size]
        body = entry.frame[net_header.SIZE :]
        if len(buffers) == 1:
            if total <= _SMALL:
                buffers[0].writable.put(0, header + body.tobytes())
            else:
                buffers[0].writable.write(0, [np.frombuffer(header, np.uint8), body])
            buffers[0].complete(total)
            return
        written = []
        try:
            start = 0
            for number, buffer in enumerate(buffers):
                sources = [np.frombuffer(header, np.uint8)] if number == 0 else []
                room = buffer.writable.length - sum(len(source) for source in sources)
                sources.append(body[start : start + room])
                start += len(sources[-1])
                written.append(buffer.writable.write(0, sources))
        except MemoryFault:
            _give_back(buffers[1:])
            raise
        for buffer, count in zip(buffers, written, strict=True):
            buffer.complete(count)


def _give_back(buffers: list[Buffer]) -> None:
    """Give back the buffers that were taken last, in reverse order."""
    for buffer in reversed(buffers):
        buffer.give_back()
