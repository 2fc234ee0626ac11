"""The option `--disk`: what each virtio-blk function keeps its sectors on.

    [F=]ram:SIZE
    [F=]FILE[,size=SIZE][,readonly][,direct][,format=raw]
    [F=]NBD-URI[,readonly][,format=raw][,reconnect-delay=SECONDS]

A comma in FILE or NBD-URI is written twice, as for QEMU.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pymodel.devices.block.disk import Disk
from pymodel.devices.block.ram_disk import RamDisk
from vfu_server.disks.file import FileDisk
from vfu_server.disks.image import SECTOR
from vfu_server.disks.nbd_disk import NbdDisk
from vfu_server.function_option import FUNCTION, Given, chosen

RAM_DISK: Final = "ram:64M"

SIZE_MAX: Final = (1 << 63) - SECTOR
"""Bytes of the largest disk: what an offset in a file can reach."""

SECONDS_MAX: Final = 3600

_NBD: Final = r"nbds?(\+\w+)?:"
"""How the URIs begin that libnbd takes."""

_UNITS: Final = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class DiskChoice:
    """What `--disk` says of a disk: in memory, in a file that may be made, or behind an NBD server."""

    file: Path | None = None
    uri: str | None = None
    size: int | None = None
    read_only: bool = False
    direct: bool = False
    raw: bool = False
    patience: int = 0
    """Seconds for which requests wait for an NBD server that is away."""


def disk_option(text: str) -> tuple[str | None, DiskChoice]:
    """(function or None for all, its disk)."""
    match = re.fullmatch(rf"{FUNCTION}(.+)", text, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no disk: give ram:64M or a file")
    return match[1], _choice(match[2])


def _choice(text: str) -> DiskChoice:
    # NUL, which is in no file's name, stands in for a comma that was written twice.
    name, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if name.startswith("ram:"):
        if options:
            raise argparse.ArgumentTypeError(f"{text}: a disk in memory has no options")
        return DiskChoice(size=_size(text, name.removeprefix("ram:")))
    if re.match(_NBD, name):
        return DiskChoice(uri=name, **_read(text, "an NBD server's disk", options, _OF_NBD))
    choice = DiskChoice(file=Path(name), **_read(text, "a file", options, _OF_FILE))
    if not name:
        raise argparse.ArgumentTypeError(f"{text}: no file is named")
    return choice


def _read(text: str, of: str, options: Sequence[str], table: Mapping[str, _Reader]) -> dict[str, Any]:
    """The fields of a `DiskChoice` that options name."""
    fields: dict[str, Any] = {}
    for option in options:
        name, equals, value = option.partition("=")
        reader = table.get(name + equals)
        if reader is None:
            known = ", ".join(each + _VALUES.get(each, "") for each in table)
            raise argparse.ArgumentTypeError(
                f"{text}: options of {of} are {known}; a comma in its name is written twice"
            )
        field, read = reader
        fields[field] = read(text, value)
    return fields


def _size(text: str, size: str) -> int:
    match = re.fullmatch(r"([0-9]{1,19})([kMGT]?)", size)
    if match is None:
        raise argparse.ArgumentTypeError(
            f"{text}: give a size such as ram:64M or size=64M, with k, M, G or T"
        )
    count = int(match[1]) * _UNITS[match[2]]
    if count == 0 or count % SECTOR:
        raise argparse.ArgumentTypeError(f"{text}: the size is no multiple of {SECTOR} above 0")
    if count > SIZE_MAX:
        raise argparse.ArgumentTypeError(f"{text}: the size is more than {SIZE_MAX} bytes")
    return count


def _raw(text: str, name: str) -> bool:
    if name != "raw":
        raise argparse.ArgumentTypeError(
            f"{text}: only raw images are served; `qemu-img convert -f {name} -O raw` makes one"
        )
    return True


def _seconds(text: str, seconds: str) -> int:
    if re.fullmatch(r"[0-9]{1,4}", seconds) is None or int(seconds) > SECONDS_MAX:
        raise argparse.ArgumentTypeError(f"{text}: give whole seconds up to {SECONDS_MAX}")
    return int(seconds)


def _yes(text: str, value: str) -> bool:
    return True


_Reader = tuple[str, Callable[[str, str], object]]

_OF_NBD: Final[dict[str, _Reader]] = {
    "readonly": ("read_only", _yes),
    "format=": ("raw", _raw),
    "reconnect-delay=": ("patience", _seconds),
}
_OF_FILE: Final[dict[str, _Reader]] = {
    "size=": ("size", _size),
    "readonly": ("read_only", _yes),
    "direct": ("direct", _yes),
    "format=": ("raw", _raw),
}
_VALUES: Final = {"size=": "SIZE", "format=": "raw", "reconnect-delay=": "SECONDS"}


def choose_disks(given: Given[DiskChoice], names: Sequence[str]) -> dict[str, DiskChoice]:
    """What the disk of each function is to be. Raises ValueError for a function that there is not."""
    return chosen(dict.fromkeys(names, _choice(RAM_DISK)), given)


def open_disks(choices: Mapping[str, DiskChoice]) -> dict[str, Disk]:
    """A disk for each function. Raises OSError, ValueError for a file that is none, or MemoryError."""
    return {name: _open_disk(choice) for name, choice in choices.items()}


def _open_disk(choice: DiskChoice) -> Disk:
    if choice.uri is not None:
        try:
            return NbdDisk(
                choice.uri, read_only=choice.read_only, any_content=choice.raw, patience=choice.patience
            )
        except OSError as error:
            raise OSError(error.errno, error.strerror, choice.uri) from error
    if choice.file is None:
        assert choice.size is not None
        try:
            return RamDisk(choice.size)
        except (MemoryError, OverflowError):
            raise MemoryError(f"there is no memory for the tables of a disk of {choice.size} bytes") from None
    try:
        return FileDisk(
            choice.file,
            size=choice.size,
            read_only=choice.read_only,
            direct=choice.direct,
            any_content=choice.raw,
        )
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise OSError(error.errno, error.strerror, str(choice.file)) from error
        if not choice.file.parent.is_dir():
            raise ValueError(f"{choice.file}: there is no folder {choice.file.parent}") from None
        raise ValueError(f"{choice.file} does not exist: `,size=64M` behind it would make it") from None
