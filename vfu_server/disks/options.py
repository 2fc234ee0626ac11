"""The option `--disk`: what each virtio-blk function keeps its sectors on.

    [F=]ram:SIZE
    [F=]FILE[,size=SIZE][,readonly][,direct][,format=raw]

A comma in FILE is written twice, as for QEMU.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pymodel.devices.block.disk import Disk
from pymodel.devices.block.ram_disk import RamDisk
from vfu_server.disks.file import FileDisk
from vfu_server.disks.image import SECTOR
from vfu_server.function_option import FUNCTION, Given, chosen

RAM_DISK: Final = "ram:64M"

SIZE_MAX: Final = (1 << 63) - SECTOR
"""Bytes of the largest disk: what an offset in a file can reach."""

_UNITS: Final = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


@dataclass(frozen=True, slots=True)
class DiskChoice:
    """What `--disk` says of a disk: in memory (`file` is None), or in a file that may be made with `size`."""

    file: Path | None = None
    size: int | None = None
    read_only: bool = False
    direct: bool = False
    raw: bool = False


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
    size, read_only, direct, raw = None, False, False, False
    for option in options:
        match option.split("=", 1):
            case ["size", value]:
                size = _size(text, value)
            case ["readonly"]:
                read_only = True
            case ["direct"]:
                direct = True
            case ["format", "raw"]:
                raw = True
            case ["format", other]:
                raise argparse.ArgumentTypeError(
                    f"{text}: only raw images are served; `qemu-img convert -f {other} -O raw` makes one"
                )
            case _:
                raise argparse.ArgumentTypeError(
                    f"{text}: options of a file are size=SIZE, readonly, direct and format=raw; "
                    "a comma in its name is written twice"
                )
    if not name:
        raise argparse.ArgumentTypeError(f"{text}: no file is named")
    return DiskChoice(Path(name), size, read_only, direct, raw)


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


def choose_disks(given: Given[DiskChoice], names: Sequence[str]) -> dict[str, DiskChoice]:
    """What the disk of each function is to be. Raises ValueError for a function that there is not."""
    return chosen(dict.fromkeys(names, _choice(RAM_DISK)), given)


def open_disks(choices: Mapping[str, DiskChoice]) -> dict[str, Disk]:
    """A disk for each function. Raises OSError, ValueError for a file that is none, or MemoryError."""
    return {name: _open_disk(choice) for name, choice in choices.items()}


def _open_disk(choice: DiskChoice) -> Disk:
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
