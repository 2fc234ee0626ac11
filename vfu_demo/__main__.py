"""`vfu-demo`: shows what the device does, with real guests.

Exit status: 0 all is well, 1 something was lost or failed, 2 wrong options, 130 it was interrupted.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pymodel import __version__
from vfu_demo import hosts, moves, nested, show, sriov
from vfu_images.preparation import PRESENT, ensure

DEMOS: Final[Mapping[str, tuple[Callable[[], None], str]]] = {
    "moves": (moves.play, "a guest moves between two hosts, under disk and network traffic"),
    "sriov": (sriov.play, "a stock guest enables VFs of its PF, uses them, and disables them"),
    "nested": (nested.play, "QEMU in a guest gives VFs to a guest of its own, and migrates that one"),
    "hosts": (hosts.play, "a guest moves between two hosts that share a network only, by ssh"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Play a demo; returns the exit status."""
    demo = parser().parse_args(arguments).demo

    def play() -> None:
        ensure(demo if demo in PRESENT else "usual")
        DEMOS[demo][0]()

    return show.run(play)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    demos = "\n".join(f"  {name:8}{what}" for name, (_, what) in DEMOS.items())
    result = argparse.ArgumentParser(
        prog="vfu-demo",
        description=f"Show what the device does, with real guests.\n\n{demos}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    result.add_argument("--version", action="version", version=f"vfu-demo {__version__}")
    result.add_argument(
        "demo", nargs="?", choices=tuple(DEMOS), default="moves", help="which (default: moves)"
    )
    return result


if __name__ == "__main__":
    sys.exit(main())
