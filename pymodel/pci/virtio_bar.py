"""The BAR of the virtio structures, each in a page of its own. virtio 1.4, "Virtio Over PCI Bus"."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Final

from pymodel.pci.virtio_capabilities import VirtioCapability
from pymodel.spec import virtio_pci
from pymodel.transport.common_config import CommonConfig
from pymodel.transport.transport import Transport

VIRTIO_BAR: Final = 0
LEGACY_VIRTIO_BAR: Final = 4
"""Where legacy drivers may come: their own registers are to be found in the BAR 0 that they are shown."""
COMMON_AT: Final = 0x0000
ISR_AT: Final = 0x1000
DEVICE_AT: Final = 0x2000
NOTIFY_AT: Final = 0x3000
LEGACY_NOTIFY_AT: Final = 0x4000
_PAGE: Final = 0x1000

NOTIFY_MULTIPLIER: Final = 4
"""Bytes from one queue's address for notifications to the next one's."""

_capability: Final = cache(VirtioCapability)
"""They keep nothing, so functions that look alike have the same ones."""


class VirtioBar:
    """What a client's accesses to the structures of `transport` do.

    `device_accessed` is told of a "read" or "write" of device configuration. With `legacy_notify`, which gets
    what is written to `LEGACY_NOTIFY_AT`, the BAR is another one. Raises ValueError for more queues than have
    an address in the notify structure.
    """

    def __init__(
        self,
        transport: Transport,
        legacy_notify: Callable[[bytes], None] | None,
    ) -> None:
        self.index = VIRTIO_BAR if legacy_notify is None else LEGACY_VIRTIO_BAR
        self.size = 0x4000 if legacy_notify is None else 0x8000
        self.structures = (
            (COMMON_AT, 0x40),
            (NOTIFY_AT, NOTIFY_MULTIPLIER * (max(transport.queues) + 1)),
            (ISR_AT, 1),
            (DEVICE_AT, transport.config_length),
        )
        """Offset and length of each structure that a capability tells of."""
        self._legacy_notify = legacy_notify
        self._transport = transport
        self._common = CommonConfig(transport).registers
        self._notify_size = NOTIFY_MULTIPLIER * (max(transport.queues) + 1)
        if self._notify_size > _PAGE:
            raise ValueError(f"{len(transport.queues)} queues; {_PAGE // NOTIFY_MULTIPLIER} are possible")

    def capabilities(self) -> tuple[VirtioCapability, ...]:
        """Where the structures are. A device without a configuration has none of that: Linux takes a
        capability of no length for a broken one.
        """
        rows = (
            ("common", virtio_pci.CAP_COMMON_CFG, COMMON_AT, 0x40, None),
            ("notify", virtio_pci.CAP_NOTIFY_CFG, NOTIFY_AT, self._notify_size, NOTIFY_MULTIPLIER),
            ("isr", virtio_pci.CAP_ISR_CFG, ISR_AT, 1, None),
            ("device", virtio_pci.CAP_DEVICE_CFG, DEVICE_AT, self._transport.config_length, None),
        )
        return tuple(
            _capability(name, kind, self.index, at, length, multiplier)
            for name, kind, at, length, multiplier in rows
            if length
        )

    @staticmethod
    def notify_at(queue: int) -> int:
        """Where in the BAR a queue is notified."""
        return NOTIFY_AT + NOTIFY_MULTIPLIER * queue

    def read(self, offset: int, length: int) -> bytes:
        """Read; 0 where there is nothing."""
        structure, at = offset // _PAGE * _PAGE, offset % _PAGE
        if structure == COMMON_AT:
            return self._common.read(at, length)
        if structure == ISR_AT and at == 0:
            return self._transport.read_isr().to_bytes(length, "little")
        if structure == DEVICE_AT:
            return self._transport.read_config(at, length)
        return bytes(length)

    def write(self, offset: int, data: bytes, *, frozen: bool) -> None:
        """Write. In Freeze nothing is taken (DEV-25), during a device reset notifications only."""
        structure, at = offset // _PAGE * _PAGE, offset % _PAGE
        if frozen:
            return
        if structure == NOTIFY_AT:
            index, rest = divmod(at, NOTIFY_MULTIPLIER)
            if not rest:
                self._transport.kick(index, data)
        elif structure == LEGACY_NOTIFY_AT:
            if self._legacy_notify is not None and at == 0:
                self._legacy_notify(data)
        elif self._transport.resetting:
            return
        elif structure == COMMON_AT:
            self._common.write(at, data)
        elif structure == DEVICE_AT:
            self._transport.device.write_config(at, data)
