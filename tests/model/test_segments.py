"""Scatter-gather lists: what is looked up is what is touched."""

from __future__ import annotations

import numpy as np
import pytest

from pymodel.errors import MemoryFault
from pymodel.memory import Bytes, Segments
from tests.model.fakes import FakeMemory


class Watched(FakeMemory):
    """Notes how much was looked up for writing, as a write record does."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.marked = 0

    def view(self, address: int, length: int, *, write: bool) -> list[Bytes]:
        self.marked += length if write else 0
        return super().view(address, length, write=write)


def test_a_write_marks_what_it_writes() -> None:
    """A serial number into 4 GiB of room is 20 bytes, not a million dirty pages."""
    memory = Watched(1 << 16)
    target = Segments(memory, [(0, 1 << 16)] * 100)
    assert target.write(8, [np.ones(12, np.uint8), np.ones(8, np.uint8)]) == 20
    assert memory.marked == 20


def test_a_write_cut_short_writes_what_fits() -> None:
    memory = Watched(1 << 12)
    target = Segments(memory, [(0, 3), (100, 0), (200, 4)])
    assert target.write(1, [np.full(4, 7, np.uint8), np.full(4, 8, np.uint8)]) == 6
    assert memory.data[:3].tolist() == [0, 7, 7]
    assert memory.data[200:205].tolist() == [7, 7, 8, 8, 0]
    assert target.write(9, [np.ones(1, np.uint8)]) == 0


def test_a_probe_finds_the_hole_behind_what_would_be_written() -> None:
    memory = Watched(1 << 12)
    Segments(memory, [(0, 16), (1 << 12, 0)]).probe(write=True)
    with pytest.raises(MemoryFault):
        Segments(memory, [(0, 16), (1 << 12, 1)]).probe(write=True)
