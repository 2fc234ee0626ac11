"""A virtio driver's access to one function over PCI: find its structures, initialize it, set queues up."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from typing import Self

from pymodel.spec import pci, virtio, virtio_pci
from vfu_client.vfio import protocol
from vfu_client.vfio.connection import DEFAULT_TIMEOUT, Connection
from vfu_client.vfio.interrupt import Interrupt
from vfu_client.vfio.memory import GuestMemory
from vfu_client.vfio.msix import Msix
from vfu_client.vfio.pci import PciFunction
from vfu_client.virtio.driver_queue import DriverQueue
from vfu_client.virtio.packed import PackedQueue
from vfu_client.virtio.split import SplitQueue
from vfu_client.virtio.structures import VirtioStructures

# Feature bits of no device type that this driver can do.
KNOWN_FEATURES = frozenset(
    {
        virtio.F_INDIRECT_DESC,
        virtio.F_EVENT_IDX,
        virtio.F_VERSION_1,
        virtio.F_ACCESS_PLATFORM,
        virtio.F_RING_PACKED,
        virtio.F_IN_ORDER,
        virtio.F_ORDER_PLATFORM,
        virtio.F_NOTIFICATION_DATA,
        virtio.F_NOTIF_CONFIG_DATA,
        virtio.F_RING_RESET,
    }
)
MEMORY_SIZE = 16 << 20
# How often a register is read again that says when the device is done: virtio has no interrupt for it.
STATUS_PERIOD = 0.001


class NegotiationError(Exception):
    """The device lacks a feature that the driver needs, refused the ones that it took, or is not there."""


NOTHING = 0xFF
"""What a device status reads as where nothing answers."""


class IntxLine(Interrupt):
    """The function's interrupt pin: waiting reads the ISR status, which lowers the line."""

    def __init__(self, device: VirtioPci) -> None:
        super().__init__(device.connection)
        self._device = device
        self.last_isr = 0

    def wait(self, timeout: float) -> int:
        """As `Interrupt.wait`; what the ISR status said is in `last_isr`."""
        count = super().wait(timeout)
        self.last_isr = self._device.isr_read()
        self._device.connection.unmask_irqs(protocol.IRQ_INTX, 0, 1)
        return count


