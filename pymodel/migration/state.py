"""The captured state of a function: plain values, hostile on the way back.

The layers above fill it in `capture` and take it apart in `check` and `restore`; the device context and
other encodings are made from it. Nothing here changes when the function goes on: the buffers of `device`
are snapshots (a RAM disk copies on write).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from pymodel.memory import Bytes
from pymodel.spec import virtio


class Mark(NamedTuple):
    """A device's content at one time: its name, and the number by which the device finds what is newer.

    No two contents have one name, on whatever server; the name is empty where a device has no content.
    """

    name: bytes = b""
    epoch: int = 0


@dataclass(slots=True)
class QueueState:
    """One virtqueue: its common configuration, and the ring position of an enabled one.

    A split ring is at `last_avail_idx` and `used_idx`, a packed one at `last_avail` and `last_used`; each
    has the other format's at its start. `lost`: that of a split ring stands in its memory only, to be read
    when the function goes on.
    """

    index: int
    size: int = 0
    msix_vector: int = 0xFFFF
    enable: int = 0
    notify_off: int = 0
    notif_config_data: int = 0
    reset: int = 0
    desc: int = 0
    driver: int = 0
    device: int = 0
    last_avail_idx: int = 0
    used_idx: int = 0
    last_avail: int = 0x8000
    last_used: int = 0x8000
    interrupt_owed: bool = False
    lost: bool = False


@dataclass(slots=True)
class DeviceField:
    """A field of the device type's own range (0x0100 and up): its value as buffers, never joined."""

    type: int
    value: list[Bytes]

    @property
    def length(self) -> int:
        """Bytes of the value."""
        return sum(len(part) for part in self.value)


@dataclass(slots=True)
class FunctionState:
    """All that a device context says of one function."""

    virtio_id: int
    device_features: int
    driver_features: int
    device_feature_select: int
    driver_feature_select: int
    config_msix_vector: int
    num_queues: int
    queue_select: int
    device_status: int
    config_generation: int
    device_config: bytes
    queues: list[QueueState]
    isr: int = 0
    config_changed: bool = False
    content: bytes = b""
    """The name of the content that the device holds (`Mark`), empty where that is not known."""
    device: list[DeviceField] = field(default_factory=list)

    def copy(self) -> FunctionState:
        """Another one that can be changed; the values of device fields are shared."""
        return replace(self, queues=[replace(queue) for queue in self.queues], device=list(self.device))

    @property
    def legacy(self) -> bool:
        """Whether a legacy driver runs it: no other begins without FEATURES_OK."""
        begun = self.device_status & virtio.STATUS_DRIVER_OK or any(queue.enable for queue in self.queues)
        return bool(begun) and not self.device_status & virtio.STATUS_FEATURES_OK

    @property
    def packed(self) -> bool:
        """Whether the driver's rings are packed ones."""
        return bool(self.driver_features >> virtio.F_RING_PACKED & 1)
