"""What a function's accesses to guest memory pass: the gate, and the record of what it wrote."""

from __future__ import annotations

import pytest

from pymodel.errors import MemoryFault
from pymodel.memory import runs
from pymodel.migration.record import WriteRecord
from pymodel.pci.dma import Dma
from tests.model.fakes import FakeMemory

LIST = [(0x800, 0x1000), (0x1800, 0x100), (0x4000, 0), (0x9000, 0x3000)]


def test_neighbours_are_joined() -> None:
    assert runs(LIST, 0, 1 << 20) == [(0x800, 0x1100), (0x9000, 0x3000)]
    assert runs(LIST, 0x10FF, 2) == [(0x18FF, 1), (0x9000, 1)]
    assert runs(LIST, 0x1100, 0x3000) == [(0x9000, 0x3000)]
    assert runs(LIST, 0x4100, 1) == runs(LIST, 5, 0) == runs([], 0, 1) == []
    assert runs([(0, 4), (8, 4), (4, 4)], 1, 10) == [(1, 3), (8, 4), (4, 3)]


def test_views_of_a_list_are_recorded_where_they_are_for_writing() -> None:
    record = WriteRecord()
    dma = Dma(record)
    dma.target = FakeMemory(1 << 16)
    record.start()
    assert [len(view) for view in dma.views(LIST, 0x800, 0x1900, write=False)] == [0x900, 0x1000]
    assert record.take(9) == ([], 0)
    views = dma.views(LIST, 0x800, 0x1900, write=True)
    assert [len(view) for view in views] == [0x900, 0x1000]
    assert record.take(9) == ([(0x1000, 0x1000), (0x9000, 0x1000)], 0)
    record.stop()
    dma.views(LIST, 0, 1, write=True)
    record.start()
    assert record.take(9) == ([], 0)


def test_a_list_behind_a_closed_gate() -> None:
    with pytest.raises(MemoryFault, match="may not access"):
        Dma(None).views(LIST, 0, 1, write=False)
