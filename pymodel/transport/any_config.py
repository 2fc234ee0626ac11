"""The registers that the common configuration has in every form: for drivers of today, and for legacy ones.

A field of a queue acts on the queue that queue_select names; where there is none it reads 0 and takes no
write, and a vector reads NO_VECTOR.
"""

from __future__ import annotations

from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec.virtio_pci import NO_VECTOR
from pymodel.transport.transport import Transport


class AnyConfig:
    """What a driver of any kind finds. All that is shown is kept by `transport`."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _queue(self) -> Virtqueue | None:
        return self._transport.queues.get(self._transport.queue_select)

    def read_config_msix_vector(self) -> int:
        return self._transport.config_vector

    def write_config_msix_vector(self, value: int) -> None:
        self._transport.map_configuration(value)

    def read_device_status(self) -> int:
        return self._transport.status

    def write_device_status(self, value: int) -> None:
        self._transport.write_status(value)

    def read_queue_select(self) -> int:
        return self._transport.queue_select

    def write_queue_select(self, value: int) -> None:
        self._transport.queue_select = value

    def read_queue_size(self) -> int:
        queue = self._queue()
        return queue.size if queue else 0

    def read_queue_msix_vector(self) -> int:
        queue = self._queue()
        return queue.vector if queue else NO_VECTOR

    def write_queue_msix_vector(self, value: int) -> None:
        queue = self._queue()
        if queue:
            self._transport.map_queue(queue, value)
