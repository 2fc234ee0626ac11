"""The extended capabilities of a physical function: SR-IOV and ARI."""

from __future__ import annotations

from collections.abc import Callable

from pymodel.pci.config_space import bar_masks
from pymodel.registers import Register
from pymodel.spec import pci

_FIELDS = pci.SRIOV.fields
assert _FIELDS is not None


def _register(name: str, reset: int = 0, writable: int = 0, part: int = 0, width: int = 0) -> Register:
    dtype, offset = _FIELDS[name][:2]  # type: ignore[index]
    width = width or dtype.itemsize
    label = name if width == dtype.itemsize else f"{name}{part}"
    return Register(label, offset + part * width, width, reset, writable)


class AriCapability:
    """Alternative Routing-ID Interpretation: the only function of its device, so nothing follows it."""

    id = pci.EXT_CAP_ID_ARI
    name = "ari"
    size = pci.ARI_SIZE
    registers = (Register("capability", 4, 2), Register("control", 6, 2))


class SriovCapability:
    """Single Root I/O Virtualization. `changed` is called when the set of enabled VFs may have changed.

    `enabled_vfs` is NumVFs while VF Enable is set, else 0. VF migration is not capable: the admin queue
    does it.
    """

    id = pci.EXT_CAP_ID_SRIOV
    name = "sriov"
    size = pci.SRIOV.itemsize

    def __init__(
        self,
        total_vfs: int,
        power_on_vfs: int,
        device_id: int,
        bars: dict[int, int],
        changed: Callable[[], None],
    ) -> None:
        self.total_vfs = total_vfs
        self._power_on_vfs = power_on_vfs
        self._changed = changed
        registers = [
            _register("capabilities", pci.SRIOV_CAP_ARI_PRESERVED),
            _register("control"),
            _register("status"),
            _register("initial_vfs", total_vfs),
            _register("total_vfs", total_vfs),
            _register("num_vfs"),
            _register("function_dependency_link"),
            _register("first_vf_offset", 1),
            _register("vf_stride", 1),
            _register("vf_device_id", device_id),
            _register("supported_page_sizes", pci.SRIOV_SUPPORTED_PAGE_SIZES),
            _register("system_page_size", 1, pci.SRIOV_SUPPORTED_PAGE_SIZES),
            _register("vf_migration_state_array"),
        ]
        for index, size in bars.items():
            low, high = bar_masks(size)
            registers.append(_register("vf_bar", pci.BAR_MEMORY_64 | pci.BAR_PREFETCH, low, index, 4))
            registers.append(_register("vf_bar", 0, high, index + 1, 4))
        self.registers = tuple(registers)
        self._control = 0
        self._num_vfs = 0
        self.power_on()

    def power_on(self) -> None:
        """The configured VFs enabled, their memory space too (A-30)."""
        self._num_vfs = self._power_on_vfs
        self._control = pci.SRIOV_CONTROL_VF_ENABLE | pci.SRIOV_CONTROL_VF_MSE if self._power_on_vfs else 0

    def reset(self) -> None:
        """What a function-level reset leaves: no VFs."""
        self._num_vfs = 0
        self._control = 0

    @property
    def vf_enable(self) -> bool:
        """VF Enable."""
        return bool(self._control & pci.SRIOV_CONTROL_VF_ENABLE)

    @property
    def vf_memory(self) -> bool:
        """VF Memory Space Enable: while it is clear, accesses to VF BARs do nothing."""
        return bool(self._control & pci.SRIOV_CONTROL_VF_MSE)

    @property
    def enabled_vfs(self) -> int:
        """How many VFs there are."""
        return self._num_vfs if self.vf_enable else 0

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
        """NumVFs, up to TotalVFs, while VF Enable is clear."""
        if not self.vf_enable and value <= self.total_vfs:
            self._num_vfs = value
