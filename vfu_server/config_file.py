"""Options in a TOML file: by name, with the values that the command line takes.

`vfs = 2`, `strict = true`, `disk = ["ram:24M", "vf1=/srv/one.img"]`: a number, a string, true for an option
that stands alone, a list of what may be given again.
"""

from __future__ import annotations

import argparse
import difflib
import re
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

Options = Mapping[str, Mapping[str, Any]]
"""By name, what argparse takes."""

OF_THE_COMMAND_LINE: Final = ("config", "print-config")


def read(path: Path, options: Options) -> dict[str, Any]:
    """The values of a file, by option.

    Raises OSError, and ValueError where it is no TOML, or has an option that there is not or a value that the
    option does not take. Whether the value itself makes sense is for the command line's parser to say.
    """
    try:
        values = tomllib.loads(path.read_bytes().decode())
    except UnicodeDecodeError as error:
        raise ValueError(f"it is no text: {error.reason} at byte {error.start}") from None
    for name, value in values.items():
        if name not in options or name in OF_THE_COMMAND_LINE:
            close = difflib.get_close_matches(name, options.keys() - set(OF_THE_COMMAND_LINE), 1)
            raise ValueError(
                f"there is no option {name!r}" + "".join(f"; is {one!r} meant?" for one in close)
            )
        _check(name, value, options[name])
    return values


def _check(name: str, value: object, settings: Mapping[str, Any]) -> None:
    """Raise ValueError unless the option can have a value of this type."""
    kind = settings.get("action", "store")
    plain = type(value) in {str, int}
    if kind == "store_true":
        fits, wanted = type(value) is bool, "true or false"
    elif kind == "append":
        fits = plain or (isinstance(value, list) and all(type(one) in {str, int} for one in value))
        wanted = "a string, or a list of strings"
    elif settings.get("nargs") == "?":
        fits, wanted = plain or type(value) is bool, "true, false or a string"
    else:
        fits, wanted = plain, "a string or a number"
    if not fits:
        raise ValueError(f"{name!r} takes {wanted}")


def words(values: Mapping[str, Any]) -> Iterator[str]:
    """The same as words of a command line."""
    for name, value in values.items():
        for one in value if isinstance(value, list) else [value]:
            if one is True:
                yield f"--{name}"
            elif one is not False:
                yield f"--{name}={one}"


def given(options: Options, arguments: Sequence[str]) -> dict[str, Any]:
    """What a command line says, by option, as it is written there. What is wrong with it is not said here."""
    parser = _Lenient(add_help=False, argument_default=argparse.SUPPRESS, exit_on_error=False)
    for name, settings in options.items():
        as_written = {key: settings[key] for key in ("action", "nargs") if key in settings}
        if "const" in settings:
            as_written["const"] = True
        parser.add_argument(f"--{name}", dest=name, **as_written)
    try:
        found = vars(parser.parse_known_args(arguments)[0])
    except argparse.ArgumentError:
        return {}
    return {name: _number(value) for name, value in found.items()}


def _number(value: Any) -> Any:
    """A number as one, as people would write it into a file."""
    return int(value) if isinstance(value, str) and re.fullmatch(r"0|[1-9][0-9]{0,17}", value) else value


class _Lenient(argparse.ArgumentParser):
    """Leaves it to another one to end the program."""

    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


def text(values: Mapping[str, Any]) -> str:
    """A file with these values. What is false, or nothing, is left out."""
    import tomli_w

    return tomli_w.dumps(
        {
            name: value
            for name, value in values.items()
            if name not in OF_THE_COMMAND_LINE and value is not False and value != []
        }
    )
