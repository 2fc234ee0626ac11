"""The gate: whether a function may start PCI transactions, and all that this depends on."""

from __future__ import annotations

from pymodel.memory import GuestMemory
from pymodel.migration.member import Member
from pymodel.pci.dma import Dma
from pymodel.pci.power import D0, PowerManagement
from pymodel.spec import context, pci


class Gate:
    """Open in mode Active and D0, with Bus Master Enable, while no reset or change of power is under way.

    `memory` is what the function reaches through it: see `Dma`. The function sets `client`, the memory of the
    client that is attached, `command`, the Command register, and the marks of what is under way, and calls
    `refresh` after each change, also of the mode and the power state.
    """

    def __init__(self, power: PowerManagement, member: Member | None) -> None:
        self._power = power
        self._member = member
        self.memory = Dma(member.record if member else None)
        self.client: GuestMemory | None = None
        self.command = 0
        # Each is another object for each operation, so that one that was overtaken does not end the next.
        self.flr: object | None = None
        self.power_change: object | None = None

    def reset(self) -> None:
        """As after a function-level reset; the client stays."""
        self.flr = None
        self.power_change = None
        self.command = 0

    def refresh(self) -> None:
        """Open or close, as everything that it depends on says now."""
        is_open = self.bus_master and self.may_signal and self.power_change is None
        self.memory.target = self.client if is_open else None

    @property
    def mode(self) -> int:
        """The member's mode; a PF is Active."""
        return self._member.mode if self._member else context.MODE_ACTIVE

    @property
    def frozen(self) -> bool:
        """Whether the context is not to change (DEV-20)."""
        return self.mode == context.MODE_FREEZE

    @property
    def may_signal(self) -> bool:
        """Whether interrupts may be sent by any means: mode Active, D0, no reset under way."""
        return self.mode == context.MODE_ACTIVE and self._power.state == D0 and self.flr is None

    @property
    def bus_master(self) -> bool:
        """Bus Master Enable, which MSI-X messages need too."""
        return bool(self.command & pci.COMMAND_MASTER)

    @property
    def intx_disabled(self) -> bool:
        """INTx Disable."""
        return bool(self.command & pci.COMMAND_INTX_DISABLE)

    @property
    def may_access(self) -> bool:
        """Whether the function may start a PCI transaction: the gate is open, and a client is there."""
        return self.memory.target is not None

    @property
    def may_fetch(self) -> bool:
        """Whether buffers may be taken: not while a change of mode waits for those outstanding (DEV-14)."""
        return self.may_access and (self._member is None or self._member.active)
