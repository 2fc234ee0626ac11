"""The registers of legacy drivers. virtio 1.4, "Legacy Interfaces: A Note on PCI Device Layout".

A device is used through them from the first write on, until its reset: then whoever comes first has it.
"""

from __future__ import annotations

from typing import Final

from pymodel.errors import InvalidCommand
from pymodel.registers import RegisterFile, RegisterMap, registers_of
from pymodel.spec import ring, virtio
from pymodel.spec.virtio_pci import LEGACY_CFG
from pymodel.transport.any_config import AnyConfig
from pymodel.transport.features import legacy_features
from pymodel.transport.transport import Transport


class LegacyConfig(AnyConfig):
    """The common configuration as legacy drivers have it. All that it shows is kept by `Transport`.

    A queue has the size that the device gives it; an address enables it, and 0 disables it.
    """

    def __init__(self, transport: Transport) -> None:
        super().__init__(transport)
        self._registers = RegisterFile(_MAP, (self,))

    def read(self, offset: int, length: int) -> bytes:
        """Read."""
        return self._registers.read(offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Write. Raises `InvalidCommand` where a driver that is none of the legacy ones has the device."""
        self.begin(resets=self._resets(offset, data))
        self._registers.write(offset, data)

    def begin(self, *, resets: bool = False) -> None:
        """A legacy driver writes something. `resets`: a reset, which is for everybody. Raises as `write`."""
        transport = self._transport
        if transport.legacy or resets:
            return
        if transport.status & virtio.STATUS_FEATURES_OK:
            raise InvalidCommand("a driver that took VERSION_1 has the device, until it is reset")
        transport.legacy = True
        self.write_driver_features(transport.accepted)

    def notify(self, index: int) -> None:
        """A notification of queue `index`, whichever way it came."""
        transport = self._transport
        queue = transport.queues.get(index)
        if not transport.legacy or queue is None or not queue.enabled:
            return
        # "The transitional device MUST support the driver using the device before the step DRIVER_OK."
        transport.used_early = True
        transport.kick(index, index.to_bytes(2, "little"))
        transport.wake()

    @staticmethod
    def _resets(offset: int, data: bytes) -> bool:
        assert LEGACY_CFG.fields is not None
        return offset == LEGACY_CFG.fields["device_status"][1] and not any(data)

    def read_device_features(self) -> int:
        return legacy_features(self._transport.offered)

    def read_driver_features(self) -> int:
        return self._transport.accepted & virtio.LEGACY_FEATURES

    def write_driver_features(self, value: int) -> None:
        """Taken until a queue is used. A legacy driver cannot be refused any: what is not offered is left
        out, and of features that don't fit together none is taken.
        """
        transport = self._transport
        if any(queue.enabled for queue in transport.queues.values()):
            return
        taken = value & self.read_device_features()
        if reason := transport.device.acceptable(taken):
            transport.log.warning("features %#x of a legacy driver are not taken: %s", taken, reason)
            taken = 0
        transport.agree(taken)

    def read_queue_address(self) -> int:
        queue = self._queue()
        return queue.desc // ring.LEGACY_PAGE & 0xFFFFFFFF if queue else 0

    def write_queue_address(self, value: int) -> None:
        """Where the three parts are: "Legacy Interfaces: A Note on Virtqueue Layout"."""
        queue = self._queue()
        if queue is None or bool(value) == queue.enabled:
            return
        if not value:
            self._transport.reset_queue(queue)
            return
        queue.desc = value * ring.LEGACY_PAGE
        queue.driver = queue.desc + queue.size * ring.DESC.itemsize
        # Flags, index, entries, and the word for EVENT_IDX.
        end = queue.driver + ring.RING_ENTRIES + 2 * queue.size + 2
        queue.device = -(-end // ring.LEGACY_PAGE) * ring.LEGACY_PAGE
        self._transport.enable(queue)

    def write_queue_notify(self, value: int) -> None:
        self.notify(value)

    def read_isr_status(self) -> int:
        return self._transport.read_isr()


_MAP: Final = RegisterMap(LEGACY_CFG.itemsize)
_MAP.place(0, registers_of(LEGACY_CFG), LegacyConfig)
