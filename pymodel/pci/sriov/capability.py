"""The extended capabilities of a physical function: SR-IOV and ARI. Sections are those of PCI Express 6.0."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partialmethod
from typing import Final, Protocol

from pymodel.registers import Register
from pymodel.spec import pci

_FIELDS = pci.SRIOV.fields
assert _FIELDS is not None

_VF_BARS: Final = 6
_FUNCTIONS: Final = 8
"""Of a device."""
_DEVICES: Final = 32
"""Of a bus."""
_ADDRESS_MASK: Final = (1 << 64) - 1
_BAR_FLAGS: Final = pci.BAR_MEMORY_64 | pci.BAR_PREFETCH


@dataclass(frozen=True, slots=True)
class Routing:
    """Where the first VF is from its PF, and each from the one before it: in Routing IDs (9.2.1.2)."""

    first_vf_offset: int
    vf_stride: int

    def __call__(self, devfn: int, number: int) -> int:
        """Device and function number of VF `number`, from 1 on, of the PF at `devfn` of the same bus."""
        return devfn + self.first_vf_offset + (number - 1) * self.vf_stride


OWNER_ROUTING: Final = Routing(1, 1)


def guest_routing(total_vfs: int) -> Routing:
    """Where a guest has VFs: on the bus of the PF, which is at device 0, from device 1 on.

    Each is a device of its own while there are devices, so that none needs one at function 0 of its device.
    """
    return Routing(_FUNCTIONS, _FUNCTIONS if total_vfs < _DEVICES else 1)


class Seats(Protocol):
    """Where VFs are to be before they exist, as their client has it (`VfSlots`)."""

    @property
    def attached(self) -> int:
        """How many VFs, from the first on, have a client."""
        ...

    def base(self, bar: int, aperture: int) -> int | None:
        """The address of the first VF's BAR, where those of all that are attached follow each other."""
        ...


def _register(name: str, reset: int = 0, part: int = 0, width: int = 0) -> Register:
    dtype, offset = _FIELDS[name][:2]  # type: ignore[index]
    width = width or dtype.itemsize
    label = name if width == dtype.itemsize else f"{name}{part}"
    return Register(label, offset + part * width, width, reset)


class AriCapability:
    """Alternative Routing-ID Interpretation: the only function of its device, so nothing follows it."""

    id = pci.EXT_CAP_ID_ARI
    name = "ari"
    size = pci.ARI_SIZE
    registers = (Register("capability", 4, 2), Register("control", 6, 2))


