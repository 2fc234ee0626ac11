"""A function's interrupts: who is owed one, and whether it can be sent.

What is owed is kept where it arose (a queue, the transport) until it is sent. MSI-X messages are PCI
transactions, so they pass the function's gate; INTx does not need Bus Master Enable.
"""

from __future__ import annotations

from collections.abc import Callable

from pymodel.host import Host
from pymodel.pci.gate import Gate
from pymodel.pci.lane import ASK, NOBODY
from pymodel.pci.msix import MsiX
from pymodel.queue.virtqueue import Virtqueue
from pymodel.spec import virtio_pci
from pymodel.transport.transport import Transport
from pymodel.watcher import INTX, Watcher


class Interrupts:
    """Sends what a function owes by MSI-X or, where it has a pin and MSI-X is off, by INTx.

    `host` is who sends, None before a client came. `watcher` is told what was sent.
    """

    def __init__(self, transport: Transport, msix: MsiX, gate: Gate, *, has_intx: bool) -> None:
        self._transport = transport
        self._msix = msix
        self._gate = gate
        self._has_intx = has_intx
        self.host: Host | None = None
        self.watcher: Watcher | None = None
        self._sent = 0

    @property
    def sent(self) -> int:
        """Messages and assertions, ever."""
        return self._sent + sum(queue.interrupts for queue in self._transport.queues.values())

    def direct(self, queue: Virtqueue) -> int:
        """Where a queue's interrupt goes to as long as nothing changes: a vector, NOBODY or ASK (`lane`)."""
        gate = self._gate
        if self.host is None or not (gate.may_signal and gate.bus_master and self._msix.enabled):
            return ASK
        if queue.vector == virtio_pci.NO_VECTOR:
            return NOBODY
        return ASK if self._msix.masked(queue.vector) else queue.vector

    def _owed(self) -> dict[int, list[Callable[[], None]]]:
        """What is owed by vector, each with what settles it."""
        transport = self._transport
        owed: dict[int, list[Callable[[], None]]] = {}
        if transport.config_owed:
            owed.setdefault(transport.config_vector, []).append(transport.config_told)
        for queue in transport.queues.values():
            if queue.owed:
                owed.setdefault(queue.vector, []).append(queue.told)
        return owed

    def pending(self) -> set[int]:
        """The MSI-X vectors that are owed a message."""
        return self._owed().keys() - {virtio_pci.NO_VECTOR}

    def deliver(self) -> None:
        """Send what is owed, if the gate and the masks let it through; else it stays owed."""
        if not self._gate.may_signal or self.host is None:
            return
        if self._msix.enabled:
            self._send_messages(self.host)
            return
        transport = self._transport
        if transport.config_owed:
            transport.isr |= virtio_pci.ISR_CONFIG
            transport.config_told()
        for queue in transport.queues.values():
            if queue.owed:
                transport.isr |= virtio_pci.ISR_QUEUE
                queue.told()
        self.assert_intx()

    def _send_messages(self, host: Host) -> None:
        if not self._gate.bus_master:
            return
        if self._transport.config_owed:
            self._transport.isr |= virtio_pci.ISR_CONFIG
        for vector, settled in self._owed().items():
            if vector != virtio_pci.NO_VECTOR:
                if self._msix.masked(vector):
                    continue
                faults = self._transport.faults
                if faults is not None and faults.meets("drop-interrupt"):
                    for told in settled:
                        told()
                    continue
                host.msix(vector)
                if faults is not None and faults.meets("duplicate-interrupt"):
                    host.msix(vector)
                self._sent += 1
                if self.watcher is not None:
                    self.watcher.interrupt(vector)
            for told in settled:
                told()

    def assert_intx(self) -> None:
        """Signal INTx while its level is high. A client lowers it after each access by itself."""
        if self.intx_level and not self._gate.intx_disabled and self.host is not None:
            self.host.intx()
            self._sent += 1
            if self.watcher is not None:
                self.watcher.interrupt(INTX)

    @property
    def intx_level(self) -> bool:
        """Whether the function asserts INTx, masked or not: what Interrupt Status shows."""
        return self._has_intx and not self._msix.enabled and self._transport.isr != 0
