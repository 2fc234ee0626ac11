"""The demo's gaps: what the programs in the guest say, on the clock of the host."""

from __future__ import annotations

import pytest

from vfu_demo.gaps import Clock, gaps_in, longest_ms, meeting


def test_lines_of_both_programs() -> None:
    said = (
        '{"event":"progress","seconds":1.0}\n'
        '{"event":"gap","from":12.250000,"to":12.500000}\n'
        "event=gap from=13.000000 to=13.125000\n"
        "event=done role=send seconds=4.000\n"
    )
    assert gaps_in(said) == [(12.25, 12.5), (13.0, 13.125)]


@pytest.mark.parametrize(
    ("gap", "seen"),
    [
        ((1.0, 2.0), (101.0, 102.0)),  # long before
        ((9.5, 10.5), (109.5, 111.5)),  # the guest stood still for one second of it
        ((9.5, 9.95), (109.5, 111.0)),  # as near to the stop as the clock is known
        ((12.0, 13.0), (113.0, 114.0)),  # after it, the clock being behind by then
    ],
)
def test_gap_of_a_guest_that_stood_still(gap: tuple[float, float], seen: tuple[float, float]) -> None:
    """The guest's clock is 100 s behind, give or take 0.1 s; it was stopped from 110 to 111 s."""
    found = Clock(100.0, 0.1).around([gap], (110.0, 111.0))
    assert seen in found
    assert found == sorted(found)


def test_one_gap_has_the_stop() -> None:
    """Of two that may have had it the longer one; nothing else touches the stop."""
    stop = (110.0, 111.0)
    found = Clock(100.0, 0.1).around([(9.9, 9.99), (9.99, 10.5)], stop)
    assert meeting(found, stop) == [(109.99, 111.5)]
    assert longest_ms(meeting(found, stop)) == 1510.0


def test_no_gap() -> None:
    """A stop too short to be one for the guest is one all the same."""
    assert Clock(100.0, 0.1).around([], (110.0, 111.0)) == [(110.0, 111.0)]
    assert longest_ms([]) == 0.0
