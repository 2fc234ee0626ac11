"""The command line of `vfu-boot`."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pymodel import __version__

SECONDS = 120.0

EPILOG = """\
The script is run by /bin/sh as root, with no standard input. What it prints comes to standard output, and its
exit status is that of the command. Others are: 2 wrong options, 123 the guest panicked or went off before the
end of the script, 124 --timeout, 125 something could not be started (a module that does not load, too), 130
Ctrl-C.
"""


@dataclass(frozen=True)
class Options:
    """What was asked for."""

    folder: Path
    functions: list[str]
    kernel: Path | None
    initrd: Path | None
    append: str
    modules: list[Path]
    share: Path | None
    gdb: str | None
    script: Path | None
    timeout: float | None
    memory: int
    cpus: int
    accel: str


def parse(arguments: Sequence[str] | None = None) -> Options:
    """The options. Ends the program with status 2 for wrong ones."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = parser()
    # A value of --gdb comes behind `=`: else it would take the word that follows.
    found = command.parse_args(["--gdb=run" if word == "--gdb" else word for word in words])
    if found.timeout is not None and found.script is None:
        command.error("--timeout goes with --script")
    if found.timeout is None and not found.gdb:
        found.timeout = SECONDS
    names = [path.name for path in found.modules]
    if len(set(names)) < len(names):
        command.error("two modules have the same name")
    if found.share is not None and not found.share.is_dir():
        command.error(f"--share {found.share}: there is no such folder")
    for path in (*found.modules, *filter(None, (found.kernel, found.initrd, found.script))):
        if not path.is_file():
            command.error(f"{path}: there is no such file")
    return Options(**vars(found))


def parser() -> argparse.ArgumentParser:
    """The command line."""
    result = argparse.ArgumentParser(
        prog="vfu-boot",
        description="Boot a guest with the functions of a running vfu-server, at a shell on this terminal.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    result.add_argument("--version", action="version", version=f"vfu-boot {__version__}")
    result.add_argument("folder", type=Path, metavar="DIR", help="the server's --socket-dir")
    result.add_argument(
        "--function", type=_function, action="append", default=[], dest="functions", metavar="F",
        help="of --sriov owner: pf, vf1 ... (repeats; default: all)",
    )  # fmt: skip
    result.add_argument(
        "--script", type=Path, metavar="FILE", help="run this in the guest instead of a shell, and end"
    )
    result.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS",
        help=f"for boot and script together (default: {SECONDS:g}; with --gdb: none)",
    )  # fmt: skip
    result.add_argument(
        "--module", type=Path, action="append", default=[], dest="modules", metavar="FILE.ko",
        help="load this before shell or script (repeats, in this order)",
    )  # fmt: skip
    result.add_argument(
        "--share", type=Path, metavar="DIR", help="the guest has a copy of this folder at /share"
    )
    result.add_argument("--kernel", type=Path, metavar="FILE", help="boot this bzImage or vmlinux")
    result.add_argument(
        "--initrd", type=Path, metavar="FILE",
        help="boot with this initramfs; a script and modules need the usual one's /init in it",
    )  # fmt: skip
    result.add_argument("--append", default="", metavar="TEXT", help="more words for the kernel")
    result.add_argument(
        "--gdb", nargs="?", choices=("run", "wait"), metavar="=wait",
        help="let gdb attach; --gdb=wait has the guest wait for it",
    )  # fmt: skip
    result.add_argument("--memory", type=_positive, default=256, metavar="MIB", help="default: 256")
    result.add_argument("--cpus", type=_positive, default=1, metavar="N", help="default: 1")
    result.add_argument("--accel", choices=("tcg", "kvm"), default="tcg", help="default: tcg")
    return result


def _function(text: str) -> str:
    if not re.fullmatch(r"pf|vf[1-9][0-9]{0,4}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give pf, vf1 ...")
    return text


def _positive(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]{0,6}", text):
        raise argparse.ArgumentTypeError(f"{text!r}: give a whole number above 0")
    return int(text)


def _seconds(text: str) -> float:
    return float(_positive(text))
