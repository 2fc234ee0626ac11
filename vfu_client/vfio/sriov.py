"""SR-IOV from the PF driver's side: how many VFs there are, and switching them on and off."""

from __future__ import annotations

from pymodel.spec import pci
from vfu_client.vfio.pci import PciFunction, field_range


class SrIov:
    """The SR-IOV capability of a PF. Raises `CapabilityMissingError` where there is none."""

    def __init__(self, function: PciFunction) -> None:
        self._function = function
        self.offset = function.find_extended(pci.EXT_CAP_ID_SRIOV)

    def read(self, name: str) -> int:
        """A register, by its name in `pymodel.spec.pci.SRIOV`."""
        at, size = field_range(pci.SRIOV, name)
        return self._function.config_read(self.offset + at, size)

    def write(self, name: str, value: int) -> None:
        """Write a register, by its name in `pymodel.spec.pci.SRIOV`."""
        at, size = field_range(pci.SRIOV, name)
        self._function.config_write(self.offset + at, size, value)

    @property
    def enabled(self) -> int:
        """The number of VFs that exist now."""
        if not self.read("control") & pci.SRIOV_CONTROL_VF_ENABLE:
            return 0
        return self.read("num_vfs")

    def enable(self, count: int) -> None:
        """Have VFs 1 to `count`. Where another number exists, those are destroyed first.

        Raises `ValueError` for a count that the PF cannot have; nothing is changed then.
        """
        total = self.read("total_vfs")
        if not 1 <= count <= total:
            raise ValueError(f"{count} VFs asked for, the PF can have 1 to {total}")
        if self.enabled == count:
            return
        self.disable()
        self.write("num_vfs", count)
        on = pci.SRIOV_CONTROL_VF_ENABLE | pci.SRIOV_CONTROL_VF_MSE
        self.write("control", self.read("control") | on)

    def disable(self) -> None:
        """Have no VFs."""
        on = pci.SRIOV_CONTROL_VF_ENABLE | pci.SRIOV_CONTROL_VF_MSE
        self.write("control", self.read("control") & ~on)
