"""Options of the form `[F=]VALUE`: what is said of one function counts before what is said of all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, TypeVar

Value = TypeVar("Value")

Given = Sequence[tuple[str | None, Value]]
"""(function or None for all, value), in the order of the command line: what is said last counts."""

FUNCTION: Final = r"(?:(pf|vf[1-9][0-9]*)=)?"
"""A regular expression for `F=`. Its group is the function."""


def chosen(default: Mapping[str, Value], given: Given[Value]) -> dict[str, Value]:
    """The value of each function in `default`. Raises ValueError for another one."""
    result = dict(default)
    for function, value in given:
        if function is None:
            result.update(dict.fromkeys(result, value))
    for function, value in given:
        if function is not None:
            if function not in result:
                raise ValueError(f"there is no function {function}: --total-vfs says how many VFs there are")
            result[function] = value
    return result