class VirtioPci(VirtioStructures):
    """One virtio function, found by its capabilities. Raises `CapabilityMissingError` where one is missing.

    `open` makes connection and memory too; then `close` ends both, otherwise they are the caller's.
    """

    def __init__(self, connection: Connection, memory: GuestMemory) -> None:
        super().__init__(PciFunction(connection))
        self.connection = connection
        self.memory = memory
        notify = self.structures[virtio_pci.CAP_NOTIFY_CFG]
        self.notify_multiplier = self.function.config_read(
            notify.capability + virtio_pci.CAP_NOTIFY_MULTIPLIER, 4
        )
        self.device_type = self.function.header("device_id") - virtio_pci.DEVICE_ID_BASE
        self.features = 0
        self.queues: dict[int, DriverQueue] = {}
        self.msix: Msix | None = None
        self.intx: IntxLine | None = None
        self._notify_offsets: dict[int, int] = {}
        self._notify_values: dict[int, int] = {}
        self._owned = False

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        memory: GuestMemory | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        negotiation_timeout: float | None = None,
        posted_writes: bool = False,
    ) -> Self:
        """Connect to a function; without `memory` the driver gets some of its own."""
        connection = Connection(
            path, timeout=timeout, negotiation_timeout=negotiation_timeout, posted_writes=posted_writes
        )
        try:
            own = memory is None
            if memory is None:
                memory = GuestMemory()
                memory.add_region(MEMORY_SIZE)
            memory.attach(connection)
            device = cls(connection, memory)
            device._owned = own
        except BaseException:
            connection.close()
            raise
        return device

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Hang up, and free what this driver made. The device is not reset first: hanging up does it."""
        self.connection.close()
        self.memory.detach(self.connection)
        if self.msix is not None:
            self.msix.close()
        if self.intx is not None:
            self.intx.close()
        if self._owned:
            self.memory.close()

    # Status.

    @property
    def status(self) -> int:
        """The device status byte."""
        return self.common.read("device_status")

    def add_status(self, bits: int) -> None:
        """Set bits of the device status, and leave the others."""
        self.common.write("device_status", self.status | bits)

    def reset(self, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Reset the device and wait until the status reads 0; raises `TimeoutError`. Queues are forgotten.

        Raises `NegotiationError` where no device answers.
        """
        self.common.write("device_status", 0)
        deadline = time.monotonic() + timeout
        while status := self.status:
            if status == NOTHING:
                raise NegotiationError(
                    "no device answers: of a VF, VF Enable or VF Memory Space Enable may be off,"
                    " or it is not in D0"
                )
            if time.monotonic() > deadline:
                raise TimeoutError(f"device status still {self.status:#x} after {timeout:.3g} s")
            time.sleep(STATUS_PERIOD)
        for index in list(self.queues):
            self.queues.pop(index).free()
        self.features = 0

    def initialize(
        self,
        *,
        wanted: Iterable[int] = KNOWN_FEATURES,
        required: Iterable[int] = (virtio.F_VERSION_1,),
        use_msix: bool = True,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> None:
        """Everything up to FEATURES_OK: interrupts, bus master, reset, features. Queues come next.

        Raises `NegotiationError`; the device then has status FAILED.
        Source: virtio 1.4, "Driver Requirements: Device Initialization".
        """
        self.function.set_command(pci.COMMAND_MEMORY | pci.COMMAND_MASTER)
        self.reset(timeout)
        self.enable_interrupts(use_msix)
        self.add_status(virtio.STATUS_ACKNOWLEDGE)
        self.add_status(virtio.STATUS_DRIVER)
        offered = self.common.features()
        needed = _mask(required)
        self.features = offered & (_mask(wanted) | needed)
        if needed & ~offered:
            self.add_status(virtio.STATUS_FAILED)
            raise NegotiationError(f"feature bits {_bits(needed & ~offered)} are not offered")
        self.common.accept(self.features)
        self.add_status(virtio.STATUS_FEATURES_OK)
        if not self.status & virtio.STATUS_FEATURES_OK:
            self.add_status(virtio.STATUS_FAILED)
            raise NegotiationError(f"the device refused feature bits {_bits(self.features)}")
        if use_msix:
            self.common.write("config_msix_vector", 0)
            if self.common.read("config_msix_vector") != 0:
                self.add_status(virtio.STATUS_FAILED)
                raise NegotiationError("the device refused vector 0 for its configuration")

    def enable_interrupts(self, use_msix: bool = True) -> None:
        """Switch MSI-X on with a vector for the configuration and for each queue, or off and the pin on."""
        if use_msix:
            if self.msix is None:
                self.msix = Msix(self.function)
            queues = self.common.read("num_queues")
            if self.common.has("admin_queue_num"):
                queues += self.common.read("admin_queue_num")
            self.msix.enable(1 + queues)
            return
        if self.msix is not None:
            self.msix.disable()
        if self.intx is None:
            self.intx = IntxLine(self)
        self.connection.set_eventfds(protocol.IRQ_INTX, 0, [self.intx.fileno()])
        self.function.clear_command(pci.COMMAND_INTX_DISABLE)

    def driver_ok(self) -> None:
        """Let the device run."""
        self.add_status(virtio.STATUS_DRIVER_OK)

    def negotiated(self, bit: int) -> bool:
        """Whether a feature was taken."""
        return bool(self.features >> bit & 1)

    # Queues.

    def setup_queue(
        self, index: int, *, size: int | None = None, vector: int | None = None, enable: bool = True
    ) -> DriverQueue:
        """Make a queue in the format that was negotiated, and enable it; of the device's own size unless a
        smaller one is asked for.

        The vector is index + 1 as far as there are so many, otherwise the last one. Raises `LookupError`
        for a queue that does not exist, `NegotiationError` where the device refuses the vector.
        """
        self.common.write("queue_select", index)
        largest = self.common.read("queue_size")
        if not largest:
            raise LookupError(f"queue {index} does not exist")
        size = largest if size is None else size
        self.common.write("queue_size", size)
        interrupt: Interrupt | None = self.intx
        if self.msix is not None and self.msix.interrupts:
            chosen = min(index + 1, len(self.msix.interrupts) - 1) if vector is None else vector
            self.common.write("queue_msix_vector", chosen)
            if self.common.read("queue_msix_vector") != chosen:
                raise NegotiationError(f"queue {index} refused vector {chosen}")
            interrupt = None if chosen == virtio_pci.NO_VECTOR else self.msix.interrupts[chosen]
        kind = PackedQueue if self.negotiated(virtio.F_RING_PACKED) else SplitQueue
        queue = kind(
            self.memory,
            index,
            size,
            notify=self.notify,
            interrupt=interrupt,
            event_idx=self.negotiated(virtio.F_EVENT_IDX),
            indirect=self.negotiated(virtio.F_INDIRECT_DESC),
            in_order=self.negotiated(virtio.F_IN_ORDER),
        )
        for name, part in zip(("queue_desc", "queue_driver", "queue_device"), queue.parts, strict=True):
            self.common.write(name, part.address)
        self._notify_offsets[index] = self.common.read("queue_notify_off") * self.notify_multiplier
        self._notify_values[index] = index
        if self.negotiated(virtio.F_NOTIF_CONFIG_DATA):
            self._notify_values[index] = self.common.read("queue_notif_config_data")
        if enable:
            self.common.write("queue_enable", 1)
        self.queues[index] = queue
        return queue

    def reset_queue(self, index: int, timeout: float = DEFAULT_TIMEOUT) -> None:
        """Reset one queue and forget it. Raises `TimeoutError`; needs RING_RESET.

        Source: virtio 1.4, "Virtqueue Reset".
        """
        self.common.write("queue_select", index)
        self.common.write("queue_reset", 1)
        deadline = time.monotonic() + timeout
        while self.common.read("queue_reset") or self.common.read("queue_enable"):
            if time.monotonic() > deadline:
                raise TimeoutError(f"queue {index} not reset within {timeout:.3g} s")
            time.sleep(STATUS_PERIOD)
        queue = self.queues.pop(index, None)
        if queue is not None:
            queue.free()

    def notify(self, index: int, position: int = 0) -> None:
        """Notify the device of a queue, in the form that was negotiated.

        `position` is where the next descriptor (packed) or chain (split) will be made available.
        """
        structure = self.structures[virtio_pci.CAP_NOTIFY_CFG]
        value, size = self._notify_values.get(index, index), 2
        if self.negotiated(virtio.F_NOTIFICATION_DATA):
            value, size = value | position << 16, 4
        offset = structure.offset + self._notify_offsets.get(index, 0)
        self.function.bar_write(structure.bar, offset, size, value)


def _mask(bits: Iterable[int]) -> int:
    mask = 0
    for bit in bits:
        mask |= 1 << bit
    return mask


def _bits(mask: int) -> list[int]:
    return [bit for bit in range(mask.bit_length()) if mask >> bit & 1]
