"""The option `--disk`: what each virtio-blk function keeps its sectors on."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pymodel.devices.disk import Disk, RamDisk
from vfu_server.backends import SECTOR, FileDisk

RAM_DISK: Final = "ram:64M"

_UNITS: Final = {"": 1, "k": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def disk_option(text: str) -> tuple[str | None, str]:
    """(function or None for all, ram:SIZE or file)."""
    match = re.fullmatch(r"(?:(pf|vf[1-9][0-9]*)=)?(.+)", text, re.DOTALL)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no disk: give ram:64M or a file")
    return match[1], match[2]


def open_disks(given: Sequence[tuple[str | None, str]], names: Sequence[str]) -> dict[str, Disk]:
    """A disk for each function. Raises OSError or ValueError."""
    chosen = dict.fromkeys(names, RAM_DISK)
    for function, disk in given:
        if function is None:
            chosen.update(dict.fromkeys(names, disk))
    for function, disk in given:
        if function is not None:
            if function not in chosen:
                raise ValueError(f"there is no function {function}: --total-vfs says how many VFs there are")
            chosen[function] = disk
    return {name: _open_disk(disk) for name, disk in chosen.items()}


def _open_disk(text: str) -> Disk:
    kind, _, size = text.partition(":")
    if kind != "ram":
        path = Path(text)
        try:
            return FileDisk(path)
        except FileNotFoundError:
            raise ValueError(f"{text} does not exist: `truncate -s 64M {text}` would make it") from None
    match = re.fullmatch(r"([0-9]+)([kMGT]?)", size)
    if match is None:
        raise ValueError(f"{text}: give a size such as ram:64M, with k, M, G or T")
    count = int(match[1]) * _UNITS[match[2]]
    if count == 0 or count % SECTOR:
        raise ValueError(f"{text}: the size is no multiple of {SECTOR} above 0")
    return RamDisk(count)
