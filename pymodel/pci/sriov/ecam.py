"""Gives VFs in a guest the BARs that the PF's SR-IOV capability has for them, as firmware might have done.

ECAM is memory to a PCI function, so the PF reaches the configuration space of its VFs by posted writes, once
it knows the number of its bus. It asks by writing each number to where a register of its own would be if that
were its bus: the one that comes back is.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

from pymodel.pci.dma import Dma
from pymodel.pci.sriov.mcfg import McfgSearch
from pymodel.registers import Register
from pymodel.spec import pci

AT: Final = 0xFF0
"""Where the capability is: far behind those of other devices, whose registers are written too."""

_BUS: Final = pci.VSEC_HEADER_SIZE

_PAUSE_SECONDS: Final = 0.001
"""Between two steps of a search, in which the client is served."""


@dataclass(frozen=True, slots=True)
class WantedBar:
    """The address that BAR `bar` of the function `devfn` on the PF's bus is to have."""

    devfn: int
    bar: int
    address: int


class Asker(Protocol):
    """What is needed of the PF (`PhysicalFunction`)."""

    log: logging.Logger
    memory: Dma

    def post_write(self, address: int, data: bytes) -> None: ...
    def after(self, seconds: float, call: Callable[[], None]) -> None: ...


class Ecam:
    """A vendor-specific extended capability with one register, the number of the PF's bus.

    `address` is ECAM's for bus 0; None to find it in the guest's memory.
    """

    id = pci.EXT_CAP_ID_VENDOR
    name = "ecam"
    size = _BUS + 4
    registers = (
        Register("vsec", 4, 4, pci.VSEC_ID | pci.VSEC_REVISION << 16 | size << 20),
        Register("bus", _BUS, 4),
    )

    def __init__(self, address: int | None, pf: Asker) -> None:
        self._given = address
        self._pf = pf
        self.reset()

    def reset(self) -> None:
        """A machine that begins anew may have ECAM elsewhere."""
        self._address = self._given
        self._search: McfgSearch | None = None
        self._wanted: Sequence[WantedBar] = ()

    def prepare(self) -> None:
        """The function may use the guest's memory: look for ECAM, so that it is known in time."""
        if self._address is None and self._search is None:
            self._search = McfgSearch(self._pf.memory)
            self._pf.after(_PAUSE_SECONDS, self._look)

    def program(self, wanted: Sequence[WantedBar]) -> None:
        """Have BARs at these addresses. Returns at once; where that fails, nothing happens."""
        self._wanted = wanted
        if self._address is None:
            self.prepare()
        else:
            self._ask(self._address)

    def _look(self) -> None:
        search = self._search
        if search is None:
            return
        search.step()
        if not search.done:
            self._pf.after(_PAUSE_SECONDS, self._look)
            return
        self._search = None
        self._address = search.base
        if self._address is not None:
            self._pf.log.info("ECAM is at %#x, as the guest's table MCFG says", self._address)
            if self._wanted:
                self._ask(self._address)
        elif search.found:
            bases = ", ".join(f"{base:#x}" for base in sorted(search.found))
            self._pf.log.warning("the guest's tables MCFG say different things, ECAM is at %s", bases)
        elif self._wanted:
            self._pf.log.warning("the guest's memory has no table MCFG: where ECAM is, is not known")

    def _ask(self, address: int) -> None:
        if not self._is_free(address):
            self._wanted = ()
            return
        for bus in range(1, 256):
            self._pf.post_write(address + (bus << pci.ECAM_BUS_SHIFT) + AT + _BUS, bus.to_bytes(4, "little"))

    def _is_free(self, address: int) -> bool:
        """Whether ECAM may be there. Not where the guest has memory, which nothing may write to."""
        if self._pf.memory.is_mapped(address, pci.ECAM_SIZE):
            self._pf.log.warning("%#x, where ECAM should be, is memory: nothing is programmed", address)
            return False
        return True

    def write_bus(self, bus: int) -> None:
        """The answer. Nothing is done where nobody asked."""
        wanted, self._wanted = self._wanted, ()
        if not wanted or self._address is None or not 0 < bus < 256 or not self._is_free(self._address):
            return
        for each in wanted:
            function = bus << pci.ECAM_BUS_SHIFT | each.devfn << pci.ECAM_FUNCTION_SHIFT
            register = self._address + function + pci.BAR_FIRST + 4 * each.bar
            self._pf.post_write(register, (each.address & 0xFFFFFFFF).to_bytes(4, "little"))
            self._pf.post_write(register + 4, (each.address >> 32).to_bytes(4, "little"))
