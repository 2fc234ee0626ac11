"""Where a VF of a guest's own SR-IOV is: its client is attached from the start, the VF comes with VF Enable.

A guest's firmware and its client (QEMU) see a function there all the time. Before VF Enable it is a
placeholder: no driver knows it, and firmware gives its BARs addresses.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final

from pymodel.host import Host
from pymodel.pci.lane import Lane
from pymodel.pci.virtual_function import VirtualFunction
from pymodel.spec import pci

PLACEHOLDER: Final[Mapping[int, int]] = {
    # Bytes of configuration space: device 10ffh, which is no virtio device, of a class that says nothing.
    0x02: 0xFF,
    0x03: 0x10,
    0x09: 0x00,
    0x0A: 0x00,
    0x0B: 0xFF,
}

_BARS: Final = range(pci.BAR_FIRST, pci.BAR_END)


class VfSlot:
    """Serves what is at VF `number`: a VF while one is enabled, else a placeholder.

    `make_vf` makes a VF with the slot's `lock`, which is held in every call but `open` and `close`.
    """

    has_intx = False

    def __init__(
        self,
        number: int,
        lock: AbstractContextManager[Any],
        make_vf: Callable[[int, AbstractContextManager[Any]], VirtualFunction],
    ) -> None:
        self._number = number
        self._make_vf = make_vf
        self._host: Host | None = None
        self.lock = lock
        self.enabled = False
        """Whether the VF is there: VF Enable is set, and NumVFs counts it."""
        self.on_bars_moved: Callable[[], None] | None = None
        """Called after the client moved a BAR, with this function's lock held: it may only wake another."""
        self.vf = make_vf(number, lock)
        """The VF, or the one that comes next."""
        self.name = self.vf.name
        self.bars = self.vf.bars
        self.msix_vectors = self.vf.msix_vectors
        self._forget_bars()

    # -- VF Enable ---------------------------------------------------------------------------------------

    def open(self) -> VirtualFunction:
        """VF Enable was set: the VF, in reset state, but for what its client was told of its BARs.

        In hardware a VF has no Memory Space Enable of its own. QEMU has, and maps BARs by it: were it clear,
        a guest would have them unmapped and mapped again, which takes QEMU a third of the time for a VF.
        """
        with self.lock:
            self.vf.enable()
            if self._memory_space:
                self.vf.config_write(pci.COMMAND, pci.COMMAND_MEMORY.to_bytes(2, "little"))
            self.enabled = True
        return self.vf

    def close(self) -> None:
        """VF Enable was cleared: the VF is gone. Its client stays."""
        with self.lock:
            self.enabled = False
            self.vf.remove()
            self.vf = self._make_vf(self._number, self.lock)
            if self._host is not None:
                self.vf.connect(self._host)

    # -- what its client was told of its BARs --------------------------------------------------------------

    def bar_address(self, bar: int) -> int:
        """Where the client was told to have a BAR. It keeps that whatever resets the function."""
        return self._bars[bar] & ~pci.BAR_FLAGS & -self.bars[bar]

    def _forget_bars(self) -> None:
        self._bars = dict.fromkeys(self.bars, 0)
        self._memory_space = False

    def _note_bars(self, offset: int, data: bytes) -> None:
        if offset <= pci.COMMAND < offset + len(data):
            self._memory_space = bool(data[pci.COMMAND - offset] & pci.COMMAND_MEMORY)
        if offset >= _BARS.stop or offset + len(data) <= _BARS.start:
            return
        for at, byte in enumerate(data, offset):
            if at in _BARS:
                bar, shift = (at - _BARS.start) // 8 * 2, 8 * ((at - _BARS.start) % 8)
                if bar in self._bars:
                    self._bars[bar] = self._bars[bar] & ~(0xFF << shift) | byte << shift
        if self.on_bars_moved is not None:
            self.on_bars_moved()

    # -- what a function is to who serves it ---------------------------------------------------------------

    @property
    def attached(self) -> bool:
        """Whether a client is attached."""
        return self._host is not None

    def attach(self, host: Host) -> None:
        """A client came."""
        self._host = host
        self.vf.attach(host)

    def detach(self) -> None:
        """The client left. The VF stays, without one, until VF Enable is cleared."""
        self._host = None
        self._forget_bars()
        self.vf.detach()

    def config_read(self, offset: int, length: int) -> bytes:
        """Read configuration space: the VF's, or the placeholder's, which differs in what it is."""
        data = self.vf.config_read(offset, length)
        if self.enabled:
            return data
        return bytes(PLACEHOLDER.get(at, byte) for at, byte in enumerate(data, offset))

    def config_write(self, offset: int, data: bytes) -> None:
        """Write configuration space."""
        self._note_bars(offset, data)
        self.vf.config_write(offset, data)

    def bar_read(self, bar: int, offset: int, length: int) -> bytes:
        """Read a BAR; all ones where there is no VF."""
        return self.vf.bar_read(bar, offset, length) if self.enabled else b"\xff" * length

    def bar_write(self, bar: int, offset: int, data: bytes) -> None:
        """Write a BAR of a VF."""
        if self.enabled:
            self.vf.bar_write(bar, offset, data)

    def device_reset(self) -> None:
        """VFIO's DEVICE_RESET. QEMU maps no BAR after it."""
        self._memory_space = False
        self.vf.device_reset()

    @property
    def waits(self) -> Sequence[tuple[int, int]]:
        """See `Function`."""
        return self.vf.waits

    def service(self) -> None:
        """See `Function`."""
        self.vf.service()

    def lanes(self) -> list[Lane]:
        """See `Function`; none where there is no VF."""
        return self.vf.lanes() if self.enabled else []

    def go_on(self, queues: Iterable[int]) -> None:
        """See `Function`."""
        self.vf.go_on(queues)

    def work_unlocked(self) -> bool:
        """See `Function`."""
        return self.vf.work_unlocked()

    @property
    def watched(self) -> bool:
        """See `Function`."""
        return self.vf.watched

    def mapping_changed(self, address: int, length: int, *, there: bool, writable: bool) -> None:
        """See `Function`."""
        self.vf.mapping_changed(address, length, there=there, writable=writable)

    def memory_lost(self, reason: str) -> None:
        """See `Function`."""
        self.vf.memory_lost(reason)


class VfSlots:
    """The slots of all VFs that there can be, by VF number from 1 on: where SR-IOV's VFs are to be."""

    def __init__(self, slots: Sequence[VfSlot]) -> None:
        self.by_number = dict(enumerate(slots, 1))

    def on_bars_moved(self, call: Callable[[], None]) -> None:
        """Have `call` called wherever a client moves a BAR."""
        for slot in self.by_number.values():
            slot.on_bars_moved = call

    @property
    def attached(self) -> int:
        """How many have a client, from VF 1 on without a hole."""
        return next((n - 1 for n, slot in self.by_number.items() if not slot.attached), len(self.by_number))

    @property
    def has_hole(self) -> bool:
        """Whether a VF has a client and one before it has none."""
        return sum(slot.attached for slot in self.by_number.values()) > self.attached

    def base(self, bar: int, aperture: int) -> int | None:
        """The address of VF 1's BAR, if those of all that are attached are `aperture` apart; else None."""
        found = [self.by_number[number].bar_address(bar) for number in range(1, self.attached + 1)]
        follow = all(address == found[0] + n * aperture for n, address in enumerate(found))
        return found[0] if found and found[0] and follow else None
