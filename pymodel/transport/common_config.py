"""The common configuration structure. virtio 1.4, "Common configuration structure layout".

A field's behaviour is its `read_` and `write_` method; a field without `write_` is read-only. Fields of
a queue act on the queue that queue_select names; where there is none they read 0 and take no write.
"""

from __future__ import annotations

from typing import Final

from pymodel.queue.virtqueue import Virtqueue
from pymodel.registers import RegisterFile, RegisterMap, registers_of
from pymodel.spec import virtio
from pymodel.spec.virtio_pci import COMMON_CFG
from pymodel.transport.any_config import AnyConfig
from pymodel.transport.transport import Transport

_WORD = 0xFFFFFFFF
# Features are two words here; every later word reads 0 and takes no write.
FEATURE_WORDS = 2


class CommonConfig(AnyConfig):
    """The 64 bytes through which a driver sets up a device. All that they show is kept by `Transport`."""

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self.registers = RegisterFile(_MAP, (self,))

    def _idle_queue(self) -> Virtqueue | None:
        """The selected queue while it may be set up: features agreed, queue not enabled."""
        queue = self._queue()
        if queue is None or queue.enabled or not self._transport.status & virtio.STATUS_FEATURES_OK:
            return None
        return queue

    def read_device_feature_select(self) -> int:
        return self._transport.device_feature_select

    def write_device_feature_select(self, value: int) -> None:
        self._transport.device_feature_select = value

    def read_device_feature(self) -> int:
        if self._transport.device_feature_select >= FEATURE_WORDS:
            return 0
        return self._transport.offered >> 32 * self._transport.device_feature_select & _WORD

    def read_driver_feature_select(self) -> int:
        return self._transport.driver_feature_select

    def write_driver_feature_select(self, value: int) -> None:
        self._transport.driver_feature_select = value

    def read_driver_feature(self) -> int:
        if self._transport.driver_feature_select >= FEATURE_WORDS:
            return 0
        return self._transport.accepted >> 32 * self._transport.driver_feature_select & _WORD

    def write_driver_feature(self, value: int) -> None:
        if self._transport.driver_feature_select < FEATURE_WORDS:
            shift = 32 * self._transport.driver_feature_select
            self._transport.accept(self._transport.accepted & ~(_WORD << shift) | value << shift)
        else:
            self._transport.accept_unknown(self._transport.driver_feature_select, value)

    def read_num_queues(self) -> int:
        return self._transport.num_queues

    def read_config_generation(self) -> int:
        return self._transport.generation

    def write_queue_size(self, value: int) -> None:
        queue = self._idle_queue()
        if queue and value <= queue.max_size and queue.ring.accepts_size(value):
            queue.size = value

    def read_queue_enable(self) -> int:
        queue = self._queue()
        return int(queue.enabled) if queue else 0

    def write_queue_enable(self, value: int) -> None:
        queue = self._idle_queue()
        if queue and value == 1:
            self._transport.enable(queue)

    def read_queue_notify_off(self) -> int:
        queue = self._queue()
        return queue.index if queue else 0

    def read_queue_desc(self) -> int:
        queue = self._queue()
        return queue.desc if queue else 0

    def write_queue_desc(self, value: int) -> None:
        queue = self._idle_queue()
        if queue:
            queue.desc = value

    def read_queue_driver(self) -> int:
        queue = self._queue()
        return queue.driver if queue else 0

    def write_queue_driver(self, value: int) -> None:
        queue = self._idle_queue()
        if queue:
            queue.driver = value

    def read_queue_device(self) -> int:
        queue = self._queue()
        return queue.device if queue else 0

    def write_queue_device(self, value: int) -> None:
        queue = self._idle_queue()
        if queue:
            queue.device = value

    def read_queue_notif_config_data(self) -> int:
        queue = self._queue()
        return queue.notif_config_data if queue else 0

    def write_queue_reset(self, value: int) -> None:
        queue = self._queue()
        if queue and queue.enabled and value == 1 and self._transport.negotiated(virtio.F_RING_RESET):
            self._transport.reset_queue(queue)

    def read_admin_queue_index(self) -> int:
        return self._transport.admin_index if self._transport.has_admin else 0

    def read_admin_queue_num(self) -> int:
        return int(self._transport.has_admin)


_MAP: Final = RegisterMap(COMMON_CFG.itemsize)
_MAP.place(0, registers_of(COMMON_CFG), CommonConfig)
