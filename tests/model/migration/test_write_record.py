"""Which guest pages a member wrote."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from pymodel.migration.record import WriteRecord


def test_pages_are_merged_into_runs() -> None:
    record = WriteRecord()
    record.start()
    record.add(0x5FFF, 2)
    record.add(0x1000, 1)
    record.add(0x2FFF, 1)
    record.add(0x9000, 0)
    assert record.take(10) == ([(0x1000, 0x2000), (0x5000, 0x2000)], 0)
    assert record.take(10) == ([], 0)


def test_what_does_not_fit_stays() -> None:
    record = WriteRecord()
    record.start()
    for page in (1, 3, 4, 9):
        record.add(page << 12, 4096)
    assert record.take(0) == ([], 3)
    assert record.take(2) == ([(0x1000, 0x1000), (0x3000, 0x2000)], 1)
    record.add(0x1000, 1)
    assert record.take(2) == ([(0x1000, 0x1000), (0x9000, 0x1000)], 0)


def test_start_and_stop_forget() -> None:
    record = WriteRecord()
    assert not record.active
    record.start()
    record.add(0, 1)
    record.start()
    assert record.take(1) == ([], 0)
    record.add(0, 1)
    record.stop()
    assert (record.active, record.take(1)) == (False, ([], 0))


def test_addresses_at_the_top() -> None:
    record = WriteRecord()
    record.start()
    record.add((1 << 64) - 4096, 4096)
    assert record.take(1) == ([((1 << 64) - 4096, 4096)], 0)


@given(
    st.lists(st.tuples(st.integers(0, 1 << 20), st.integers(0, 20000)), max_size=20),
    st.lists(st.integers(0, 4), max_size=10),
)
def test_every_written_page_is_given_once(writes: list[tuple[int, int]], limits: list[int]) -> None:
    record = WriteRecord()
    record.start()
    expected = set()
    for address, length in writes:
        record.add(address, length)
        expected |= {byte >> 12 for byte in range(address, address + length)}
    given_pages: list[int] = []
    for limit in [*limits, 1 << 30]:
        runs, left = record.take(limit)
        assert len(runs) <= limit
        for address, length in runs:
            given_pages += range(address >> 12, (address + length) >> 12)
    assert left == 0
    assert given_pages == sorted(expected)