class SriovCapability:
    """Single Root I/O Virtualization (9.3.3). `changed` is called when enabled VFs or their memory may have
    changed.

    `enabled_vfs` is NumVFs while VF Enable is set, else 0. VF migration is not capable: the admin queue
    does it. `bars` are sizes by the first register of each. With `seats` TotalVFs is what is attached there,
    and VF BARs are preset by it.
    """

    id = pci.EXT_CAP_ID_SRIOV
    name = "sriov"
    size = pci.SRIOV.itemsize

    def __init__(
        self,
        total_vfs: int,
        power_on_vfs: int,
        device_id: int,
        bars: Mapping[int, int],
        changed: Callable[[], None],
        *,
        routing: Routing = OWNER_ROUTING,
        seats: Seats | None = None,
    ) -> None:
        self._most_vfs = total_vfs
        self._power_on_vfs = power_on_vfs
        self._bars = bars
        self._changed = changed
        self._seats = seats
        self.registers = (
            _register("capabilities", pci.SRIOV_CAP_ARI_PRESERVED),
            _register("control"),
            _register("status"),
            _register("initial_vfs"),
            _register("total_vfs"),
            _register("num_vfs"),
            _register("function_dependency_link"),
            _register("first_vf_offset", routing.first_vf_offset),
            _register("vf_stride", routing.vf_stride),
            _register("vf_device_id", device_id),
            _register("supported_page_sizes", pci.SRIOV_SUPPORTED_PAGE_SIZES),
            _register("system_page_size"),
            *(_register("vf_bar", part=part, width=4) for part in range(_VF_BARS)),
            _register("vf_migration_state_array"),
        )
        self.power_on()

    def power_on(self) -> None:
        """The configured VFs enabled, their memory space too (A-30)."""
        self._reset(self._power_on_vfs)

    def reset(self) -> None:
        """What a function-level reset leaves: no VFs."""
        self._reset(0)

    def _reset(self, vfs: int) -> None:
        self._total_vfs = 0
        self._num_vfs = vfs
        self._control = pci.SRIOV_CONTROL_VF_ENABLE | pci.SRIOV_CONTROL_VF_MSE if vfs else 0
        self._page_size = 1
        self._addresses = dict.fromkeys(self._bars, 0)

    @property
    def vf_enable(self) -> bool:
        """VF Enable (9.3.3.3.1)."""
        return bool(self._control & pci.SRIOV_CONTROL_VF_ENABLE)

    @property
    def vf_memory(self) -> bool:
        """VF Memory Space Enable (9.3.3.3.4): while it is clear, accesses to VF BARs do nothing."""
        return bool(self._control & pci.SRIOV_CONTROL_VF_MSE)

    @property
    def enabled_vfs(self) -> int:
        """How many VFs there are."""
        return self._num_vfs if self.vf_enable else 0

    def aperture(self, bar: int) -> int:
        """Bytes from a VF's BAR to that of the next: its size, and a system page at least (9.3.3.13)."""
        return max(self._bars[bar], self._page_size << pci.SRIOV_PAGE_SHIFT)

    def vf_bars(self, bar: int, vfs: int) -> list[int]:
        """The addresses of a BAR of the first `vfs` VFs, as the capability has them (9.3.3.14)."""
        first, aperture = self._address(bar), self.aperture(bar)
        return [(first + number * aperture) & _ADDRESS_MASK for number in range(vfs)]

    def _address(self, bar: int) -> int:
        """A VF BAR; with seats one that is 0 is where the VFs' own BARs are."""
        aperture = self.aperture(bar)
        written = self._addresses[bar] & -aperture
        if written or self._seats is None:
            return written
        return self._seats.base(bar, aperture) or 0

    # -- registers ----------------------------------------------------------------------------------------

    def read_total_vfs(self) -> int:
        """TotalVFs (9.3.3.6). With seats: those that are attached; until a reset of the PF it only grows."""
        if self._seats is None:
            return self._most_vfs
        self._total_vfs = max(self._total_vfs, self._seats.attached)
        return self._total_vfs

    def read_initial_vfs(self) -> int:
        """InitialVFs (9.3.3.5) is TotalVFs where VF migration is not capable."""
        return self.read_total_vfs()

    def read_control(self) -> int:
        return self._control

    def write_control(self, value: int) -> None:
        """VF Enable, VF MSE and ARI Capable Hierarchy; the migration bits stay 0."""
        self._control = value & (
            pci.SRIOV_CONTROL_VF_ENABLE | pci.SRIOV_CONTROL_VF_MSE | pci.SRIOV_CONTROL_ARI
        )
        self._changed()

    def read_num_vfs(self) -> int:
        return self._num_vfs

    def write_num_vfs(self, value: int) -> None:
        """NumVFs (9.3.3.7), up to TotalVFs, while VF Enable is clear."""
        if not self.vf_enable and value <= self.read_total_vfs():
            self._num_vfs = value

    def read_system_page_size(self) -> int:
        return self._page_size

    def write_system_page_size(self, value: int) -> None:
        """System Page Size (9.3.3.13): one of those that are supported, while VF Enable is clear."""
        if not self.vf_enable and value.bit_count() == 1 and value & pci.SRIOV_SUPPORTED_PAGE_SIZES:
            self._page_size = value

    def _read_vf_bar(self, part: int) -> int:
        """One half of a VF BAR (9.3.3.14)."""
        bar, high = part & ~1, part & 1
        if bar not in self._bars:
            return 0
        address = self._address(bar)
        return address >> 32 if high else address & 0xFFFFFFFF | _BAR_FLAGS

    def _write_vf_bar(self, part: int, value: int) -> None:
        """One half of the address of the first VF's BAR."""
        bar, shift = part & ~1, 32 * (part & 1)
        if bar in self._bars:
            self._addresses[bar] = self._address(bar) & ~(0xFFFFFFFF << shift) | value << shift
            self._changed()


for _part in range(_VF_BARS):
    setattr(SriovCapability, f"read_vf_bar{_part}", partialmethod(SriovCapability._read_vf_bar, _part))  # noqa: SLF001 - still its class
    setattr(SriovCapability, f"write_vf_bar{_part}", partialmethod(SriovCapability._write_vf_bar, _part))  # noqa: SLF001
