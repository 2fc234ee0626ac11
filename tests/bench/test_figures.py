"""What pairs of runs become: ratio, goal, spread, and what is said of them in the table and to programs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from bench.__main__ import table
from bench.measure import Benchmark, Result

SPEED = Benchmark("speed", "a snail", "m/h", "higher", 1.0, "short legs")


def result(ours: Sequence[float], benchmark: Benchmark = SPEED) -> Result:
    """Against a reference that is always 2."""
    return Result(benchmark, ours, [2.0] * len(ours))


def test_ratio_is_the_median_of_the_pairs() -> None:
    assert Result(SPEED, [1, 9, 4], [1, 3, 2]).ratio == 2.0


@pytest.mark.parametrize(
    ("ours", "spread"),
    [
        pytest.param([3.0], 0.0, id="one pair"),
        pytest.param([2.0, 2.0, 2.0, 2.0, 2.0], 0.0, id="all alike"),
        pytest.param([0.1, 2.0, 2.0, 2.0, 90.0], 0.0, id="one pair met something, on either side"),
        pytest.param([1.8, 1.9, 2.0, 2.1, 2.2], 0.1, id="close together"),
        pytest.param([1.4, 1.6, 2.0, 2.4, 2.6], 0.4, id="far apart"),
    ],
)
def test_spread_is_that_of_the_middle_half(ours: Sequence[float], spread: float) -> None:
    assert result(ours).spread == pytest.approx(spread)


def test_programs_are_told_of_a_doubt() -> None:
    far, close = result([1.4, 1.6, 2.0, 2.4, 2.6]).as_json(), result([1.8, 1.9, 2.0, 2.1, 2.2]).as_json()
    assert far["spread"] == 0.4
    assert "not to be believed" in far["doubt"]
    assert close["spread"] == 0.1
    assert close["doubt"] == ""


def test_table_marks_a_doubt_and_says_it_once() -> None:
    far = [1.4, 1.6, 2.0, 2.4, 2.6]
    other = replace(SPEED, name="weight")
    lines = table([result(far), result([2.0, 2.0], replace(SPEED, name="height")), result(far, other)])
    _, speed, height, weight, *said = lines.splitlines()
    assert "0.40?" in speed
    assert "0.40?" in weight
    assert "?" not in height
    (doubt,) = [line for line in said if "not to be believed" in line]
    assert doubt.startswith("speed, weight: not to be believed")


def test_missed_goal_is_explained() -> None:
    missed, reached = result([1.0]), result([2.0])
    assert missed.as_json()["limit"] == "short legs"
    assert reached.as_json()["limit"] == ""
    assert "1 missed" in table([missed])
    assert table([missed]).endswith("\nspeed: short legs")


def test_of_what_is_to_be_low_a_goal_is_a_bound() -> None:
    low = replace(SPEED, better="lower")
    assert result([2.2], low).missed
    assert not result([2.0], low).missed
