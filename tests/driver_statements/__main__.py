"""Hold the inventory against the standard's own text, which is not in this repository.

    python -m tests.driver_statements --spec DIR

DIR has the LaTeX sources of virtio 1.4. Says where a section has other words MUST, MUST NOT, SHOULD and
SHOULD NOT than the inventory, or the same in another order.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from tests.driver_statements.inventory import SECTIONS

FILES: Final = (
    "content.tex",
    "split-ring.tex",
    "packed-ring.tex",
    "shared-mem.tex",
    "admin.tex",
    "admin-cmds-legacy-interface.tex",
    "admin-cmds-capabilities.tex",
    "admin-cmds-resource-objects.tex",
    "admin-cmds-device-parts.tex",
    "device-parts.tex",
    "transport-pci.tex",
    "device-types/blk/description.tex",
    "device-types/net/description.tex",
)
"""Of the sources, those that are about this device."""

_COMMENT: Final = re.compile(r"(?<!\\)%.*")
_BLOCK: Final = re.compile(
    r"^\s*\\(?=(?:drivernormative|devicenormative|part|chapter|(?:sub)*section|(?:sub)?paragraph)\b)",
    re.MULTILINE,
)
_ARGUMENT: Final = r"\s*\{((?:[^{}]|\{[^{}]*\})*)\}"
_DRIVERS: Final = re.compile(r"drivernormative" + 3 * _ARGUMENT)
_WORD: Final = re.compile(r"\b(MUST|SHOULD)(\s+(?:NOT|not)\b)?")
_PARENTS: Final = re.compile(
    r"^(?:basic facilities of a virtio device|general initialization and device operation"
    r"|virtio transport options / virtio over pci bus|device types) / "
)
"""Parts that the titles of the inventory do without."""


def short(title: str) -> str:
    """A section's title as it is compared."""
    return _PARENTS.sub("", " ".join(title.split()).casefold())


def levels(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """The sections with requirements for drivers: title, and each level that they name."""
    for name in FILES:
        text = _COMMENT.sub("", (folder / name).read_text(errors="replace"))
        for block in _BLOCK.split(text):
            head = _DRIVERS.match(block)
            if head is not None:
                words = _WORD.finditer(block, head.end())
                found = [f"{word[1]} NOT" if word[2] else word[1] for word in words]
                yield short(head[3]), found


def differences(folder: Path) -> list[str]:
    """Where inventory and standard differ."""
    ours = {short(title): [each.level for each in section] for title, section in SECTIONS.items()}
    theirs = dict(levels(folder))
    found = []
    for title in [*theirs, *(ours.keys() - theirs.keys())]:
        here, there = ours.get(title, []), theirs.get(title, [])
        if here != there:
            found.append(f"{title}: {len(there)} in the standard, {len(here)} in the inventory")
            found.append(f"  standard:  {', '.join(there)}")
            found.append(f"  inventory: {', '.join(here)}")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare. Returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.driver_statements", description="The statements for drivers."
    )
    parser.add_argument("--spec", type=Path, required=True, help="LaTeX sources of virtio 1.4")
    found = differences(parser.parse_args(arguments).spec)
    for line in found:
        print(line)
    total = sum(map(len, SECTIONS.values()))
    print(f"{total} statements in {len(SECTIONS)} sections: {'they differ' if found else 'all are there'}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
