"""A function as legacy drivers know it; what they do comes as commands of the owner's admin queue."""

from __future__ import annotations

from typing import Final

import numpy as np

from pymodel.devices.device import Transitional
from pymodel.errors import InvalidField
from pymodel.pci.msix import MsiX
from pymodel.pci.power import D0, PowerManagement
from pymodel.pci.virtio_bar import LEGACY_NOTIFY_AT, LEGACY_VIRTIO_BAR
from pymodel.spec.virtio_pci import LEGACY_CFG, LEGACY_CFG_SIZE
from pymodel.transport.legacy import LegacyConfig
from pymodel.transport.transport import Transport


class LegacyInterface:
    """See `LegacyAccess`. Like a BAR it takes nothing in Freeze, and reads all ones where it is not in D0.

    `layout` is that of device configuration.
    """

    notify_address: Final = (LEGACY_VIRTIO_BAR, LEGACY_NOTIFY_AT)

    def __init__(
        self,
        transport: Transport,
        device: Transitional,
        layout: np.dtype[np.void],
        msix: MsiX,
        power: PowerManagement,
    ) -> None:
        self._transport = transport
        self._device = device
        self._layout = layout
        self._msix = msix
        self._power = power
        self._config = LegacyConfig(transport)

    def notify(self, data: bytes) -> None:
        """A write to `notify_address`."""
        self._config.notify(int.from_bytes(data[:2], "little"))

    def check_common(self, offset: int, length: int) -> None:
        """See `LegacyAccess`. The last two fields are there while MSI-X is enabled."""
        _check(LEGACY_CFG, offset, length)
        if offset >= LEGACY_CFG_SIZE and not self._msix.enabled:
            raise InvalidField(f"offset {offset}, and MSI-X is off")

    def check_device(self, offset: int, length: int) -> None:
        """See `LegacyAccess`."""
        _check(self._layout, offset, length)

    def read_common(self, offset: int, length: int) -> bytes:
        """See `LegacyAccess`."""
        return self._config.read(offset, length) if self._answers else b"\xff" * length

    def write_common(self, offset: int, data: bytes) -> None:
        """See `LegacyAccess`."""
        if self._takes:
            self._config.write(offset, data)

    def read_device(self, offset: int, length: int) -> bytes:
        """See `LegacyAccess`."""
        return self._transport.read_config(offset, length) if self._answers else b"\xff" * length

    def write_device(self, offset: int, data: bytes) -> None:
        """See `LegacyAccess`."""
        if self._takes:
            self._config.begin()
            self._device.write_legacy_config(offset, data)

    @property
    def _answers(self) -> bool:
        return self._power.state == D0

    @property
    def _takes(self) -> bool:
        return self._answers and not self._transport.bus.frozen


def _check(layout: np.dtype[np.void], offset: int, length: int) -> None:
    """Raise `InvalidField` for an access that is not inside of one field."""
    assert layout.fields is not None
    for kind, start, *_ in layout.fields.values():
        if start <= offset < offset + length <= start + kind.itemsize:
            return
    raise InvalidField(f"{length} bytes at {offset} are not inside of one field")
