"""The frames of a network function, as its driver sends and gets them."""

from __future__ import annotations

from collections.abc import Callable

from pymodel.devices.net.device import NetDevice
from pymodel.memory import Buffer
from pymodel.pci.function import Function
from pymodel.spec import net
from pymodel.watch.listener import Listener

_BUFFERS_AT = 10
"""Where in a header num_buffers is."""


class Frames(Listener):
    """Gives each frame of `function` to `keep`, with whether the driver sent it, without its virtio header.

    Checksums and segments are as they are there: a frame that is to be segmented is one frame.
    """

    def __init__(self, function: Function, device: NetDevice, keep: Callable[[bytes, bool], None]) -> None:
        self._device = device
        self._transport = function.transport
        self._keep = keep
        # By receive queue: what came of a frame in several buffers, and how many more it has.
        self._parts: dict[int, tuple[bytes, int]] = {}

    def was_reset(self) -> None:
        """Nothing comes any more of what began."""
        self._parts.clear()

    def taken(self, buffer: Buffer) -> None:
        """A frame is to be sent."""
        if self._is_pair(buffer.queue) and buffer.queue & 1:
            start = self._device.header_size
            if buffer.readable.length > start:
                self._keep(buffer.readable.read(start, buffer.readable.length - start), True)

    def used(self, buffer: Buffer, written: int) -> None:
        """A frame, or a part of one, was received."""
        queue = buffer.queue
        if not self._is_pair(queue) or queue & 1 or not written:
            return
        data = buffer.writable.read(0, written)
        begun, left = self._parts.pop(queue, (b"", 0))
        if not left:
            left = 1
            if self._transport.negotiated(net.F_MRG_RXBUF):
                left = max(int.from_bytes(data[_BUFFERS_AT : _BUFFERS_AT + 2], "little"), 1)
            data = data[self._device.header_size :]
        if left > 1:
            self._parts[queue] = begun + data, left - 1
        else:
            self._keep(begun + data, False)

    def _is_pair(self, queue: int) -> bool:
        return queue < self._transport.num_queues and queue != self._device.control_queue
