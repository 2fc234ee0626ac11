"""Where the MSI-X table and the pending bits are, for every number of vectors."""

from __future__ import annotations

import pytest

from pymodel.pci.msix import MsiX


def test_whole_pages() -> None:
    """The table fills whole pages from 0 on; the pending bits begin behind it, inside the BAR."""
    for least in range(1, 2049):
        msix = MsiX(least, 2, lambda: None, set)
        _, table, pending = msix.registers
        assert least <= msix.vectors <= 2048
        assert 16 * msix.vectors % 4096 == 0
        assert table.reset == 2
        assert pending.reset == 16 * msix.vectors | 2
        assert 16 * msix.vectors + msix.vectors // 8 <= msix.bar_size
        assert msix.bar_size.bit_count() == 1


@pytest.mark.parametrize("least", [0, 2049])
def test_more_than_there_can_be(least: int) -> None:
    with pytest.raises(ValueError, match="MSI-X vectors"):
        MsiX(least, 2, lambda: None, set)
